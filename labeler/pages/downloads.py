"""The masks of one photo as a file to take home. Must not know pages: masks in, bytes out."""

import json

import numpy as np

from labeler import rle
from labeler.draw import paint_numbers
from labeler.images import encode_png
from labeler.tables import masks_to_batch
from labeler.types import MaskSet


def masks_to_png(masks: MaskSet, *, one: bool) -> bytes:
    """One mask in white on black; several by their numbers from 1 on, in 16 bits, small ones on top."""
    if one:
        mask = rle.runs_to_mask(masks.runs(0), image_hw=masks.image_hw)
        return encode_png(np.where(mask, np.uint8(255), np.uint8(0)))
    runs = [masks.runs(i) for i in range(len(masks))]
    return encode_png((paint_numbers(runs, image_hw=masks.image_hw, picture_hw=masks.image_hw) + 1).astype(np.uint16))


def masks_to_coco(masks: MaskSet, *, file_name: str) -> bytes:
    """A COCO file of one image."""
    kept = ("segmentation", "bbox", "area", "predicted_iou", "stability_score")
    rows = masks_to_batch(masks, image_id=1, file_name=file_name).to_pylist()
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, **{name: row[name] for name in kept}}
        for number, row in enumerate(rows, start=1)
    ]
    height, width = masks.image_hw
    record = {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
        "annotations": annotations,
    }
    return json.dumps(record, allow_nan=False).encode("ascii")
