"""Whole FiftyOne datasets, of COCO files and by ``export fiftyone``: ``check_fiftyone.py FOLDER RUN``.

In a database of its own. Needs in FiftyOne's environment what ``export`` imports.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["FIFTYONE_DO_NOT_TRACK"] = "1"
os.environ["HOME"] = os.environ["FIFTYONE_DATABASE_DIR"] = tempfile.mkdtemp()

import fiftyone
import numpy as np
from fiftyone import types
from make_exports import FILTERS
from truth import Truth, say

from export.cli import main

fiftyone.config.show_progress_bars = False
truth = Truth(sys.argv[1])
photos = truth.folder / "photos"


def check(dataset: fiftyone.Dataset, field: str, form: str, *, lowest: float) -> None:
    """Every picture with all its masks, in order, read back from the database."""
    worst, num_masks, names = 1.0, 0, set()
    for sample in dataset:
        name = sample["file_name"] if "file_name" in sample else str(Path(sample.filepath).relative_to(photos))
        image = next(image for image in truth.images.values() if image["file_name"] == name)
        assert Path(sample.filepath).exists()
        found = []
        for one in sample[field].detections if sample[field] else []:
            assert one.label == "object"
            assert one.predicted_iou is not None
            x, y = round(one.bounding_box[0] * image["width"]), round(one.bounding_box[1] * image["height"])
            mask = np.zeros((image["height"], image["width"]), bool)
            mask[y : y + one.mask.shape[0], x : x + one.mask.shape[1]] = one.mask
            found.append(mask)
        names.add(name)
        num_masks += len(found)
        worst = min(worst, truth.compare(name, found))
    assert (names, num_masks) == (set(truth.masks), truth.num_masks), (form, len(names), num_masks)
    assert worst >= lowest, (form, worst)
    say(form, f"fiftyone {fiftyone.__version__}", f"{len(names)} samples, {num_masks} masks, lowest IoU {worst:.3f}")


for form in ("rle", "uncompressed", "polygon"):
    dataset = fiftyone.Dataset.from_dir(
        dataset_type=types.COCODetectionDataset,
        data_path=str(photos),
        labels_path=str(truth.folder / f"coco_{form}.json"),
        label_types="segmentations",
        label_field="masks",
        extra_attrs=True,
    )
    check(dataset, "masks", f"coco {form}", lowest=0.9 if form == "polygon" else 1.0)
for again in ([], ["--overwrite"]):
    assert main(["fiftyone", sys.argv[2], "labels", *FILTERS, *again]) == 0
assert main(["fiftyone", sys.argv[2], "labels", *FILTERS]) == 2  # It is there.
dataset = fiftyone.load_dataset("labels")
assert dataset.persistent
check(dataset, "masks", "fiftyone", lowest=1.0)
