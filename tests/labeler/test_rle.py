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


@pytest.mark.parametrize("counts", ["0o", "0P", "a b", "0~", "\t1", "zz"])
def test_what_is_no_counts_is_said(counts: str) -> None:
    """It breaks off within a number, or holds characters that stand for none."""
    with pytest.raises(ValueError, match="no compressed counts"):
        rle.counts_to_runs(counts)


@pytest.mark.parametrize("box_xywh", [(0, 0, 48, 64), (3, 5, 1, 1), (10, 0, 7, 64), (47, 63, 1, 1), (0, 20, 48, 9)])
def test_a_crop_is_that_part_of_the_mask(box_xywh: tuple[int, int, int, int]) -> None:
    """Wherever the box lies, edges of the image included, and whatever the mask begins with."""
    x, y, w, h = box_xywh
    for density in (0.0, 0.3, 0.9, 1.0):
        mask = np.random.default_rng(3).random((64, 48)) < density
        crop = rle.runs_to_crop(rle.mask_to_runs(mask), image_hw=(64, 48), box_xywh=box_xywh)
        np.testing.assert_array_equal(crop, mask[y : y + h, x : x + w])


def overlapping_masks() -> tuple[np.ndarray, list[str]]:
    """Five: a block, a part of it, one beside it, one that shares a half with it, and the block again."""
    masks = np.zeros((5, 20, 30), bool)
    boxes = [(0, 0, 10, 10), (2, 2, 6, 7), (0, 10, 10, 20), (0, 5, 10, 15), (0, 0, 10, 10)]
    for mask, (y0, x0, y1, x1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks, [rle.runs_to_counts(rle.mask_to_runs(mask), image_hw=(20, 30)) for mask in masks]


def test_overlaps_are_measured_in_pixels() -> None:
    """The IoU of every pair, as counting the pixels gives it; of two masks alone the same."""
    masks, counts = overlapping_masks()
    expected = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    np.testing.assert_allclose(rle.measure_overlaps(counts, image_hw=(20, 30)), expected)
    assert expected[0][2:] == [0, pytest.approx(1 / 3), 1]
    for i, j in ((0, 1), (3, 0), (0, 2)):
        assert rle.measure_iou(counts[i], counts[j], image_hw=(20, 30)) == pytest.approx(expected[i][j])


def test_containment_is_of_the_first_mask() -> None:
    """Row i: the part of mask i within each other. What lies within the block does so wholly, the block hardly within it."""
    masks, counts = overlapping_masks()
    contained = rle.measure_containment(counts, image_hw=(20, 30))
    np.testing.assert_allclose(contained, [[(a & b).sum() / a.sum() for b in masks] for a in masks])
    assert (contained[1, 0], contained[0, 1]) == (1, 0.2)


def test_polygons_are_filled_and_united() -> None:
    """Corners lie on pixel edges; two that overlap count once, and two apart are one mask."""
    squares = [[2, 1, 6, 1, 6, 5, 2, 5], [4, 3, 9, 3, 9, 8, 4, 8], [20, 0, 22, 0, 22, 1, 20, 1]]
    mask = np.zeros((12, 30), bool)
    mask[1:5, 2:6] = mask[3:8, 4:9] = mask[0:1, 20:22] = True
    found = rle.counts_to_mask(rle.polygons_to_counts(squares, image_hw=(12, 30)), image_hw=(12, 30))
    np.testing.assert_array_equal(found, mask)
