"""Where to look and which boxes to keep: crops, point grids, resize sizes, box tests, non-maximum suppression.

Plain arithmetic on numpy arrays, after ``segment_anything/utils/amg.py`` and ``transforms.py``; must not know models,
pixels or masks.
"""

from math import ceil
from typing import NamedTuple

import numpy as np

from labeler.types import Bool, Box, Float32, Float64, Int64, Size

CROP_EDGE_TOLERANCE_PX = 20.0
"""A box side this near its crop's side counts as cut off by the crop (the reference's ``atol``)."""


class Crop(NamedTuple):
    """A part of the image that is labeled like an image."""

    box_xyxy: Box
    layer: int


def make_crops(image_hw: Size, *, n_layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then layer by layer 2^i x 2^i overlapping crops: x outer, y inner.

    Where the image is too small for a layer, crops without a pixel are left out (the reference fails there).
    """
    height, width = image_hw
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, n_layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(image_hw) * (2 / n))
        crop_w, crop_h = (ceil((overlap * (n - 1) + side) / n) for side in (width, height))
        for column in range(n):
            for row in range(n):
                x0, y0 = (crop_w - overlap) * column, (crop_h - overlap) * row
                x1, y1 = min(x0 + crop_w, width), min(y0 + crop_h, height)
                if x0 < x1 and y0 < y1:
                    crops.append(Crop((x0, y0, x1, y1), layer))
    return crops


def make_point_grid(points_per_side: int) -> Float64:
    """(n * n, 2) points xy, evenly spaced in 0-1 and half a step from the edges, row by row."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    return np.stack([np.tile(side, points_per_side), np.repeat(side, points_per_side)], axis=-1)


def make_layer_grids(points_per_side: int, *, n_layers: int, downscale_factor: int) -> list[Float64]:
    """One grid a crop layer, layer i with ``points_per_side / downscale_factor^i`` points a side, at least one."""
    return [make_point_grid(max(1, int(points_per_side / downscale_factor**i))) for i in range(n_layers + 1)]


def fit_in_square(image_hw: Size, *, side: int) -> Size:
    """Height and width after resizing the longer side to ``side``; never below one pixel (the reference rounds to 0)."""
    height, width = image_hw
    scale = side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def points_to_input(points_xy: Float64, *, crop_hw: Size, input_hw: Size) -> Float64:
    """Points (..., 2) in pixels of a crop -> pixels of the resized crop the model sees."""
    scale: Float64 = np.array(input_hw[::-1]) / np.array(crop_hw[::-1])
    return points_xy * scale


def boxes_touch_crop_edge(boxes_xyxy: Int64, *, crop_xyxy: Box, image_hw: Size) -> Bool:
    """(N,) true where a box side lies within 20 px of the crop's side, but not of the same side of the image."""
    height, width = image_hw
    boxes = boxes_xyxy.astype(np.float32)
    near_crop = np.abs(boxes - np.array(crop_xyxy, np.float32)) <= CROP_EDGE_TOLERANCE_PX
    near_image = np.abs(boxes - np.array([0, 0, width, height], np.float32)) <= CROP_EDGE_TOLERANCE_PX
    touches: Bool = np.any(near_crop & ~near_image, axis=1)
    return touches


def keep_best_boxes(boxes_xyxy: Int64, *, scores: Float32, iou_thresh: float) -> Int64:
    """Non-maximum suppression: row numbers that stay, best score first, equal scores in their earlier order.

    A box falls where its IoU with a better kept one is greater than the threshold. The IoU is float32, the threshold
    float64, corners inclusive (a box one pixel wide has no area), as torchvision's ``batched_nms`` has it for the reference.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = np.ascontiguousarray(boxes_xyxy[order].astype(np.float32).T)
    areas = (x1 - x0) * (y1 - y0)
    alive = np.ones(len(order), np.bool_)
    for i in range(len(order)):
        if not alive[i]:
            continue
        later = slice(i + 1, None)
        width = np.maximum(np.float32(0), np.minimum(x1[i], x1[later]) - np.maximum(x0[i], x0[later]))
        height = np.maximum(np.float32(0), np.minimum(y1[i], y1[later]) - np.maximum(y0[i], y0[later]))
        shared = width * height
        with np.errstate(invalid="ignore"):  # Two boxes without area: 0 / 0 suppresses nothing.
            iou = shared / (areas[i] + areas[later] - shared)
        alive[later] &= ~(iou.astype(np.float64) > iou_thresh)
    return order[alive].astype(np.int64)
