"""COCO export, judged by pycocotools' own loader."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from export import cli, coco
from export.coco import CocoOptions, export_coco
from export.selection import Report
from labeler.errors import OptionsError, StorageError
from labeler.options import MaskOptions
from labeler.runs import Run, read_run

HW = (48, 64)


def export(run: Run, target: Path, **options: Any) -> Report:
    report, _ = export_coco(run, str(target), options=CocoOptions(**options))
    return report


@pytest.fixture
def photos(random_masks: Callable[..., Any]) -> list[Any]:
    """Four shards of two: masks, a failed image, one without masks, odd names, the last shard half full."""
    return [
        ("a.jpg", HW, random_masks(HW, 7, seed=1)),
        ("broken.jpg", None, []),
        ("empty.jpg", (5, 9), []),
        ("sub/50%25 off.jpg", HW, random_masks(HW, 3, seed=2)),
        ("caf%E9.jpg", HW, random_masks(HW, 2, seed=3)),
        ("café 日本.jpg", (1, 3), [np.array([[True, False, True]])]),
        ("zebra.png", (100, 40), random_masks((100, 40), 5, seed=4)),
    ]


@pytest.mark.parametrize("kind", ["rle", "rle-uncompressed"])
def test_pycocotools_loads_it_and_every_mask_is_the_mask(make_run: Any, photos: list[Any], tmp_path: Path, kind: Any) -> None:
    """Both kinds of run lengths: annToMask gives the masks, bbox and area are pycocotools' own, nothing is a crowd."""
    target = tmp_path / "coco.json"
    export(read_run(str(make_run(photos))), target, segmentation=kind)
    coco = COCO(target)
    for number, (_, image_hw, masks) in enumerate(photos, start=1):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert len(annotations) == len(masks)
        for annotation, mask in zip(annotations, masks, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
            assert annotation["iscrowd"] == 0
            assert annotation["segmentation"]["size"] == list(image_hw)
            assert isinstance(annotation["segmentation"]["counts"], str if kind == "rle" else list)


def test_ids_names_and_sizes_are_the_runs(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """Image ids are kept, failed images left out, empty ones kept; annotations count from 1; names are the disk's again."""
    report = export(read_run(str(make_run(photos))), tmp_path / "coco.json")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [(i["id"], i["file_name"], i["height"], i["width"]) for i in coco["images"]] == [
        (1, "a.jpg", 48, 64),
        (3, "empty.jpg", 5, 9),
        (4, "sub/50% off.jpg", 48, 64),
        (5, "caf\udce9.jpg", 48, 64),
        (6, "café 日本.jpg", 1, 3),
        (7, "zebra.png", 100, 40),
    ]
    assert [a["id"] for a in coco["annotations"]] == list(range(1, 19))
    assert [a["image_id"] for a in coco["annotations"]] == [1] * 7 + [4] * 3 + [5] * 2 + [6] + [7] * 5
    assert coco["categories"] == [{"id": 1, "name": "object", "supercategory": "object"}]
    assert {a["category_id"] for a in coco["annotations"]} == {1}
    assert (report.num_images, report.num_masks, report.num_failed, report.filtered.total()) == (6, 18, 1, 0)
    assert coco["annotations"][0]["predicted_iou"] == pytest.approx(1.02)
    assert coco["annotations"][0]["stability_score"] == pytest.approx(0.99)


def test_filters_leave_masks_out_and_count_them(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """A mask stays where it is at least as good and as large as asked; images stay even if all their masks go."""
    run = read_run(str(make_run(photos)))
    export(run, tmp_path / "all.json")
    everything = json.loads((tmp_path / "all.json").read_text())
    # The middle one's own values as thresholds: that mask must stay.
    middle = sorted(everything["annotations"], key=lambda a: a["area"])[9]
    options = {"min_area": middle["area"], "min_predicted_iou": round(middle["predicted_iou"], 6)}
    report = export(run, tmp_path / "some.json", **options)
    some = json.loads((tmp_path / "some.json").read_text())
    expected = [
        {**a, "id": None}
        for a in everything["annotations"]
        if a["area"] >= middle["area"] and a["predicted_iou"] >= middle["predicted_iou"]
    ]
    assert [{**a, "id": None} for a in some["annotations"]] == expected
    assert {**middle, "id": None} in expected
    assert [a["id"] for a in some["annotations"]] == list(range(1, len(expected) + 1))
    assert report.filtered.total() == 18 - len(expected) > 0
    assert some["images"] == everything["images"]


def test_the_same_run_gives_the_same_bytes(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """Exporting again, also to another place, writes equal files, and leaves nothing else behind."""
    run = read_run(str(make_run(photos)))
    targets = [tmp_path / "one" / "a.json", tmp_path / "two" / "b.json"]
    for target in targets:
        export(run, target)
    export(run, targets[0])
    assert targets[0].read_bytes() == targets[1].read_bytes()
    assert [p.name for p in targets[0].parent.iterdir()] == ["a.json"]


def test_a_run_without_masks_is_a_valid_file(make_run: Any, tmp_path: Path) -> None:
    """All images failed or empty: pycocotools loads the file, and it holds no annotations."""
    run = read_run(str(make_run([("a.jpg", None, []), ("b.jpg", (4, 4), [])])))
    export(run, tmp_path / "coco.json")
    coco = COCO(tmp_path / "coco.json")
    assert (coco.getImgIds(), coco.getAnnIds()) == ([2], [])


def test_only_committed_shards_count(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """A masks part without its images part is not there yet."""
    output = make_run(photos, missing=(1,))
    (output / "images" / "part-0000002.parquet").unlink()
    run = read_run(str(output))
    assert (run.shards, run.num_missing_shards) == ((0, 3), 2)
    report = export(run, tmp_path / "coco.json")
    assert (report.num_images, report.num_masks) == (2, 12)


def test_a_damaged_part_leaves_no_file(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """The error names the part; what was there before stays whole, and no half file lies around."""
    output = make_run(photos)
    part = output / "masks" / "part-0000003.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    target = tmp_path / "out" / "coco.json"
    target.parent.mkdir()
    target.write_text("yesterday's")
    with pytest.raises(StorageError, match="part-0000003"):
        export(read_run(str(output)), target)
    assert target.read_text() == "yesterday's"
    assert [p.name for p in target.parent.iterdir()] == ["coco.json"]


@pytest.mark.parametrize(("exif", "orientation", "expected"), [("apply", 6, 1), ("ignore", 6, 1), ("apply", 1, 0)])
def test_turned_photos_are_counted(make_run: Any, tmp_path: Path, exif: Any, orientation: int, expected: int) -> None:
    """Where the upright photo and the stored pixels differ, the report says for how many images."""
    run = read_run(str(make_run([("a.jpg", (4, 6), [])], orientation=orientation, options=MaskOptions(exif=exif))))
    assert export(run, tmp_path / "coco.json").num_oriented == expected


def test_polygons_hold_the_masks(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """Exact where no loss is allowed; else within the bound, measured by pycocotools. bbox and area stay the mask's."""
    run = read_run(str(make_run(photos)))
    for max_loss in (0.0, 0.1):
        report = export(run, tmp_path / "coco.json", segmentation="polygon", max_polygon_loss=max_loss)
        coco = COCO(tmp_path / "coco.json")
        losses = []
        for number, (_, _image_hw, masks) in enumerate(photos, start=1):
            for annotation, mask in zip(coco.loadAnns(coco.getAnnIds(imgIds=[number])), masks, strict=True):
                assert isinstance(annotation["segmentation"], list)
                assert annotation["area"] == mask.sum()
                filled = coco.annToMask(annotation).astype(bool)
                losses.append(1 - (filled & mask).sum() / (filled | mask).sum())
        assert max(losses) <= max_loss
        assert report.worst_polygon_loss == pytest.approx(max(losses), abs=1.01e-4)
        assert report.median_polygon_loss == pytest.approx(np.median(losses), abs=5e-3)


@pytest.mark.parametrize("fallback", ["rle", "drop"])
def test_what_no_polygon_carries_is_kept_or_dropped(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: Any
) -> None:
    """As asked, and counted; ids stay without a gap."""
    monkeypatch.setattr("export.polygons.TOLERANCES_PX", (3.0,))
    tatters, square = np.eye(9, dtype=bool)[::-1] & True, np.ones((9, 9), bool)
    run = read_run(str(make_run([("a.jpg", (9, 9), [tatters, square])])))
    report = export(run, tmp_path / "coco.json", segmentation="polygon", polygon_fallback=fallback)
    annotations = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert [(a["id"], type(a["segmentation"])) for a in annotations] == (
        [(1, dict), (2, list)] if fallback == "rle" else [(1, list)]
    )
    assert (report.num_rle, report.filtered["max_polygon_loss"]) == ((1, 0) if fallback == "rle" else (0, 1))
    assert report.num_masks == len(annotations)


def test_a_split_in_files_is_the_whole(make_run: Any, random_masks: Any, tmp_path: Path) -> None:
    """Every image and mask once, ids unique through all files, each file whole by itself and of no more than N images."""
    run = read_run(str(make_run([(f"{i}.jpg", HW, random_masks(HW, 3, seed=i)) for i in range(9)])))
    options = CocoOptions(val_fraction=0.4, images_per_file=2)
    report, names = export_coco(run, str(tmp_path / "some" / "coco.json"), options=options)
    assert sorted(Path(name).name for name in names) == sorted(p.name for p in (tmp_path / "some").iterdir())
    image_ids, annotation_ids, num_val = [], [], 0
    for name in names:
        coco = COCO(name)
        assert 1 <= len(coco.imgs) <= 2
        assert {a["image_id"] for a in coco.anns.values()} == set(coco.imgs)
        image_ids += coco.imgs
        annotation_ids += coco.anns
        num_val += len(coco.imgs) if "coco_val-0" in name else 0
    assert sorted(image_ids) == list(range(1, 10))
    assert sorted(annotation_ids) == list(range(1, 28))
    assert 0 < num_val == report.num_val < 9


def test_files_of_a_larger_export_are_said(make_run: Any, tmp_path: Path) -> None:
    """They are not this export's, and a pattern would find them."""
    run = read_run(str(make_run([(f"{i}.jpg", HW, []) for i in range(6)])))
    for images_per_file, num_stale in ((1, 0), (2, 3), (6, 5)):
        report, _ = export_coco(run, str(tmp_path / "coco.json"), options=CocoOptions(images_per_file=images_per_file))
        assert report.num_stale_files == num_stale


def test_a_side_without_images_is_a_valid_file(make_run: Any, tmp_path: Path) -> None:
    """A script that opens both finds both."""
    run = read_run(str(make_run([("a.jpg", HW, [])])))
    _, names = export_coco(run, str(tmp_path / "coco.json"), options=CocoOptions(val_fraction=0.01))
    assert [len(COCO(name).imgs) for name in names] == [1, 0]


@pytest.mark.parametrize("spool_bytes", [1, 1 << 24])
def test_a_full_temporary_folder_is_said(
    make_run: Any, photos: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, spool_bytes: int
) -> None:
    """By its name and in one line, with no file left; what fits into memory needs no such folder."""
    monkeypatch.setattr(coco, "_SPOOL_BYTES", spool_bytes)
    monkeypatch.setattr(tempfile, "tempdir", "/somewhere/tmp")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b"))  # noqa: SIM115
    run = make_run(photos)
    if spool_bytes > 1:
        assert cli.main(["coco", str(run), str(tmp_path / "coco.json")]) == 0
        return
    assert cli.main(["coco", str(run), str(tmp_path / "coco.json")]) == 1
    said = capsys.readouterr().err
    assert "/somewhere/tmp can't be used: No space left on device" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*coco*"))
    assert not list(tmp_path.glob(".*"))


def test_a_store_is_a_target(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """Through fsspec the same bytes as locally; and after a damaged part, what was there before."""
    output = make_run(photos)
    run = read_run(str(output))
    export(run, tmp_path / "coco.json")
    target = f"local://{tmp_path}/exports/coco.json"
    for _ in range(2):
        export_coco(run, target, options=CocoOptions())
    written = tmp_path / "exports" / "coco.json"
    assert written.read_bytes() == (tmp_path / "coco.json").read_bytes()
    part = output / "masks" / "part-0000003.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(StorageError, match="part-0000003"):
        export_coco(run, target, options=CocoOptions(min_area=1))
    assert written.read_bytes() == (tmp_path / "coco.json").read_bytes()
    assert list(written.parent.iterdir()) == [written]


def test_cocoeval_against_itself_is_perfect(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """The export as ground truth and, with predicted IoU as score, as result: AP 1.0."""
    export(read_run(str(make_run(photos))), tmp_path / "coco.json")
    truth = COCO(tmp_path / "coco.json")
    found = truth.loadRes([{**a, "score": a["predicted_iou"]} for a in truth.dataset["annotations"]])
    judge = COCOeval(truth, found, "segm")
    judge.params.maxDets = [1, 10, 1000]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., -1]  # With room for all masks of an image.
    assert precision[precision > -1].min() == pytest.approx(1.0)


COCO_INPUT = {"input": "file:///data/instances.json"}


@pytest.mark.parametrize(
    ("more", "options", "expected"),
    [
        (COCO_INPUT, {}, [139, 7, 10**12]),
        (COCO_INPUT, {"image_ids": "run"}, [1, 3, 4]),
        ({"input": "file:///data/list.csv"}, {}, [1, 3, 4]),
        ({"input": "file:///data/list.csv"}, {"image_ids": "input"}, [139, 7, 10**12]),
    ],
)
def test_images_of_a_coco_input_keep_their_ids(
    make_run: Any, random_masks: Any, tmp_path: Path, more: Any, options: Any, expected: list[int]
) -> None:
    """So that the export lies beside the file it came from; a list's ids where they are asked for."""
    images = [("a.jpg", HW, random_masks(HW, 2)), ("b.jpg", None, []), ("c.jpg", HW, []), ("d.jpg", HW, random_masks(HW, 1))]
    run = read_run(str(make_run(images, source_ids=["139", "139", "7", "1000000000000"], **more)))
    export(run, tmp_path / "coco.json", **options)
    coco = COCO(tmp_path / "coco.json")
    assert list(coco.imgs) == expected
    assert [a["image_id"] for a in coco.anns.values()] == [expected[0]] * 2 + [expected[2]]


@pytest.mark.parametrize(("ids", "words"), [(["5", "5"], "several images have the id 5"), (["x1", None], "has the id x1")])
def test_ids_that_coco_cannot_hold_are_refused(make_run: Any, tmp_path: Path, ids: list[Any], words: str) -> None:
    """Before anything is written, and with the way out."""
    output = make_run([("a.jpg", HW, []), ("b.jpg", HW, [])], source_ids=ids, **COCO_INPUT)
    with pytest.raises(OptionsError, match=f"{words}.*--image-ids run"):
        export(read_run(str(output)), tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()


@pytest.mark.parametrize("kind", ["rle", "polygon"])
def test_torchvision_loads_it(make_run: Any, photos: list[Any], tmp_path: Path, kind: Any) -> None:
    """CocoDetection gives each picture with its annotations; polygons pass the references' own conversion to masks."""
    datasets = pytest.importorskip("torchvision.datasets")
    output = make_run([(f"{i}.png", *rest) for i, (_, *rest) in enumerate(photos)])
    export(read_run(str(output)), tmp_path / "coco.json", segmentation=kind, max_polygon_loss=0.0)
    dataset = datasets.CocoDetection(tmp_path / "photos", tmp_path / "coco.json")
    assert len(dataset) == 6
    for (picture, annotations), (_, image_hw, masks) in zip(dataset, [p for p in photos if p[1]], strict=True):
        assert picture.size == image_hw[::-1]
        assert len(annotations) == len(masks)
        for annotation, mask in zip(annotations, masks, strict=True):
            if kind == "polygon":  # convert_coco_poly_to_mask of torchvision's references/detection.
                rles = coco_mask.frPyObjects(annotation["segmentation"], *image_hw)
                np.testing.assert_array_equal(coco_mask.decode(rles).any(axis=2), mask)
