"""Masks as COCO run lengths: runs <-> compressed counts <-> pixels. Must not know where masks come from.

A mask of H x W pixels is read column by column (down the first column, then the second ...). Its run lengths are the
lengths of the stretches of equal pixels met on the way, background first::

    . # #        columns: .#. ##. #..
    # # .        read as: . # . # # . # . .
    . . .        runs:    1 1 1 2 1 1 2      (background, mask, background, ...)

The first run is 0 where the very first pixel belongs to the mask. Runs add up to H * W. In files COCO packs them into a
string, the *counts*: from the fourth run on, each is stored as its difference to the one two before; a number takes
5 bits a character (lowest first, bit 5: more follow, last character's bit 4: negative), written as ``chr(48 + bits)``.

Source: pycocotools' ``maskApi.c``, which stays the judge: it makes the counts, boxes and areas of every file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from labeler.types import Bool, Float64, Int64, Size, UInt8, UInt32


def runs_to_counts(runs: UInt32, *, image_hw: Size) -> str:
    """Run lengths -> COCO's compressed counts."""
    rle = coco_mask.frPyObjects({"size": list(image_hw), "counts": runs.tolist()}, *image_hw)
    counts: bytes = rle["counts"]
    return counts.decode("ascii")


def counts_to_runs(counts: str) -> UInt32:
    """COCO's compressed counts -> run lengths. Raises ValueError where they break off or hold other characters."""
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.uint32)
    if (codes < 0).any() or (codes > 0x3F).any() or codes[-1] & 0x20:
        raise ValueError(f"no compressed counts: {counts[:20]!r}")
    last = (codes & 0x20) == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[last] & 0x10) != 0
    values -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])  # Mask runs are differences from the first of them on,
    values[2::2] = np.cumsum(values[2::2])  # background runs from the second: the first run of all stands alone.
    return values.astype(np.uint32)


def counts_to_mask(counts: str, *, image_hw: Size) -> Bool:
    """COCO's compressed counts -> (H, W) bool."""
    pixels: UInt8 = coco_mask.decode(_coco_rle(counts, image_hw))
    return pixels.astype(np.bool_)


def runs_to_mask(runs: UInt32, *, image_hw: Size) -> Bool:
    """Run lengths -> (H, W) bool."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(image_hw[::-1]).T


def runs_to_crop(runs: UInt32, *, image_hw: Size, box_xywh: tuple[int, int, int, int]) -> Bool:
    """Run lengths -> the (h, w) bool of a box alone, without the whole mask ever being there."""
    (height, _), (x, y, w, h) = image_hw, box_xywh
    ends = np.clip(np.cumsum(runs, dtype=np.int64), x * height, (x + w) * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(ends, prepend=x * height)).reshape(w, height)
    crop: Bool = columns[:, y : y + h].T
    return crop


def mask_to_runs(mask: Bool) -> UInt32:
    """(H, W) bool -> run lengths."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0] if flat.size and flat[0] else [], [0], changes, [flat.size]])
    return np.diff(edges).astype(np.uint32)


def measure_boxes_xywh(counts: Sequence[str], *, image_hw: Size) -> Float64:
    """pycocotools' ``toBbox`` of each mask: (N, 4) float64, x, y, width, height in pixels."""
    rles = [_coco_rle(c, image_hw) for c in counts]
    return np.asarray(coco_mask.toBbox(rles), np.float64).reshape(-1, 4)


def measure_areas(counts: Sequence[str], *, image_hw: Size) -> Int64:
    """pycocotools' ``area`` of each mask: (N,) int64, pixels."""
    # One by one: pycocotools 2.0.11's ``area`` of a list keeps its length in a uint8, which fails from 256 masks on.
    return np.array([coco_mask.area(_coco_rle(c, image_hw)) for c in counts], np.int64)


def measure_overlaps(counts: Sequence[str], *, image_hw: Size) -> Float64:
    """pycocotools' IoU of every mask with every other: (N, N) float64."""
    rles = [_coco_rle(c, image_hw) for c in counts]
    return np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)), np.float64).reshape(len(rles), len(rles))


def measure_containment(counts: Sequence[str], *, image_hw: Size) -> Float64:
    """The part of mask i that lies within mask j: (N, N) float64."""
    rles = [_coco_rle(c, image_hw) for c in counts]
    # Against a "crowd" pycocotools divides by the first mask's own area.
    return np.asarray(coco_mask.iou(rles, rles, [1] * len(rles)), np.float64).reshape(len(rles), len(rles))


def polygons_to_counts(polygons: Sequence[Sequence[float]], *, image_hw: Size) -> str:
    """COCO polygons (x0, y0, x1, y1 ...), each filled and all united, as every reader that uses pycocotools sees them."""
    merged = coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], *image_hw))
    counts: bytes = merged["counts"]
    return counts.decode("ascii")


def measure_iou(counts: str, other: str, *, image_hw: Size) -> float:
    """pycocotools' IoU of two masks."""
    return float(coco_mask.iou([_coco_rle(counts, image_hw)], [_coco_rle(other, image_hw)], [0])[0, 0])


def _coco_rle(counts: str, image_hw: Size) -> dict[str, Any]:
    return {"size": list(image_hw), "counts": counts.encode("ascii")}
