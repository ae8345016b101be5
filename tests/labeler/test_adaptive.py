"""Which points the approximate mode asks."""

import numpy as np
import pytest

from labeler.adaptive import lie_well_inside, plan_rounds
from labeler.geometry import make_point_grid
from labeler.rle import mask_to_runs
from labeler.types import MaskSet, join_runs


@pytest.mark.parametrize("side", [1, 2, 3, 8, 13, 32])
def test_all_rounds_together_are_every_point_once(side: int) -> None:
    """Nothing of the grid is forgotten, whatever its size, and the coarse rounds are a sixteenth and a quarter of it."""
    grid = make_point_grid(side)
    rounds = list(plan_rounds(grid))
    assert sorted(np.concatenate(rounds)) == list(range(side * side))
    if side == 32:
        assert [len(rows) for rows in rounds] == [64, 192, 768]
        assert len({tuple(cell) for cell in (grid[rounds[0]] * 8).astype(int).tolist()}) == 64


def test_a_grid_of_ones_own_is_asked_whole_too() -> None:
    """Points from a file need not be a square."""
    grid = np.random.default_rng(0).random((77, 2))
    assert sorted(np.concatenate(list(plan_rounds(grid)))) == list(range(77))


def masks_of(*pixels: np.ndarray) -> MaskSet:
    lengths, offsets = join_runs([mask_to_runs(mask) for mask in pixels])
    count = len(pixels)
    return MaskSet(
        image_hw=pixels[0].shape,
        run_lengths=lengths,
        run_offsets=offsets,
        boxes_xyxy=np.zeros((count, 4), np.int64),
        areas=np.array([mask.sum() for mask in pixels], np.int64),
        predicted_iou=np.ones(count, np.float32),
        stability_score=np.ones(count, np.float32),
        points_xy=np.zeros((count, 2)),
        crop_boxes_xyxy=np.zeros((count, 4), np.int64),
    )


def test_a_point_is_spared_where_all_around_it_is_one_mask() -> None:
    """Near a border, in a gap between two masks and in a ground it is asked."""
    left, right, ground = (np.zeros((100, 200), bool) for _ in range(3))
    left[10:60, 10:60] = True
    right[10:60, 62:112] = True
    ground[:, 20:] = True
    points = np.array([[35.5, 35.5], [12.5, 35.5], [61.5, 35.5], [87.0, 30.0], [150.5, 80.5]])
    spared = lie_well_inside(points, masks_of(left, right, ground), reach_xy=np.array([6.0, 3.0]))
    assert spared.tolist() == [True, False, False, True, False]
