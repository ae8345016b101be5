"""Regions of a mask given as run lengths: small holes filled, small islands dropped, box and area measured.

Works on the runs themselves, so that it costs a mask's border and never makes its pixels. Compiled loops. Must not know
where masks come from.
"""

import numpy as np
from numba import njit

from labeler.tracing import append_run, edges_to_runs, measure_edges
from labeler.types import Bool, Box, Int64, Size, UInt32


def remove_small_regions(runs: UInt32, *, image_hw: Size, min_area: int) -> tuple[UInt32, bool]:
    """Fill holes, then drop islands, of fewer than ``min_area`` pixels (8-connected); says whether anything changed.

    Pockets of background at the image's border count as holes. Where all islands are small the largest stays.
    After ``remove_small_regions`` in segment_anything/utils/amg.py.
    """
    height = image_hw[0]
    filled, holes_changed = _flip_small(runs, height, min_area, False)
    kept, islands_changed = _flip_small(filled, height, min_area, True)
    return kept, bool(holes_changed or islands_changed)


def measure_runs(runs: UInt32, *, image_hw: Size) -> tuple[Box, int]:
    """Inclusive box (zeros where empty) and area of one mask."""
    edges = np.cumsum(runs, dtype=np.int64)[: len(runs) // 2 * 2]
    facts = measure_edges(edges, image_hw[0])
    return (int(facts[1]), int(facts[2]), int(facts[3]), int(facts[4])), int(facts[0])


@njit(cache=True, nogil=True)
def _flip_small(runs: UInt32, height: int, min_area: int, value: bool) -> tuple[UInt32, bool]:
    """Turn the 8-connected regions of one value (mask or background) that are smaller than ``min_area``."""
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
    if not changed:
        return runs, False
    edges = np.empty(2 * len(values), np.int64)
    num_edges = 0
    for i in range(len(values)):
        inside = values[i]
        if inside == value:
            small = areas[roots[i]] < min_area
            if value and roots[i] == largest and areas[largest] < min_area:
                small = False
            inside = inside != small
        if inside:
            num_edges = append_run(edges, num_edges, starts[i], starts[i + 1])
    return edges_to_runs(edges[:num_edges], starts[-1]), True


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _find_root(roots: Int64, i: int) -> int:
    while roots[i] != i:
        roots[i] = roots[roots[i]]
        i = roots[i]
    return i


@njit(cache=True, nogil=True)
def _unite(roots: Int64, i: int, j: int) -> None:
    a, b = _find_root(roots, i), _find_root(roots, j)
    if a != b:
        roots[max(a, b)] = min(a, b)
