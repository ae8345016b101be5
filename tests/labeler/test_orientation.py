"""Turning pictures, sizes and points as EXIF says it: Pillow's own turning is the truth for pixels, pixels are for the rest."""

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from labeler.orientation import TURNING, invert, turn_hw, turn_pixels, turn_points

ORIENTATIONS = range(1, 9)
HW = (5, 7)
PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(*HW, 3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_are_turned_as_pillow_turns_them(orientation: int) -> None:
    """Also planes without channels; size follows."""
    picture = PillowImage.fromarray(PIXELS)
    picture.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(turn_pixels(PIXELS, orientation), upright)
    np.testing.assert_array_equal(turn_pixels(PIXELS[..., 1], orientation), upright[..., 1])
    assert turn_hw(HW, orientation) == upright.shape[:2]
    assert (orientation in TURNING) == (orientation != 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turn_is_undone_by_its_inverse(orientation: int) -> None:
    """Pixels, size and points are as before, and so is the inverse of the inverse."""
    back = invert(orientation)
    assert invert(back) == orientation
    np.testing.assert_array_equal(turn_pixels(turn_pixels(PIXELS, orientation), back), PIXELS)
    assert turn_hw(turn_hw(HW, orientation), back) == HW
    points = np.array([[[0.0, 0.0], [7.0, 5.0]], [[1.25, 4.5], [6.5, 0.5]]])
    turned = turn_points(points, orientation, image_hw=HW)
    assert turned.shape == points.shape
    np.testing.assert_array_equal(turn_points(turned, back, image_hw=turn_hw(HW, orientation)), points)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_points_go_where_their_pixels_go(orientation: int) -> None:
    """The middle of each pixel is the middle of the same pixel afterwards; corners of the picture stay corners."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    turned = turn_points(np.stack([x, y], axis=-1) + 0.5, orientation, image_hw=HW)
    columns, rows = np.moveaxis(turned - 0.5, -1, 0).astype(int)
    np.testing.assert_array_equal(turn_pixels(PIXELS, orientation)[rows, columns], PIXELS)
    height, width = turn_hw(HW, orientation)
    corners = turn_points(np.array([[0.0, 0.0], [7.0, 0.0], [0.0, 5.0], [7.0, 5.0]]), orientation, image_hw=HW)
    assert {tuple(corner) for corner in corners.tolist()} == {(0, 0), (width, 0), (0, height), (width, height)}


@pytest.mark.parametrize("orientation", [0, 9, -1])
def test_what_is_no_orientation_turns_nothing(orientation: int) -> None:
    """Files may hold any number."""
    assert orientation not in TURNING
    assert invert(orientation) == orientation
    np.testing.assert_array_equal(turn_pixels(PIXELS, orientation), PIXELS)
    assert turn_hw(HW, orientation) == HW
    points = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(turn_points(points, orientation, image_hw=HW), points)
