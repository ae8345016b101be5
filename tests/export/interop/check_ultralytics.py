"""Ultralytics' YOLO segmentation reader, without weights, and its converter: ``check_ultralytics.py FOLDER``."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["YOLO_OFFLINE"] = "true"

import cv2
import numpy as np
import ultralytics
from truth import Truth, say
from ultralytics.data.converter import convert_coco
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

truth = Truth(sys.argv[1])
data = check_det_dataset(str(truth.folder / "yolo" / "data.yaml"), autodownload=False)
assert data["names"] == {0: "object"}
num_images = num_masks = 0
ious = []
for split in ("train", "val"):
    dataset = YOLODataset(img_path=data[split], data=data, task="segment", augment=False, imgsz=640)
    for label in dataset.labels:
        name = label["im_file"].rpartition(f"/images/{split}/")[2]
        height, width = label["shape"]
        true = truth.decode(name)
        assert len(true) == len(label["segments"]), name
        num_images += 1
        num_masks += len(true)
        for mask, corners in zip(true, label["segments"], strict=True):
            filled = np.zeros((height, width), np.uint8)
            cv2.fillPoly(filled, [(corners * (width, height)).astype(np.int32)], 1)  # As its polygon2mask does.
            ious.append((filled & mask).sum() / (filled | mask).sum())
assert (num_images, num_masks) == (len(truth.images), truth.num_masks)
assert np.median(ious) > 0.93, np.median(ious)
assert dataset[0]["masks"].shape[-2:] == (160, 160)
words = f"{num_masks} masks, median IoU {np.median(ious):.3f}, lowest {min(ious):.3f}"
say("yolo", f"ultralytics {ultralytics.__version__}", words)

for form in ("polygon", "rle", "uncompressed"):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "annotations"
        source.mkdir()
        (source / "all.json").write_bytes((truth.folder / f"coco_{form}.json").read_bytes())
        convert_coco(str(source), save_dir=f"{folder}/converted", use_segments=True, cls91to80=False)
        lines = [line for path in Path(folder, "converted").rglob("*.txt") for line in path.read_text().splitlines()]
    num_masks = sum(len(line.split()) > 5 for line in lines)
    # Of run lengths it takes the outer contours through pixel centres: holes are filled, and lines of pixels are lost.
    assert num_masks == truth.num_masks if form == "polygon" else num_masks >= 0.97 * truth.num_masks, (form, num_masks)
    say(f"coco {form}", f"ultralytics {ultralytics.__version__}", f"convert_coco: {num_masks} of {truth.num_masks} masks")
