"""Formats of a file an image: names, pictures, what a folder may hold. Each format's content, judged by hand."""

import errno
import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from nobody import as_nobody, make_public_folder
from PIL import Image as PillowImage

from export import cli, folders
from export import names as names_of_files
from export.folders import Folder, FolderOptions, open_folder
from export.labelme import LabelmeOptions, export_labelme
from export.masks import export_masks
from export.options import SelectionOptions
from export.sa1b import export_sa1b
from export.yolo import YoloOptions, export_yolo, name_labels
from labeler import rle
from labeler.errors import OptionsError, StorageError
from labeler.runs import PromptsRecord, Run, read_run

HW = (48, 64)
FORMATS = [
    (export_yolo, YoloOptions, "images/train/a.png", "labels/train/a.txt"),
    (export_sa1b, FolderOptions, "a.png", "a.json"),
    (export_masks, SelectionOptions, None, "a.png"),
    (export_labelme, LabelmeOptions, "a.png", "a.json"),
]
each_format = pytest.mark.parametrize(
    ("export", "options", "picture", "label"), FORMATS, ids=lambda f: getattr(f, "__name__", "")
)


def list_names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and p.name != ".export.json")


@pytest.fixture
def run(make_run: Any, random_masks: Any) -> Run:
    images = [("a.png", HW, random_masks(HW, 6)), ("broken.png", None, []), ("sub/50%25 é.png", HW, [])]
    return read_run(str(make_run([*images, ("sub/b.c.png", HW, random_masks(HW, 2, seed=1))])))


@each_format
def test_labels_stand_beside_their_pictures(
    run: Run, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str
) -> None:
    """One label an image, an empty one where there are no masks, none for the failed; folders and names are the disk's."""
    report = export(run, str(tmp_path / "out"), options=options())
    below = "images/train/" if export is export_yolo else ""
    labels = [label.replace("a.", name) for name in ("a.", "sub/50% é.", "sub/b.c.")]
    pictures = [below + name for name in ("a.png", "sub/50% é.png", "sub/b.c.png")] if picture else []
    extra = ["data.yaml"] if export is export_yolo else []
    assert list_names(tmp_path / "out") == sorted([*labels, *pictures, *extra])
    assert (report.num_images, report.num_masks, report.num_failed) == (3, 8, 1)


@each_format
def test_the_same_export_again_gives_the_same_bytes(
    run: Run, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str
) -> None:
    """Over itself and elsewhere; another export into the same folder is exit 2, and so is a folder of foreign files."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, one, two):
        export(run, str(folder), options=options())
    for name in [*list_names(one), ".export.json"]:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    before = {name: (one / name).read_bytes() for name in list_names(one)}
    with pytest.raises(OptionsError, match="export options differ"):
        export(run, str(one), options=options(min_area=5))
    assert {name: (one / name).read_bytes() for name in list_names(one)} == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("")
    with pytest.raises(OptionsError, match="not an empty folder"):
        export(run, str(tmp_path / "foreign"), options=options())


def test_masks_of_other_prompts_are_another_export(run: Run, tmp_path: Path) -> None:
    """Of the same photos, model and options: else labels of one run would stay between those of the other."""

    def open_for(fingerprint: str) -> Folder:
        asked = PromptsRecord(categories=(), num_without_category=0, has_image_ids=False)
        prompted = replace(run, prompts=asked, fingerprint=fingerprint)
        with open_folder(prompted, str(tmp_path / "out"), kind="masks", options=SelectionOptions()) as folder:
            return folder

    assert [open_for("a").is_renewed for _ in range(2)] == [False, True]
    with pytest.raises(OptionsError, match=r"another export .*fingerprint differ"):
        open_for("b")


@each_format
def test_an_export_that_broke_off_is_not_complete(
    run: Run, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str
) -> None:
    """Its record says so, and the same command again completes it."""
    part = Path(run.output) / "masks" / "part-0000001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-50])
    with pytest.raises(StorageError, match="part-0000001"):
        export(run, str(tmp_path / "out"), options=options())
    assert json.loads((tmp_path / "out" / ".export.json").read_text())["complete"] is False
    part.write_bytes(whole)
    export(run, str(tmp_path / "out"), options=options())
    assert json.loads((tmp_path / "out" / ".export.json").read_text())["complete"] is True


@each_format
def test_names_that_collide(make_run: Any, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str) -> None:
    """They keep their extension, or are exit 2 with the pair named where the format's readers ignore it."""
    run = read_run(str(make_run([(name, HW, []) for name in ("a.jpg", "a.png", "b.jpg", "sub/a.png")])))
    if export in (export_yolo, export_labelme):
        with pytest.raises(OptionsError, match=r"a\.jpg and a\.png"):
            export(run, str(tmp_path / "out"), options=options())
        assert not (tmp_path / "out").exists()
        return
    export(run, str(tmp_path / "out"), options=options())
    suffix = Path(label).suffix
    labels = {f"a.jpg{suffix}", f"a.png{suffix}", f"b{suffix}", f"sub/a{suffix}"}
    assert labels <= set(list_names(tmp_path / "out"))


@pytest.mark.parametrize(("export", "options"), [f[:2] for f in FORMATS[1:3]])
def test_no_two_labels_have_one_name(make_run: Any, tmp_path: Path, export: Any, options: Any) -> None:
    """On either side of a split, too; and not the name of one that keeps its extension."""
    run = read_run(str(make_run([(name, HW, []) for name in ("a.jpg", "a.png", "a.jpg.png")])))
    for below, more in (("", {}), ("train/", {"val_fraction": 0.01})):
        out = tmp_path / f"out{len(below)}"
        export(run, str(out), options=options(**more))
        suffix = ".png" if export is export_masks else ".json"
        labels = {f"{below}{name}{suffix}" for name in ("a.jpg", "a.png", "a.jpg.png")}
        assert labels <= set(list_names(out))
        assert f"{below}a.json" not in list_names(out)


@pytest.mark.parametrize(("export", "options"), [f[:2] for f in FORMATS[1:3]])
def test_a_run_that_went_on_leaves_no_stale_labels(make_run: Any, tmp_path: Path, export: Any, options: Any) -> None:
    """Where the images that came since change the names of labels, it is another export; else it is the same."""
    for names, is_same in ((("a.jpg", "a.png"), False), (("b.jpg", "c.jpg"), True)):
        out = tmp_path / names[0]
        for missing in ((1,), ()):
            run = read_run(str(make_run([(name, HW, []) for name in names], per_shard=1, missing=missing)))
            if is_same or missing:
                export(run, str(out), options=options())
            else:
                with pytest.raises(OptionsError, match="shared stems"):
                    export(run, str(out), options=options())
            shutil.rmtree(run.output)


@each_format
@pytest.mark.parametrize("names", [["a.jpg", "a.jpg"], ["/data/a.jpg"], ["../a.jpg"], ["s3://bucket/a.jpg"]])
def test_names_no_folder_can_hold_are_refused(
    make_run: Any, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str, names: list[str]
) -> None:
    """Before anything is written, with the way out: a name twice, or one that leads out of the folder."""
    run = read_run(str(make_run([(name, HW, []) for name in names])))
    with pytest.raises(OptionsError, match="--relative-to"):
        export(run, str(tmp_path / "out"), options=options())
    assert not (tmp_path / "out").exists()
    if len(names) == 1:
        report = export(run, str(tmp_path / "out"), options=options(relative_to=str(tmp_path / "photos")))
        assert report.num_images == 1


@each_format
@pytest.mark.parametrize("names", [["a//b.jpg", "a/b.jpg"], ["a/b.jpg", "a/./b.jpg"], ["./a.jpg", "a.jpg"]])
def test_names_of_one_file_are_refused(
    make_run: Any, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str, names: list[str]
) -> None:
    """A bucket and an archive keep them apart, a disk does not: the pair is named before anything is written."""
    run = read_run(str(make_run([(name, HW, []) for name in names])))
    with pytest.raises(OptionsError) as caught:
        export(run, str(tmp_path / "out"), options=options())
    assert all(name in str(caught.value).split() for name in names)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["copy", "none"])
@pytest.mark.parametrize(
    ("names", "by_labels", "by_pictures"),
    [
        (["a.jpg", "a.jpg/b.jpg"], "", "yolo sa1b labelme"),  # The picture is where a folder should be.
        (["a", "x.jpg", "a.bmp/b/c.jpg"], "", "yolo sa1b labelme"),  # So it may be, once it has its extension.
        (["a.jpg", "a.json/b.jpg"], "sa1b labelme", ""),  # The label is.
        (["a.jpg", "a.txt/b.jpg"], "yolo", ""),
        (["a.jpg", "a.png/b.jpg"], "masks", ""),
        (["a.jpg", "a.png", "a.jpg.json/b.jpg"], "sa1b yolo labelme", ""),  # The label that keeps its extension; shared.
        (["a.jpg", "a.png", "a.jpg.png/b.jpg"], "masks yolo labelme", ""),
        (["a", "a.png", "a/b.jpg"], "yolo labelme", "sa1b"),  # The picture without extension stays so beside the other.
        (["a.jpg", "a/b.jpg", "a.b/a.jpg"], "", ""),
        ([".export.jpg"], "sa1b labelme", ""),  # Its label would be the record.
        ([".export.json/a.jpg"], "yolo sa1b labelme masks", ""),
    ],
)
def test_files_that_get_in_each_others_way_are_refused(
    make_run: Any, tmp_path: Path, how: Any, names: list[str], by_labels: str, by_pictures: str
) -> None:
    """Before anything is written, and only where they do; else there is a label for each image, and a picture if asked for."""
    run = read_run(str(make_run([(name, HW, []) for name in names])))
    refused = by_labels.split() + by_pictures.split() * (how == "copy")
    for export, options, picture, _ in FORMATS:
        out = tmp_path / export.__name__
        more = {"images": how} if picture else {}
        if export.__name__.removeprefix("export_") in refused:
            with pytest.raises(OptionsError) as caught:
                export(run, str(out), options=options(**more))
            assert names[0] in str(caught.value)
            assert not out.exists()
        else:
            export(run, str(out), options=options(**more))
            num_pictures = len(names) if picture and how == "copy" else 0
            assert len(list_names(out)) == len(names) + num_pictures + (export is export_yolo)


@each_format
def test_names_too_long_for_a_disk_are_refused(
    make_run: Any, tmp_path: Path, export: Any, options: Any, picture: str | None, label: str
) -> None:
    """By name and before anything is written, where a label is longer than its image; a shorter one is linked."""
    for number, (stem, is_taken) in enumerate((("x" * 250, True), ("日" * 83 + "x", True), ("x" * 251, False))):
        run = read_run(str(make_run([(f"sub/{stem}.jpg", HW, []), ("b.jpg", HW, [])])))
        out = tmp_path / str(number)
        if is_taken or export in (export_yolo, export_masks):  # .txt and .png are no longer than .jpg.
            export(run, str(out), options=options())
            assert all(p.is_symlink() for p in out.rglob("*.jpg"))
        else:
            with pytest.raises(OptionsError, match=f"^sub/{stem}.jpg is too long a name.* 256 bytes"):
                export(run, str(out), options=options())
            assert not out.exists()
        shutil.rmtree(run.output)


def test_labels_that_keep_their_extension_may_be_too_long(make_run: Any, tmp_path: Path) -> None:
    """As those of images that share their stem do."""
    run = read_run(str(make_run([("x" * 251 + extension, HW, []) for extension in (".jpg", ".png")])))
    with pytest.raises(OptionsError, match=r"too long a name.* 259 bytes"):
        export_masks(run, str(tmp_path / "out"), options=SelectionOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["link", "copy", "none"])
@pytest.mark.parametrize(("export", "options"), [f[:2] for f in FORMATS if f[2]])
def test_pictures_without_extension_get_that_of_their_format(
    make_run: Any, tmp_path: Path, export: Any, options: Any, how: Any
) -> None:
    """Ultralytics and labelme pass others by; and what follows a dot is part of the name, so these share no labels."""
    names = ["objects/ab12", "img.0001", "img.0002", "odd"]
    run = read_run(str(make_run([(name, HW, []) for name in names])))
    PillowImage.new("RGB", HW[::-1]).save(tmp_path / "photos" / "3.png", "PPM")  # Has no signature that is known.
    report = export(run, str(tmp_path / "out"), options=options(images=how))
    folders = ("labels/train/", "images/train/", ".txt") if export is export_yolo else ("", "", ".json")
    labels, pictures, suffix = folders
    placed = [] if how == "none" else [f"{pictures}{name}" + ".png" * (name != "odd") for name in names]
    extra = ["data.yaml"] if export is export_yolo else []
    assert list_names(tmp_path / "out") == sorted([*(labels + name + suffix for name in names), *placed, *extra])
    assert all((tmp_path / "out" / name).is_symlink() == (how == "link") for name in placed)
    assert all((tmp_path / "out" / name).stat().st_size > 0 for name in placed)
    if export is export_yolo:
        assert +report.unread_suffixes == ({} if how == "none" else {"without extension": 1})
    else:
        record = json.loads((tmp_path / "out" / "img.0001.json").read_text())
        found = record["imagePath"] if export is export_labelme else record["image"]["file_name"]
        assert found == ("img.0001" if how == "none" else "img.0001.png")


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_picture_without_extension_stays_apart_from_one_with(make_run: Any, tmp_path: Path, how: Any) -> None:
    """``a`` as ``a.png`` would lie over another: it keeps its name, and where readers need more it is refused."""
    run = read_run(str(make_run([(name, (number + 5, 8), []) for number, name in enumerate(("a", "a.png"))])))
    export_sa1b(run, str(tmp_path / "out"), options=FolderOptions(images=how))
    assert list_names(tmp_path / "out") == ["a", "a.json", "a.png", "a.png.json"]
    for name, height in (("a", 5), ("a.png", 6)):
        with PillowImage.open(tmp_path / "out" / name) as picture:
            assert picture.height == height
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["image"]["file_name"] == name
    for export, options in ((export_yolo, YoloOptions), (export_labelme, LabelmeOptions)):
        with pytest.raises(OptionsError, match=r"a and a\.png would share"):
            export(run, str(tmp_path / "no"), options=options())


@pytest.mark.parametrize(
    "names",
    [
        ("Cat/1.JPG", "cat/1.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("a.jpg", "A.png"),
        ("a.json/b.jpg", "A.jpg"),
        ("x", "X"),
    ],
)
def test_disks_that_do_not_tell_names_apart(make_run: Any, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]) -> None:
    """Where a and A are one file, as on most Macs, one would lie over the other."""
    run = read_run(str(make_run([])))
    rows = [{"uri": "", "file_name": name, "status": "ok"} for name in names]
    monkeypatch.setattr(names_of_files, "iterate_rows", lambda *_, **__: rows)
    how: Any = {"kind": "sa1b", "options": SelectionOptions(), "label_suffix": ".json", "has_pictures": True, "by_stem": False}
    assert not names_of_files.keep_labels_apart(run, **how, is_disk=True, tells_apart=True)
    with pytest.raises(OptionsError, match="do not fit into one folder"):
        names_of_files.keep_labels_apart(run, **how, is_disk=True, tells_apart=False)


def test_whether_a_disk_tells_names_apart_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first folder above that is there."""
    assert folders._tells_names_apart(tmp_path / "new" / "newer")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert not folders._tells_names_apart(tmp_path)


def test_a_picture_may_get_an_extension_that_another_has(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where X becomes X.jpg, and x.jpg is the same file; without labels nothing else would tell."""
    run = read_run(str(make_run([])))
    rows = [{"uri": "", "file_name": name, "status": "ok"} for name in ("X", "x.jpg")]
    monkeypatch.setattr(names_of_files, "iterate_rows", lambda *_, **__: rows)
    how: Any = {"options": SelectionOptions(), "label_suffix": None, "has_pictures": True, "by_stem": False, "is_disk": True}
    assert not names_of_files.keep_labels_apart(run, kind="fiftyone", **how)
    with pytest.raises(OptionsError, match="do not fit into one folder"):
        names_of_files.keep_labels_apart(run, kind="fiftyone", **how, tells_apart=False)


def test_a_folder_that_may_not_be_entered_is_no_traceback(run: Run, tmp_path: Path) -> None:
    """Nor is one whose name is longer than any; nothing is left there."""
    with pytest.raises((StorageError, OptionsError)):
        export_sa1b(run, str(tmp_path / ("x" * 300) / "out"), options=FolderOptions())
    with make_public_folder() as folder:
        (folder / "closed").mkdir(mode=0)
        with as_nobody():
            assert folders._tells_names_apart(folder / "closed" / "new")


def test_what_a_desktop_leaves_in_a_folder_is_nothing(run: Run, tmp_path: Path) -> None:
    """The first look at a new folder puts it there."""
    target = tmp_path / "out"
    target.mkdir()
    (target / ".DS_Store").write_bytes(b"x")
    export_sa1b(run, str(target), options=FolderOptions())
    assert (target / ".export.json").exists()


def test_names_of_millions_fit_into_memory(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred bytes an image."""
    run = read_run(str(make_run([])))
    num_images = 100_000
    names = ({"uri": "", "file_name": f"sub{n % 50}/{n}.jpg", "status": "ok"} for n in range(num_images))
    monkeypatch.setattr(names_of_files, "iterate_rows", lambda *_, **__: names)
    how: Any = {"label_suffix": ".json", "has_pictures": True, "by_stem": False, "is_disk": True}
    tracemalloc.start()
    stems = names_of_files.keep_labels_apart(run, kind="sa1b", options=SelectionOptions(), **how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not stems
    assert peak < 500 * num_images


@pytest.mark.parametrize("how", ["link", "copy", "none"])
@pytest.mark.parametrize(("export", "options"), [f[:2] for f in FORMATS if f[2]])
def test_pictures_come_as_asked(run: Run, tmp_path: Path, export: Any, options: Any, how: Any) -> None:
    """As a link, as a copy, or not at all; one that is gone is counted and its label written."""
    photo = tmp_path / "photos" / "0.png"
    photo.rename(tmp_path / "kept.png")
    assert export(run, str(tmp_path / "out"), options=options(images=how)).num_pictures_missing == (how != "none")
    (tmp_path / "kept.png").rename(photo)
    assert export(run, str(tmp_path / "out"), options=options(images=how)).num_pictures_missing == 0
    found = list((tmp_path / "out").rglob("*.png"))
    assert len(found) == (0 if how == "none" else 3)
    assert all(p.is_symlink() == (how == "link") for p in found)
    assert all(np.asarray(PillowImage.open(p)).shape[:2] == HW for p in found)


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EOPNOTSUPP])
def test_where_links_are_not_possible_pictures_are_copied(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """As on exFAT and some network disks: the pictures are there, and none is missing."""

    def refuse(path: Path, *_: Any) -> None:
        raise OSError(refusal, os.strerror(refusal), str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert export_labelme(run, str(tmp_path / "out"), options=LabelmeOptions()).num_pictures_missing == 0
    found = list((tmp_path / "out").rglob("*.png"))
    assert [p.is_symlink() for p in found] == [False] * 3


def test_the_split_is_a_folder(make_run: Any, random_masks: Any, tmp_path: Path) -> None:
    """train/ and val/ in every format, and data.yaml names both."""
    run = read_run(str(make_run([(f"{i}.png", HW, random_masks(HW, 1, seed=i)) for i in range(6)])))
    sides = []
    for export, options, _, _ in FORMATS:
        out = tmp_path / export.__name__
        report = export(run, str(out), options=options(val_fraction=0.5))
        labels = [p for p in out.rglob("*") if p.suffix == {export_yolo: ".txt", export_masks: ".png"}.get(export, ".json")]
        labels = [p for p in labels if p.name[0] != "."]
        sides.append({p.stem for p in labels if p.parent.name == "val"})
        assert len(labels) == 6
        assert len(sides[-1]) == report.num_val
    assert 0 < len(sides[0]) < 6
    assert all(side == sides[0] for side in sides)
    about = (tmp_path / "export_yolo" / "data.yaml").read_text()
    assert about == 'train: images/train\nval: images/val\nnames:\n  0: "object"\n'


def test_sa1b_has_exactly_its_fields(run: Run, tmp_path: Path, random_masks: Any) -> None:
    """The dataset's own keys, no more; masks exact, ids unique through all files, the name that of the file beside it."""
    export_sa1b(run, str(tmp_path / "out"), options=FolderOptions())
    records = [json.loads((tmp_path / "out" / name).read_text()) for name in ("a.json", "sub/50% é.json", "sub/b.c.json")]
    assert [set(record) for record in records] == [{"image", "annotations"}] * 3
    assert [tuple(record["image"].values()) for record in records] == [
        (1, 64, 48, "a.png"),
        (3, 64, 48, "50% é.png"),
        (4, 64, 48, "b.c.png"),
    ]
    assert set(records[0]["image"]) == {"image_id", "width", "height", "file_name"}
    annotations = [annotation for record in records for annotation in record["annotations"]]
    fields = {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"}
    assert all(set(annotation) == fields for annotation in annotations)
    assert [annotation["id"] for annotation in annotations] == list(range(1, 9))
    for annotation, mask in zip(records[0]["annotations"], random_masks(HW, 6), strict=True):
        np.testing.assert_array_equal(rle.counts_to_mask(annotation["segmentation"]["counts"], image_hw=HW), mask)


def test_yolo_lines_fill_to_the_mask(run: Run, tmp_path: Path, random_masks: Any) -> None:
    """One line a mask, fractions of the sides; filled as Ultralytics fills it, pieces and holes are the mask's to a pixel."""
    export_yolo(run, str(tmp_path / "out"), options=YoloOptions(max_polygon_loss=0.0))
    lines = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    masks = random_masks(HW, 6)
    assert len(lines) == len(masks)
    scale = 8  # OpenCV also fills what its border line touches; on a larger canvas that line is thin.
    for line, mask in zip(lines, masks, strict=True):
        kind, *values = line.split()
        corners = np.array(values, float).reshape(-1, 2)
        assert kind == "0"
        assert corners.min() >= 0
        assert corners.max() <= 1
        canvas = np.zeros((HW[0] * scale, HW[1] * scale), np.uint8)
        cv2.fillPoly(canvas, [(corners * [HW[1] * scale, HW[0] * scale]).round().astype(np.int32)], 1)
        middle = canvas[scale // 2 :: scale, scale // 2 :: scale].astype(bool)
        assert (middle != mask).mean() < 0.02


@pytest.mark.parametrize(
    ("picture", "labels"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("images/train/a.b/c.d.jpg", "labels/train/a.b/c.d.txt"),
        ("images/train/images/a.jpg", "images/train/labels/a.txt"),
        ("images/val/my images/a.jpg", "labels/val/my images/a.txt"),
    ],
)
def test_yolo_labels_stand_where_ultralytics_looks(picture: str, labels: str) -> None:
    """Its own rule, oddities and all."""
    assert name_labels(picture) == labels


def test_labelme_keeps_pieces_together(run: Run, make_run: Any, tmp_path: Path) -> None:
    """The pieces of a mask share its mask_id as group; sizes, name and the keys labelme asks for are there."""
    shutil.rmtree(run.output)
    mask = np.zeros(HW, bool)
    mask[2:9, 3:12] = mask[20:30, 40:50] = True
    run = read_run(str(make_run([("sub/a.png", HW, [~mask, mask])])))
    export_labelme(run, str(tmp_path / "out"), options=LabelmeOptions())
    record = json.loads((tmp_path / "out" / "sub" / "a.json").read_text())
    assert (record["imagePath"], record["imageHeight"], record["imageWidth"], record["imageData"]) == ("a.png", 48, 64, None)
    assert [(s["group_id"], s["shape_type"], s["label"]) for s in record["shapes"]] == [
        (0, "polygon", "object"),
        (1, "polygon", "object"),
        (1, "polygon", "object"),
    ]


def test_labels_corrected_in_labelme_stay(run: Run, tmp_path: Path) -> None:
    """The same export again leaves them alone and counts them; what was not touched, or is gone, is written: all, if asked."""
    out = tmp_path / "out"
    export_labelme(run, str(out), options=LabelmeOptions())
    label, other = out / "a.json", out / "sub" / "b.c.json"
    written = label.read_bytes()
    record = json.loads(written)
    record["shapes"] = [record["shapes"][0] | {"label": "cat"}]
    label.write_text(json.dumps(record, indent=2))
    corrected = label.read_bytes()
    other.unlink()
    assert export_labelme(run, str(out), options=LabelmeOptions()).num_labels_kept == 1
    assert label.read_bytes() == corrected
    assert other.exists()
    assert export_labelme(run, str(out), options=LabelmeOptions(overwrite=True)).num_labels_kept == 0
    assert label.read_bytes() == written


def test_ultralytics_cannot_write_through_a_link(make_run: Any, tmp_path: Path) -> None:
    """It writes a JPEG anew that does not end as one (its verify_image): such a picture is copied, the photo stays."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, trailer in (("a.jpg", b""), ("b.jpg", b"maker's trailer")):
        PillowImage.new("RGB", HW[::-1]).save(photos / name)
        (photos / name).write_bytes((photos / name).read_bytes() + trailer)
    names = ("a.jpg", "b.jpg")
    run = read_run(str(make_run([(name, HW, []) for name in names], uris=[(photos / name).as_uri() for name in names])))
    export_yolo(run, str(tmp_path / "out"), options=YoloOptions())
    placed = [tmp_path / "out" / "images" / "train" / name for name in names]
    assert [p.is_symlink() for p in placed] == [True, False]
    assert placed[1].read_bytes() == (photos / "b.jpg").read_bytes()


def test_pictures_that_ultralytics_passes_by_are_said(make_run: Any, tmp_path: Path, capsys: Any) -> None:
    """It lists files by their extensions, so images may be lost without a word."""
    run = make_run([(name, HW, []) for name in ("a.png", "b.gif", "c.JPG", "d.gif", "e.jfif")])
    assert cli.main(["yolo", str(run), str(tmp_path / "out")]) == 0
    assert "passes by pictures that end so: 2 .gif, 1 .jfif" in capsys.readouterr().out


def test_any_name_of_a_class_can_be_read(make_run: Any, tmp_path: Path) -> None:
    """By both of PyYAML's loaders: control characters, other ends of lines, rare characters, what looks like no text."""
    characters = "".join(map(chr, [*range(0x250), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF, 0x1F600, 0x10FFFF]))
    names = [characters, "no", "1", "null", "a: b # c", 'say "it"', "café 日本", "lone \ud83d"]
    asked = PromptsRecord(
        categories=tuple({"id": n, "name": name} for n, name in enumerate(names)), num_without_category=0, has_image_ids=False
    )
    prompted = replace(read_run(str(make_run([]))), prompts=asked)
    export_yolo(prompted, str(tmp_path / "out"), options=YoloOptions())
    text = (tmp_path / "out" / "data.yaml").read_text()
    for loader in (yaml.SafeLoader, yaml.CSafeLoader):
        read = yaml.load(text, loader)["names"]
        assert list(read.values()) == [*names[:-1], "lone ?"]
    assert "café 日本" in text


def test_a_side_on_which_no_image_fell_is_not_named(make_run: Any, tmp_path: Path) -> None:
    """Ultralytics refuses a data.yaml whose folder is not there: the other side stands for it."""
    run = read_run(str(make_run([(f"{i}.png", HW, []) for i in range(2)])))
    for fraction, side in ((1e-9, "train"), (1 - 1e-9, "val")):
        out = tmp_path / side
        export_yolo(run, str(out), options=YoloOptions(val_fraction=fraction))
        assert (out / "data.yaml").read_text().startswith(f"train: images/{side}\nval: images/{side}")


@pytest.mark.parametrize("how", ["link", "copy"])
def test_pictures_that_changed_since_are_said(make_run: Any, tmp_path: Path, how: Any, capsys: Any) -> None:
    """Their labels are of what was there when they were planned: by the size in bytes that the run holds."""
    run = make_run([("a.png", HW, []), ("b.png", HW, [])], sizes_bytes=[1, None])
    assert cli.main(["sa1b", str(run), str(tmp_path / "out"), "--images", how]) == 0
    assert "1 pictures have another size" in capsys.readouterr().out


def test_ids_lead_back_to_the_masks_table(run: Run, make_run: Any, tmp_path: Path) -> None:
    """16-bit gray, mask_id + 1, small masks on top, also after a filter; masks that nothing is seen of are counted."""
    shutil.rmtree(run.output)
    small, large = np.zeros(HW, bool), np.zeros(HW, bool)
    small[5:9, 5:9] = large[3:20, 3:20] = True
    run = read_run(str(make_run([("a.jpg", HW, [np.ones(HW, bool), small, large, small])])))
    report = export_masks(run, str(tmp_path / "out"), options=SelectionOptions(max_area_ratio=0.5))
    with PillowImage.open(tmp_path / "out" / "a.png") as picture:
        assert picture.mode.startswith("I;16")
        ids = np.asarray(picture)
    expected = np.zeros(HW, int)
    expected[large] = 3
    expected[small] = 4
    np.testing.assert_array_equal(ids, expected)
    assert (report.num_masks, report.num_hidden) == (3, 1)
