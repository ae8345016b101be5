"""Regions of a mask given as run lengths: small holes filled, small islands dropped, box and area measured.

Works on the runs themselves, so that it costs a mask's border and never makes its pixels. Compiled loops. Must not know
where masks come from.
"""

import numpy as np

from labeler.compiled import compiled
from labeler.tracing import measure_edges, stretches_to_runs
from labeler.types import Bool, Box, Int64, Size, UInt32


def remove_small_regions(runs: UInt32, *, image_hw: Size, min_area: int) -> tuple[UInt32, bool]:
    """Fill holes, then drop islands, of fewer than ``min_area`` pixels (8-connected); says whether anything changed.

    Pockets of background at the image's border count as holes. Where all islands are small the largest stays.
    After ``remove_small_regions`` in segment_anything/utils/amg.py.
    """
    height = image_hw[0]
    has_changed = False
    for value in (False, True):
        starts, inside, is_changed = _flip_small(runs, height, min_area, value)
        if is_changed:
            runs, has_changed = stretches_to_runs(starts, inside), True
    return runs, has_changed


def measure_runs(runs: UInt32, *, image_hw: Size) -> tuple[Box, int]:
    """Inclusive box (zeros where empty) and area of one mask."""
    edges = np.cumsum(runs, dtype=np.int64)[: len(runs) // 2 * 2]
    area, x0, y0, x1, y1 = measure_edges(edges, image_hw[0]).tolist()
    return (x0, y0, x1, y1), area


@compiled
def _flip_small(runs: UInt32, height: int, min_area: int, value: bool) -> tuple[Int64, Bool, bool]:
    """Turn the 8-connected regions of one value (mask or background) that are smaller than ``min_area``.

    Returns:
        The stretches of ``_split_at_columns``, which of them are mask now, and whether that has changed.
    """
    starts, values = _split_at_columns(runs, height)
    roots, areas = _find_regions(starts, values, height, value)
    changed, largest, largest_place = False, -1, 0
    for i in range(len(values)):
        if values[i] != value:
            continue
        root = roots[i]
        changed = changed or areas[root] < min_area
        # Of equally large ones OpenCV's first label wins, which it gives by rows of 2x2 blocks.
        place = (starts[i] % height // 2) * (1 << 32) + starts[i] // height // 2
        if largest < 0 or areas[root] > areas[largest] or (areas[root] == areas[largest] and place < largest_place):
            largest, largest_place = root, place
    for i in range(len(values)):
        if values[i] != value:
            continue
        is_last_island = value and roots[i] == largest
        if areas[roots[i]] < min_area and not is_last_island:
            values[i] = not value
    return starts, values, changed


@compiled
def _split_at_columns(runs: UInt32, height: int) -> tuple[Int64, Bool]:
    """Runs -> stretches of equal pixels that each lie in one column: positions (S + 1,) and values (S,)."""
    total = 0
    for run in runs:
        total += run
    starts = np.empty(len(runs) + total // height + 1, np.int64)
    values = np.empty(len(starts), np.bool_)
    count, position = 0, 0
    for i in range(len(runs)):
        end = position + int(runs[i])
        while position < end:
            starts[count], values[count] = position, i % 2 == 1
            count += 1
            position = min(end, (position // height + 1) * height)
    starts[count] = total
    return starts[: count + 1], values[:count]


@compiled
def _find_regions(starts: Int64, values: Bool, height: int, value: bool) -> tuple[Int64, Int64]:
    """Union-find over stretches of one value: the root of each, and the area at each root."""
    count = len(values)
    roots = np.arange(count)
    areas = np.zeros(count, np.int64)
    previous = 0  # First stretch of the column before that can still touch.
    for i in range(count):
        column = starts[i] // height
        while starts[previous] // height < column - 1:
            previous += 1
        if values[i] != value:
            continue
        top, bottom = starts[i] - height, starts[i + 1] - height  # Shifted into the column before.
        while previous < i and starts[previous + 1] < top:
            previous += 1
        j = previous
        while j < i and starts[j] <= bottom and starts[j] // height == column - 1:
            if values[j] == value:
                _unite(roots, i, j)
            j += 1
    for i in range(count):
        root = _find_root(roots, i)
        roots[i] = root
        areas[root] += starts[i + 1] - starts[i]
    return roots, areas


@compiled
def _find_root(roots: Int64, i: int) -> int:
    while roots[i] != i:
        roots[i] = roots[roots[i]]
        i = roots[i]
    return i


@compiled
def _unite(roots: Int64, i: int, j: int) -> None:
    a, b = _find_root(roots, i), _find_root(roots, j)
    if a != b:
        roots[max(a, b)] = min(a, b)
