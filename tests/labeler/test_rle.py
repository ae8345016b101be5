"""pycocotools is the judge of every conversion."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from labeler import rle


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 7), (9, 1), (5, 8), (64, 48), (300, 700)]
    masks = [rng.random(size) < density for size in sizes for density in (0.0, 0.02, 0.5, 0.98, 1.0)]
    blob = np.zeros((2000, 3000), bool)
    blob[100:1900, 7:2990] = True
    return [*masks, blob]


@pytest.mark.parametrize("mask", random_masks(), ids=lambda m: f"{m.shape}-{int(m.sum())}")
def test_counts_equal_pycocotools_and_come_back(mask: np.ndarray) -> None:
    """Pixels -> runs -> counts is what pycocotools encodes, and the way back gives the same runs and pixels."""
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = rle.mask_to_runs(mask)
    counts = rle.runs_to_counts(runs, image_hw=mask.shape)
    assert counts.encode() == expected["counts"]
    np.testing.assert_array_equal(rle.counts_to_runs(counts), runs)
    np.testing.assert_array_equal(rle.runs_to_mask(runs, image_hw=mask.shape), mask)
    np.testing.assert_array_equal(rle.counts_to_mask(counts, image_hw=mask.shape), mask)


def test_boxes_and_areas_are_pycocotools_own() -> None:
    """A one-pixel mask has a box of width and height 1, unlike the reference generator's."""
    mask = np.zeros((4, 6), bool)
    mask[2, 3] = True
    counts = [rle.runs_to_counts(rle.mask_to_runs(mask), image_hw=(4, 6))]
    np.testing.assert_array_equal(rle.measure_boxes_xywh(counts, image_hw=(4, 6)), [[3, 2, 1, 1]])
    np.testing.assert_array_equal(rle.measure_areas(counts, image_hw=(4, 6)), [1])


def test_hundreds_of_masks_of_one_image_are_measured() -> None:
    """More than the 255 that pycocotools 2.0.11's area of a list can count."""
    corner = np.zeros((30, 30), bool)
    corner[:10, :30] = True
    counts = [rle.runs_to_counts(rle.mask_to_runs(corner), image_hw=(30, 30))] * 1000
    np.testing.assert_array_equal(rle.measure_areas(counts, image_hw=(30, 30)), np.full(1000, 300))
    np.testing.assert_array_equal(rle.measure_boxes_xywh(counts, image_hw=(30, 30)), np.tile([0, 0, 30, 10], (1000, 1)))


def test_no_masks_is_an_answer() -> None:
    """Empty lists give empty columns of the right shape."""
    assert rle.measure_boxes_xywh([], image_hw=(4, 6)).shape == (0, 4)
    assert rle.measure_areas([], image_hw=(4, 6)).shape == (0,)


def test_the_picture_in_the_module_docstring_is_true() -> None:
    """The example that explains the format."""
    mask = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    assert rle.mask_to_runs(mask).tolist() == [1, 1, 1, 2, 1, 1, 2]
