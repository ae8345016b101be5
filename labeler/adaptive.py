"""Which points of a grid need no asking: the approximate mode ``--points adaptive``. Must not know models or thresholds.

A few points, spread evenly, are asked first; then twice as many a side, then the rest. A point is skipped when it lies well
inside a mask that was found before: most likely it would find that mask again. What is lost are things that lie wholly
inside another one and that no earlier point met. After the hierarchical sampling of TinySAM (section 3.3), with masks at
the image's resolution in place of its threshold on logits, so that nothing depends on how a model scales them.
"""

from collections.abc import Iterator

import numpy as np

from labeler.types import Bool, Float64, Int64, MaskSet

COARSENESS = (4, 2, 1)
"""The stride in the grid, round by round: every fourth point a side, every second, all."""

LARGEST_COVER = 0.25
"""A mask that covers more of the image than this spares no point: it is background, and things stand on it."""


def plan_rounds(grid: Float64) -> Iterator[Int64]:
    """Row numbers of an (n, 2) grid of points in 0-1, round by round; all rounds together are every point once."""
    side = np.sqrt(len(grid))
    asked = np.zeros(len(grid), np.bool_)
    for coarseness in COARSENESS[:-1]:
        cells_a_side = max(1, round(side / coarseness))
        cell_xy = np.minimum((grid * cells_a_side).astype(np.int64), cells_a_side - 1)
        cells = cell_xy[:, 1] * cells_a_side + cell_xy[:, 0]
        taken = np.unique(cells[asked])
        left = np.flatnonzero(~asked & ~np.isin(cells, taken))
        _, first = np.unique(cells[left], return_index=True)
        rows = np.sort(left[first])
        asked[rows] = True
        yield rows
    yield np.flatnonzero(~asked)


def lie_well_inside(points_xy: Float64, masks: MaskSet, *, reach_xy: Float64) -> Bool:
    """(n,) whether a point, and the four at ``reach_xy`` (2,) left, right, above and below it, lie in one and the same mask.

    Masks above ``LARGEST_COVER`` don't count.

    Args:
        points_xy: (n, 2), pixels of the image.
        masks: of the same image.
        reach_xy: pixels.
    """
    height, width = masks.image_hw
    steps = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]]) * reach_xy
    xy = np.clip((points_xy[:, None] + steps).astype(np.int64), 0, [width - 1, height - 1])  # (n, 5, 2)
    positions = xy[..., 0] * height + xy[..., 1]  # In the order of the runs, column by column.
    inside = np.zeros(len(points_xy), np.bool_)
    for i in map(int, np.flatnonzero(masks.areas <= LARGEST_COVER * height * width)):
        ends = np.cumsum(masks.runs(i), dtype=np.int64)
        inside |= (np.searchsorted(ends, positions, side="right") % 2 == 1).all(axis=1)
    return inside
