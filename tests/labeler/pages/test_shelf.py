"""Which photos a page may open: nothing outside of its folder, whatever a name says."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from labeler.errors import ImageError, OptionsError
from labeler.pages.shelf import MAX_DROPPED_BYTES, Shelf


def write_photo(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, and links that lead within the folder and out of it."""
    write_photo(tmp_path / "secret" / "private.png")
    folder = tmp_path / "photos"
    write_photo(folder / "a.png")
    write_photo(folder / "below" / "50% é.png")
    (folder / "notes.txt").write_text("no photo")
    for hidden in (".hidden.png", "._a.png", ".thumbnails/a.png"):
        write_photo(folder / hidden)
    (folder / "out.png").symlink_to(tmp_path / "secret" / "private.png")
    (folder / "outside").symlink_to(tmp_path / "secret")
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    return folder


def test_photos_are_listed_and_opened_by_name(folder: Path) -> None:
    """Those of the folder and below that a job would take, so nothing hidden; a link only where it stays inside."""
    shelf = Shelf(str(folder), max_pixels=100)
    assert shelf.list_names() == ["a.png", "below/50%25 é.png", "inside.png"]
    assert shelf.find("below/50%25 é.png").name == "below/50% é.png"
    assert shelf.find("below/50%25 é.png").read().hw == (6, 8)
    assert shelf.find("inside.png").read().hw == (6, 8)


@pytest.mark.parametrize(
    "name",
    [
        "out.png",
        "outside/private.png",
        "../secret/private.png",
        "below/../../secret/private.png",
        "%2e%2e/secret/private.png",
        "ABSOLUTE/secret/private.png",
        "file://ABSOLUTE/secret/private.png",
        "notes.txt",
        ".hidden.png",
        ".thumbnails/a.png",
        "../photos",
        "below",
        "nowhere.png",
        "round.png",
        "a.png\0.png",
        "a.png%00.png",
        "x" * 5000 + ".png",
        "",
    ],
)
def test_nothing_else_can_be_opened(name: str, folder: Path) -> None:
    """Links out of the folder, parents, absolute paths, URLs, and what is no photo: all the same answer."""
    shelf = Shelf(str(folder), max_pixels=100)
    with pytest.raises(ImageError, match="no photo of the folder"):
        shelf.find(name.replace("ABSOLUTE", str(folder.parent)))


def test_the_photos_may_lie_in_a_bucket(folder: Path, s3: Any) -> None:
    """Listed and opened as those of a folder; no other object of the bucket can be."""
    data = (folder / "a.png").read_bytes()
    for key in ("shown/a.png", "shown/below/50% b.png", "shown/.hidden.png", "private.png"):
        s3.put_object(Bucket="photos", Key=key, Body=data)
    shelf = Shelf("s3://photos/shown", max_pixels=100)
    assert shelf.list_names() == ["a.png", "below/50%25 b.png"]
    assert shelf.find("below/50%25 b.png").read().hw == (6, 8)
    for name in ("../private.png", "private.png", "s3://photos/private.png", ".hidden.png"):
        with pytest.raises(ImageError, match="no photo of the folder"):
            shelf.find(name)


def test_a_folder_of_very_many_is_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are offered are listed; the others can't be chosen, which the page says."""
    monkeypatch.setattr("labeler.pages.shelf.MAX_LISTED", 2)
    assert len(Shelf(str(folder), max_pixels=100).list_names()) == 2


def test_a_changed_photo_is_another(folder: Path) -> None:
    """Its key changes, so that no embedding of the old one answers."""
    shelf = Shelf(str(folder), max_pixels=100)
    before = shelf.find("a.png").key
    assert shelf.find("a.png").key == before
    write_photo(folder / "a.png", size=(10, 10))
    os.utime(folder / "a.png", (1, 1))
    assert shelf.find("a.png").key != before


def test_large_and_broken_photos_are_refused(folder: Path) -> None:
    """In words for a person, naming the file; pixels are counted before they are decoded."""
    write_photo(folder / "large.png", size=(11, 10))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    shelf = Shelf(str(folder), max_pixels=100)
    with pytest.raises(ImageError, match=r"large\.png can't be opened: 11 x 10 pixels"):
        shelf.find("large.png").read()
    with pytest.raises(ImageError, match=r"broken\.png can't be opened"):
        shelf.find("broken.png").read()


def test_what_is_dropped_is_forgotten_some_day(folder: Path) -> None:
    """Memory is bounded: the oldest goes first, and is asked for again; words that were never given open nothing."""
    shelf = Shelf(None, max_pixels=100)
    data = (folder / "a.png").read_bytes()
    token = shelf.keep(data)
    photo = shelf.find_dropped(token, name="x.png")
    assert photo.read().hw == (6, 8)
    assert shelf.list_names() == []
    shelf.keep(bytes(MAX_DROPPED_BYTES // 2))
    assert photo.read().hw == (6, 8)
    shelf.keep(bytes(MAX_DROPPED_BYTES // 2))  # What was used last stays.
    assert photo.read().hw == (6, 8)
    shelf.keep(bytes(MAX_DROPPED_BYTES))
    with pytest.raises(ImageError, match="drop it again"):  # Whoever has it open holds no bytes of it.
        photo.read()
    for word in (token, "", "../a.png"):
        with pytest.raises(ImageError, match="drop it again"):
            shelf.find_dropped(word, name="x.png")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """Before a model is loaded."""
    with pytest.raises(OptionsError, match="is not a folder"):
        Shelf(str(tmp_path / "none"), max_pixels=100)
