"""Region removal against the reference's, which uses OpenCV."""

import numpy as np
import pytest
import torch
from segment_anything.utils import amg

from labeler import regions, rle


def region_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    sizes = [(1, 1), (1, 9), (8, 1), (20, 30), (64, 41)]
    found = [rng.random(size) < density for size in sizes for density in (0.05, 0.3, 0.5, 0.7, 0.95) for _ in range(3)]
    ring = np.zeros((50, 50), bool)
    ring[5:45, 5:45] = True
    ring[20:24, 20:24] = False
    ring[0:3, 48:50] = True
    return [*found, ring, ~ring, np.zeros((7, 7), bool), np.ones((7, 7), bool)]


@pytest.mark.parametrize("min_area", [1, 2, 4, 10, 100])
def test_small_regions_go_as_in_the_reference(min_area: int) -> None:
    """Holes filled, islands dropped, the largest kept where all are small: the pixels of remove_small_regions in OpenCV."""
    for mask in region_masks():
        expected, holes = amg.remove_small_regions(mask, min_area, mode="holes")
        expected, islands = amg.remove_small_regions(expected, min_area, mode="islands")
        runs, changed = regions.remove_small_regions(rle.mask_to_runs(mask), image_hw=mask.shape, min_area=min_area)
        np.testing.assert_array_equal(rle.runs_to_mask(runs, image_hw=mask.shape), expected)
        assert changed == (holes or islands)
        box, area = regions.measure_runs(runs, image_hw=mask.shape)
        assert area == expected.sum()
        assert list(box) == amg.batched_mask_to_box(torch.from_numpy(np.asarray(expected))).tolist()
