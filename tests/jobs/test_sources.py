"""What is listed, what is left aside, and in which order."""

import os
from pathlib import Path
from typing import Any

import pytest

from jobs.options import Selection
from jobs.sources import Listing, list_images
from labeler import storage
from labeler.errors import OptionsError


def make_folder(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = os.fsencode(root) + b"/" + os.fsencode(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 (bytes)
        with open(path, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(b"x")
    return root


def list_names(root: Path, **selection: Any) -> list[str]:
    return [ref.file_name for ref in list_here(root, **selection).read_refs()]


def list_here(root: Path, **selection: Any) -> Listing:
    return list_images(storage.path_to_uri(root), selection=Selection(**selection))


def test_images_are_listed_in_byte_order_of_their_names(tmp_path: Path) -> None:
    """Capitals before small letters, ASCII before others, '-' before '/': as bytes compare, not as people read."""
    make_folder(tmp_path, "b.jpg", "B.JPG", "a/x.png", "a-1.webp", "é.jpg", "z.jpg", "10.jpg", "9.jpg")
    assert list_names(tmp_path) == ["10.jpg", "9.jpg", "B.JPG", "a-1.webp", "a/x.png", "b.jpg", "z.jpg", "é.jpg"]


def test_files_that_are_no_images_by_name_are_counted_by_kind(tmp_path: Path) -> None:
    """Other extensions, none at all, and everything hidden, also what lies in a hidden folder."""
    make_folder(tmp_path, "a.jpg", "b.txt", "c.TXT", "README", ".d.jpg", "._a.jpg", ".cache/e.jpg")
    listing = list_here(tmp_path)
    assert [ref.file_name for ref in listing.read_refs()] == ["a.jpg"]
    assert listing.skipped == {".txt": 2, "dotfile": 3, "no extension": 1}


def test_odd_names_survive(tmp_path: Path) -> None:
    """Names that are not UTF-8, with quotes, percent signs, leading dashes, or alike but for folder and extension."""
    names = ["50% off.jpg", "-x.png", "quo\"te's.jpg", "new\nline.jpg", b"caf\xe9.jpg", "a/1.jpg", "a/1.png", "b/1.jpg"]
    make_folder(tmp_path, *names)
    listing = list_here(tmp_path)
    assert listing.num_images == len(names)
    assert {"50%25 off.jpg", "caf%E9.jpg"} <= {ref.file_name for ref in listing.read_refs()}
    for ref in listing.read_refs():
        assert storage.read_bytes(ref.uri) == b"x"
        assert (ref.size_bytes, ref.uri.isascii()) == (1, True)


def test_selection(tmp_path: Path) -> None:
    """Include, then exclude, then a sample, then the limit; the same sample whatever else lies in the folder."""
    make_folder(tmp_path, *(f"{folder}/{number}.jpg" for folder in ("train", "val") for number in range(8)))
    assert list_names(tmp_path, include=("train/*",), exclude=("*/1.jpg", "*/2.jpg"), limit=2) == ["train/0.jpg", "train/3.jpg"]
    sample = list_names(tmp_path, sample=5, seed=3)
    assert sample == sorted(sample)
    assert len(sample) == 5
    assert sample != list_names(tmp_path, sample=5, seed=4)
    assert set(sample) <= set(list_names(tmp_path, sample=6, seed=3))
    assert list_here(tmp_path, sample=5).num_not_selected == 11


@pytest.mark.parametrize(
    ("names", "selection", "words"),
    [
        ([], {}, "is empty"),
        (["a.txt", "b.mp4"], {}, "1 .mp4, 1 .txt"),
        (["a.jpg"], {"include": ("*.png",)}, "none of its 1 images"),
    ],
)
def test_nothing_to_do_is_refused(tmp_path: Path, names: list[str], selection: dict[str, Any], words: str) -> None:
    """An empty run is a mistake of the person, and the sentence says which."""
    with pytest.raises(OptionsError, match=words):
        list_here(make_folder(tmp_path, *names), **selection)


def test_an_input_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """Missing, or a file."""
    make_folder(tmp_path, "a.jpg")
    for path in (tmp_path / "none", tmp_path / "a.jpg"):
        with pytest.raises(OptionsError, match="not a folder"):
            list_here(path)
