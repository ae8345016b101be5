"""Datumaro's coco_instances and segment_anything: ``check_datumaro.py FOLDER``."""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import datumaro
from datumaro import AnnotationType
from truth import Truth, say

truth = Truth(sys.argv[1])
consumer = f"datumaro {version('datumaro')}"


def check_masks(dataset: datumaro.Dataset, form: str) -> None:
    """Every image with all its masks, each exact."""
    names = {name.rpartition(".")[0]: name for name in truth.masks}
    worst, num_masks = 1.0, 0
    for item in dataset:
        masks = sorted((a for a in item.annotations if a.type == AnnotationType.mask), key=lambda a: a.id)
        num_masks += len(masks)
        worst = min(worst, truth.compare(names.pop(item.id), [mask.image.astype(bool) for mask in masks]))
    assert (names, num_masks, worst) == ({}, truth.num_masks, 1.0), (names, num_masks, worst)
    say(form, consumer, f"{num_masks} masks, all exact")


for form in ("rle", "uncompressed", "polygon"):
    with tempfile.TemporaryDirectory() as folder:  # Its layout: annotations/instances_<subset>.json, images/<subset>/.
        (Path(folder) / "annotations").mkdir()
        (Path(folder) / "images").mkdir()
        source = (truth.folder / f"coco_{form}.json").resolve()
        (Path(folder) / "annotations" / "instances_all.json").write_bytes(source.read_bytes())
        (Path(folder) / "images" / "all").symlink_to((truth.folder / "photos").resolve())
        dataset = datumaro.Dataset.import_from(folder, "coco_instances")
        if form != "polygon":
            check_masks(dataset, f"coco {form}")
            continue
        items = list(dataset)
        groups = {(item.id, a.group) for item in items for a in item.annotations if a.type == AnnotationType.polygon}
        assert (len(items), len(groups)) == (len(truth.images), truth.num_masks)
        say("coco polygon", consumer, f"{len(groups)} masks, the pieces of one in one group")
check_masks(datumaro.Dataset.import_from(str(truth.folder / "sa1b"), "segment_anything"), "sa1b")
