"""Masks and boxes turned as an EXIF orientation says (``labeler.orientation``). Must not know files.

Coordinates count pixel edges, so a turned box has the same whole numbers for sides.
"""

from collections.abc import Sequence

import numpy as np

from labeler import rle
from labeler.orientation import turn_hw, turn_pixels, turn_points
from labeler.types import Size


def turn_counts(counts: str, orientation: int, *, image_hw: Size) -> str:
    """A mask of a picture of ``image_hw``, as COCO's compressed counts, after the turn."""
    turned = turn_pixels(rle.counts_to_mask(counts, image_hw=image_hw), orientation)
    return rle.runs_to_counts(rle.mask_to_runs(turned), image_hw=turn_hw(image_hw, orientation))


def turn_box(xywh: Sequence[float], orientation: int, *, image_hw: Size) -> list[float]:
    """An XYWH box of a picture of ``image_hw`` after the turn."""
    x, y, width, height = xywh
    corners = turn_points(np.array([[x, y], [x + width, y + height]]), orientation, image_hw=image_hw)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]
