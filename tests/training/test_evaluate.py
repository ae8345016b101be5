"""Measuring."""

import numpy as np
from pycocotools import mask as coco_masks

from training.classical import segment_pooled
from training.evaluate import VALIDATION_SEEDS, best_ious, find_innermost


def test_the_validation_scenes_are_a_thousand_fixed_seeds() -> None:
    """Figures of two models compare only on the same scenes."""
    assert list(VALIDATION_SEEDS) == list(range(1000))


def test_the_innermost_point_of_a_ring_lies_in_its_band() -> None:
    """Not in the hole, though the centre of mass is there."""
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:35, 5:35] = True
    mask[10:30, 10:25] = False
    x, y = find_innermost(mask)
    assert mask[int(y), int(x)]
    assert 28 <= x <= 31


def test_a_region_counts_by_the_mask_that_fits_it_best() -> None:
    """Best IoU per region; nothing found gives zeros."""
    region, half = np.zeros((10, 10), np.uint8, order="F"), np.zeros((10, 10), np.uint8, order="F")
    region[:, :4] = 1
    half[:, :2] = 1
    regions, found = [coco_masks.encode(region)], [coco_masks.encode(half), coco_masks.encode(1 - region)]
    assert best_ious(regions, found).tolist() == [0.5]
    assert best_ious(regions, []).tolist() == [0.0]


def test_the_classical_method_pools_all_scales_largest_first() -> None:
    """Two halves are found at each of the six scales; the order at random holds the same segments."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 20:] = 200
    largest, shuffled = segment_pooled(pixels)
    areas = [int(coco_masks.area(rle)) for rle in largest]
    assert areas == sorted(areas, reverse=True)
    assert len(areas) == 12
    assert sorted(int(coco_masks.area(rle)) for rle in shuffled) == sorted(areas)
