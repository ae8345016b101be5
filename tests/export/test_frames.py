"""Masks, points and boxes turned by EXIF orientation, judged by Pillow."""

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from export.frames import turn_box, turn_counts
from labeler import rle
from labeler.orientation import TURNING, invert, turn_hw, turn_points


def turn_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    picture = PillowImage.fromarray(stored.astype(np.uint8) * 255)
    picture.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(picture)) > 0


@pytest.mark.parametrize("orientation", sorted(TURNING))
def test_masks_turn_as_pillow_turns_photos(orientation: int) -> None:
    """To upright as exif_transpose does, and back again."""
    stored = np.random.default_rng(1).random((5, 8)) < 0.5
    upright = turn_upright(stored, orientation)
    stored_counts, upright_counts = (rle.runs_to_counts(rle.mask_to_runs(m), image_hw=m.shape) for m in (stored, upright))
    assert turn_hw(stored.shape, orientation) == upright.shape
    assert turn_hw(upright.shape, invert(orientation)) == stored.shape
    assert turn_counts(stored_counts, orientation, image_hw=stored.shape) == upright_counts
    assert turn_counts(upright_counts, invert(orientation), image_hw=upright.shape) == stored_counts


@pytest.mark.parametrize("orientation", sorted(TURNING))
def test_points_and_boxes_turn_with_the_mask(orientation: int) -> None:
    """A box of pixels stays around its pixels, and a point in the middle of a pixel in the middle of that pixel."""
    stored = np.zeros((5, 8), bool)
    stored[1:3, 2:7] = True
    upright = turn_upright(stored, orientation)
    rows, columns = np.nonzero(upright)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert turn_box([2.0, 1.0, 5.0, 2.0], orientation, image_hw=(5, 8)) == box
    one = np.zeros((5, 8), bool)
    one[1, 6] = True
    (y,), (x,) = np.nonzero(turn_upright(one, orientation))
    assert turn_points(np.array([6.5, 1.5]), orientation, image_hw=(5, 8)).tolist() == [x + 0.5, y + 0.5]
