"""Runs, pictures and targets wherever they may lie: disks, archives, Parquet files, a bucket behind a real server."""

import json
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores
from PIL import Image as PillowImage

from export.cli import main
from export.fiftyone import FiftyoneOptions, export_fiftyone
from export.folders import FolderOptions, Pictures
from export.labelme import LabelmeOptions, export_labelme
from export.page import export_page
from export.preview import PreviewOptions, export_preview
from export.sa1b import export_sa1b
from export.yolo import YoloOptions, export_yolo
from labeler import storage
from labeler.errors import OptionsError
from labeler.runs import Run, read_run

HW = (40, 50)
KINDS = ("file", "tar", "parquet", "s3")

MakePlaced = Callable[[str], Run]


@pytest.fixture
def make_placed(make_run: Any, random_masks: Any, tmp_path: Path, request: pytest.FixtureRequest) -> MakePlaced:
    """``make_placed(kind)``: a run of three photos that were found in a folder, an archive, a Parquet file or a bucket."""

    def make(kind: str) -> Run:
        place = {"s3": "s3://photos/in", "tar": "a%20b.tar", "parquet": "part.parquet"}.get(kind, "")
        root = place if kind == "s3" else f"{tmp_path.as_uri()}/{place}"
        uris = {
            "file": [f"{root}photos/{n}.png" for n in range(3)],
            "tar": [f"tar://in/{n}.png::{root}" for n in range(3)],
            "parquet": [f"{root}#row={n}" for n in range(3)],
            "s3": [f"{root}/{n}.png" for n in range(3)],
        }[kind]
        names = [f"part.parquet/{n}" if kind == "parquet" else f"{n}.png" for n in range(3)]
        images = [(name, HW, random_masks(HW, 3, seed=n)) for n, name in enumerate(names)]
        output = make_run(images, uris=uris, selection={"image_column": "picture"})
        _place_photos(kind, sorted((tmp_path / "photos").iterdir()), tmp_path, request)
        return read_run(str(output))

    return make


def _place_photos(kind: str, photos: Sequence[Path], folder: Path, request: pytest.FixtureRequest) -> None:
    if kind == "tar":
        with tarfile.open(folder / "a b.tar", "w") as tar:
            for photo in photos:
                tar.add(photo, f"in/{photo.name}")
    if kind == "parquet":
        rows = [{"bytes": photo.read_bytes(), "path": None} for photo in photos]
        columns = {"thumbnail": [b"small"] * 3, "picture": rows}
        pq.write_table(pa.table(columns), folder / "part.parquet", row_group_size=2)
    if kind == "s3":
        for photo in photos:
            request.getfixturevalue("s3").upload_file(str(photo), "photos", f"in/{photo.name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["copy", "link"])
def test_pictures_are_put_beside_their_labels_from_anywhere(
    make_placed: MakePlaced, tmp_path: Path, kind: str, how: Pictures
) -> None:
    """The same bytes; what lies in a bucket or another file is copied whatever was asked; rows get their extension."""
    run = make_placed(kind)
    folder = "part.parquet/" if kind == "parquet" else ""
    report = export_sa1b(run, str(tmp_path / "sa1b"), options=FolderOptions(images=how))
    export_labelme(run, str(tmp_path / "labelme"), options=LabelmeOptions(images=how))
    assert report.num_pictures_missing == 0
    for number in range(3):
        original = (tmp_path / "photos" / f"{number}.png").read_bytes()
        for target, keys in (("sa1b", ("image", "file_name")), ("labelme", ("imagePath",))):
            value: Any = json.loads((tmp_path / target / f"{folder}{number}.json").read_text())
            for key in keys:
                value = value[key]
            picture = tmp_path / target / folder / value
            assert picture.read_bytes() == original
            assert picture.name == f"{number}.png"
            assert picture.is_symlink() == (kind == "file" and how == "link")


@pytest.mark.parametrize("how", ["copy", "none"])
def test_rows_of_a_parquet_file_keep_their_labels_apart(make_placed: MakePlaced, tmp_path: Path, how: Pictures) -> None:
    """Their names have no extension, and YOLO's readers cut at the last dot: three images, three files of labels."""
    export_yolo(make_placed("parquet"), str(tmp_path / "yolo"), options=YoloOptions(images=how))
    labels = sorted(p.relative_to(tmp_path / "yolo") for p in (tmp_path / "yolo" / "labels").rglob("*.txt"))
    assert [str(p) for p in labels] == [f"labels/train/part.parquet/{n}.txt" for n in range(3)]
    assert len(list((tmp_path / "yolo" / "images").rglob("*.png"))) == (3 if how == "copy" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_to_look_at_are_read_from_anywhere(make_placed: MakePlaced, tmp_path: Path, kind: str) -> None:
    """Overlays, and the page with every mask on it."""
    run = make_placed(kind)
    report = export_preview(run, str(tmp_path / "look"), options=PreviewOptions())
    assert (report.num_overlays, report.num_masks, report.num_unreadable) == (3, 9, 0)
    assert export_page(run, str(tmp_path / "page")).num_masks == 9


@pytest.mark.parametrize("kind", ["tar", "parquet", "s3"])
def test_a_picture_that_is_gone_is_counted(make_placed: MakePlaced, tmp_path: Path, kind: str) -> None:
    """With the archive, the Parquet file or the object; its label is written all the same."""
    run = make_placed(kind)
    for place in (tmp_path / "a b.tar", tmp_path / "part.parquet"):
        place.unlink(missing_ok=True)
    if kind == "s3":
        storage.delete("s3://photos/in/1.png")
    report = export_sa1b(run, str(tmp_path / "out"), options=FolderOptions(images="copy"))
    assert report.num_pictures_missing == (1 if kind == "s3" else 3)
    assert len([p for p in (tmp_path / "out").rglob("*.json") if p.name[0] != "."]) == 3


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("damage", ["other bytes", "damaged", "cut off"])
def test_a_damaged_archive_or_table_is_like_a_missing_one(
    make_placed: MakePlaced, tmp_path: Path, kind: str, damage: str
) -> None:
    """Labels are written and overlays say why they are none; neither export ends."""
    run = make_placed(kind)
    place = tmp_path / ("a b.tar" if kind == "tar" else "part.parquet")
    data = place.read_bytes()
    middle = len(data) // 3
    zeros = data[:4] + bytes(middle) + data[4 + middle :]
    place.write_bytes({"other bytes": b"thesis" * 100, "damaged": zeros, "cut off": data[:middle]}[damage])
    report = export_sa1b(run, str(tmp_path / "out"), options=FolderOptions(images="copy"))
    assert len([p for p in (tmp_path / "out").rglob("*.json") if p.name[0] != "."]) == 3
    preview = export_preview(run, str(tmp_path / "look"), options=PreviewOptions())
    assert preview.num_overlays + preview.num_unreadable == 3
    assert report.num_pictures_missing > 0 or kind == "tar"


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is put into FiftyOne's database, in the place of that package."""
    kept: list[Any] = []

    class Dataset:
        def add_samples(self, samples: Any, **_: Any) -> None:
            kept.extend(samples)

        def delete(self) -> None:
            kept.clear()

    kinds = dict.fromkeys(("Sample", "ImageMetadata", "Detections", "Detection"), SimpleNamespace)
    module = SimpleNamespace(Dataset=Dataset, dataset_exists=lambda name: False, **kinds)
    monkeypatch.setitem(sys.modules, "fiftyone", module)  # type: ignore[arg-type]
    return kept


def test_fiftyone_gets_copies_of_what_is_no_local_file(make_placed: MakePlaced, tmp_path: Path, samples: list[Any]) -> None:
    """In a folder of its own, and again; whatever lies in somebody else's stays."""
    run, folder = make_placed("tar"), tmp_path / "copies"
    for area in (0, 5):
        samples.clear()
        export_fiftyone(run, "x", options=FiftyoneOptions(pictures=str(folder), min_area=area))
        photos = [tmp_path / "photos" / f"{n}.png" for n in range(3)]
        assert [Path(sample.filepath).read_bytes() for sample in samples] == [photo.read_bytes() for photo in photos]
        assert {Path(sample.filepath).parent for sample in samples} == {folder}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "1.png").write_bytes(b"mine")
    with pytest.raises(OptionsError, match="not an empty folder"):
        export_fiftyone(run, "x", options=FiftyoneOptions(pictures=str(tmp_path / "own")))
    assert [p.read_bytes() for p in (tmp_path / "own").iterdir()] == [b"mine"]


@pytest.mark.parametrize("names", [["a.tar/../../0.png"], ["/tmp/0.png"], ["a.tar/0.png", "a.tar/0.png"]])
def test_fiftyones_copies_stay_in_their_folder(make_run: Any, tmp_path: Path, samples: list[Any], names: list[str]) -> None:
    """A name that leads out of it, or is another's, too, is exit 2 before anything is written."""
    run = read_run(str(make_run([(name, HW, []) for name in names], uris=[f"tar://0.png::{tmp_path.as_uri()}/a.tar"] * 2)))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "0.png", "0.png")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(OptionsError, match="--relative-to"):
        export_fiftyone(run, "x", options=FiftyoneOptions(pictures=str(tmp_path / "deep" / "copies")))
    assert set(tmp_path.rglob("*")) == before
    assert not samples


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("coco", ["--segmentation", "polygon", "--val-fraction", "0.5"]),
        ("yolo", ["--images", "copy"]),
        ("sa1b", []),
        ("labelme", []),
        ("masks", []),
        ("preview", []),
        ("preview", ["--html"]),
    ],
)
def test_from_bucket_to_bucket_is_the_same_as_on_the_disk(
    make_placed: MakePlaced, s3: Any, endpoint: str, tmp_path: Path, command: str, options: list[str], capsys: Any
) -> None:
    """Run, pictures and target behind a real server, opened with --storage-options: the very bytes of a local export."""
    run = make_placed("s3")
    stores.copy_folder(run.output, target="s3://labels/run")
    stored = [f"{key}={value}" for key, value in {**stores.S3_KEYS, "endpoint_url": endpoint}.items()]
    texts = [word for text in stored for word in ("--storage-options", text)]
    name = "out.json" if command == "coco" else "out"
    for output, target in ((run.output, str(tmp_path / "local" / name)), ("s3://labels/run", f"s3://labels/to/{name}")):
        assert main([command, output, target, *options, *texts]) == 0, capsys.readouterr().err
    local = {str(p.relative_to(tmp_path / "local")): p.read_bytes() for p in (tmp_path / "local").rglob("*") if p.is_file()}
    remote = {file.path: storage.read_bytes(file.uri) for file in storage.list_files("s3://labels/to")}
    assert local == remote
    assert len(local) >= 1
    said = capsys.readouterr()
    assert all(stores.S3_KEYS["secret"].encode() not in data for data in remote.values())
    assert stores.S3_KEYS["secret"] not in said.out + said.err
    if command == "yolo":
        with PillowImage.open(tmp_path / "local" / "out" / "images" / "train" / "0.png") as picture:
            assert picture.size == HW[::-1]


def test_options_of_a_store_are_checked_before_anything_is_read(make_placed: MakePlaced, tmp_path: Path, capsys: Any) -> None:
    """What is no KEY=VALUE is exit 2, and its value is not repeated."""
    run = make_placed("file")
    for command in ("coco", "yolo", "sa1b", "labelme", "masks", "preview"):
        assert main([command, run.output, str(tmp_path / "x"), "--storage-options", "hush-hush"]) == 2
        said = capsys.readouterr().err
        assert "KEY=VALUE" in said
        assert "hush" not in said
