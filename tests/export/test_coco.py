"""COCO export, judged by pycocotools' own loader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from export.coco import CocoOptions, export_coco
from export.runs import read_run
from labeler.errors import StorageError
from labeler.options import MaskOptions

HW = (48, 64)


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
    export_coco(read_run(str(make_run(photos))), target, options=CocoOptions(segmentation=kind))
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
    report = export_coco(read_run(str(make_run(photos))), tmp_path / "coco.json", options=CocoOptions())
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
    assert (report.num_images, report.num_masks, report.num_failed, report.num_filtered) == (6, 18, 1, 0)
    assert coco["annotations"][0]["predicted_iou"] == pytest.approx(1.02)
    assert coco["annotations"][0]["stability_score"] == pytest.approx(0.99)


def test_filters_leave_masks_out_and_count_them(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """A mask stays where it is at least as good and as large as asked; images stay even if all their masks go."""
    run = read_run(str(make_run(photos)))
    export_coco(run, tmp_path / "all.json", options=CocoOptions())
    everything = json.loads((tmp_path / "all.json").read_text())
    # The middle one's own values as thresholds: that mask must stay.
    middle = sorted(everything["annotations"], key=lambda a: a["area"])[9]
    options = CocoOptions(min_area=middle["area"], min_predicted_iou=round(middle["predicted_iou"], 6))
    report = export_coco(run, tmp_path / "some.json", options=options)
    some = json.loads((tmp_path / "some.json").read_text())
    expected = [
        {**a, "id": None}
        for a in everything["annotations"]
        if a["area"] >= middle["area"] and a["predicted_iou"] >= middle["predicted_iou"]
    ]
    assert [{**a, "id": None} for a in some["annotations"]] == expected
    assert {**middle, "id": None} in expected
    assert [a["id"] for a in some["annotations"]] == list(range(1, len(expected) + 1))
    assert report.num_filtered == 18 - len(expected) > 0
    assert some["images"] == everything["images"]


def test_the_same_run_gives_the_same_bytes(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """Exporting again, also to another place, writes equal files, and leaves nothing else behind."""
    run = read_run(str(make_run(photos)))
    targets = [tmp_path / "one" / "a.json", tmp_path / "two" / "b.json"]
    for target in targets:
        export_coco(run, target, options=CocoOptions())
    export_coco(run, targets[0], options=CocoOptions())
    assert targets[0].read_bytes() == targets[1].read_bytes()
    assert [p.name for p in targets[0].parent.iterdir()] == ["a.json"]


def test_a_run_without_masks_is_a_valid_file(make_run: Any, tmp_path: Path) -> None:
    """All images failed or empty: pycocotools loads the file, and it holds no annotations."""
    run = read_run(str(make_run([("a.jpg", None, []), ("b.jpg", (4, 4), [])])))
    export_coco(run, tmp_path / "coco.json", options=CocoOptions())
    coco = COCO(tmp_path / "coco.json")
    assert (coco.getImgIds(), coco.getAnnIds()) == ([2], [])


def test_only_committed_shards_count(make_run: Any, photos: list[Any], tmp_path: Path) -> None:
    """A masks part without its images part is not there yet."""
    output = make_run(photos, missing=(1,))
    (output / "images" / "part-0000002.parquet").unlink()
    run = read_run(str(output))
    assert (run.shards, run.num_missing_shards) == ((0, 3), 2)
    report = export_coco(run, tmp_path / "coco.json", options=CocoOptions())
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
        export_coco(read_run(str(output)), target, options=CocoOptions())
    assert target.read_text() == "yesterday's"
    assert [p.name for p in target.parent.iterdir()] == ["coco.json"]


@pytest.mark.parametrize(("exif", "orientation", "expected"), [("apply", 6, 1), ("ignore", 6, 0), ("apply", 1, 0)])
def test_turned_photos_are_counted(make_run: Any, tmp_path: Path, exif: Any, orientation: int, expected: int) -> None:
    """Where masks fit the upright photo and not the stored pixels, the report says for how many images."""
    run = read_run(str(make_run([("a.jpg", (4, 6), [])], orientation=orientation, options=MaskOptions(exif=exif))))
    assert export_coco(run, tmp_path / "coco.json", options=CocoOptions()).num_turned == expected
