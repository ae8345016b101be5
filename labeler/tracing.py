"""The compiled loops of ``labeler.masks``: logits to the edges of runs. Must not know frames, models or files.

Edges are flat [start, end, start, end ...] positions of a mask's runs in an image that is read column by column.

The loop over a block's pixels has no branches, writes to no array and is of fixed length: so numba compiles it to vector
instructions. What is called for every few pixels is marked ``inline``: counting who holds the arrays that a call passes would
take longer than the pixels.
"""

import numpy as np

from labeler.compiled import compiled, inlined
from labeler.types import Bool, Float32, Int32, Int64, UInt8, UInt32

TAPS = 3
"""Logits along an axis that one pixel draws on."""

BLOCK = 16
"""Pixels of a column that are decided together: AVX-512 computes with so many at once."""

_ONE, _TWO = np.uint64(1), np.uint64(2)
_BLOCK_BITS, _LAST_BIT = np.uint64((1 << BLOCK) - 1), np.uint64(BLOCK - 1)

_DE_BRUIJN, _SIX_HIGHEST = np.uint64(0x03F79D71B4CB0A89), np.uint64(58)
"""Times a power of two, the six highest bits of the first tell which: so a bit's place is found without a loop."""
_PLACES = np.zeros(64, np.int64)
for _place in range(64):
    _PLACES[(int(_DE_BRUIJN) << _place) % 2**64 >> int(_SIX_HIGHEST)] = _place

_ROUNDING_ULP = 8.0
_UNCLEAR = np.uint8(4)


@compiled
def trace_mask(
    logits: Float32,
    columns: tuple[Float32, Int32],
    rows: tuple[Float32, Int32],
    thresholds: tuple[np.float32, np.float32, np.float32],
    origin_xy: tuple[int, int],
    image_height: int,
) -> tuple[Int64, int, int]:
    """One mask, column of cells by column of cells; a cell is the pixels that draw on the same 3x3 logits.

    Args:
        logits: (w, h), transposed so that a column lies in one piece.
        columns: weights (W, 3), and stretches: pixels ``stretches[j]:stretches[j + 1]`` draw on the logits from j on.
        rows: weights (3, H), and the first logit that each pixel draws on (H,).
        thresholds: low, middle and high.

    Returns:
        The mask's runs as flat [start, end, start, end ...] positions in the image, and how many pixels lie above the
        high and above the low threshold.
    """
    column_weights, column_stretches = columns
    row_weights, row_first = rows
    margin = np.float32(np.abs(logits).max() * np.float32(_ROUNDING_ULP * 1.1920929e-07))
    if not margin < np.inf:  # A logit is nan or infinite: every pixel is looked at, and those that draw on it lie outside.
        margin = np.float32(np.inf)
    height = len(row_first)
    num_blocks = (height + BLOCK - 1) // BLOCK
    cells, blocks = np.empty(logits.shape[1] - TAPS + 1, np.uint8), np.empty(num_blocks, np.uint8)
    extremes, segments = np.empty((2, logits.shape[1]), np.float32), np.empty((num_blocks, 3), np.int64)
    # The last block may reach beyond the column: there is nan, which is above nothing.
    tall, made = np.full((TAPS, num_blocks * BLOCK), np.float32(np.nan)), np.full((TAPS, num_blocks), -1)
    in_blocks = tall.reshape(TAPS, num_blocks, BLOCK)
    edges = np.empty(2 * height, np.int64)
    num_edges, num_high, num_low = 0, 0, 0

    for j in range(len(column_stretches) - 1):
        begin_x, end_x = column_stretches[j], column_stretches[j + 1]
        if begin_x == end_x or not _judge_cells(logits[j : j + TAPS], thresholds, margin, extremes, cells):
            continue
        _judge_blocks(cells, row_first, blocks)
        num_segments, high_rows, low_rows = _find_segments(blocks, height, segments)
        num_high += high_rows * (end_x - begin_x)
        num_low += low_rows * (end_x - begin_x)
        for tap in range(TAPS):
            slot = (j + tap) % TAPS
            _enlarge(logits[j + tap], j + tap, row_weights, row_first, blocks, tall[slot], made[slot])
        first, second, third = in_blocks[j % TAPS], in_blocks[(j + 1) % TAPS], in_blocks[(j + 2) % TAPS]
        for x in range(begin_x, end_x if num_segments else begin_x):
            if num_edges + height + 2 > len(edges):
                edges = _lengthen(edges, num_edges, height + 2)
            w0, w1, w2 = column_weights[x, 0], column_weights[x, 1], column_weights[x, 2]
            base = (origin_xy[0] + x) * image_height + origin_xy[1]
            for s in range(num_segments):
                begin, end = segments[s, 0], segments[s, 1]
                if not segments[s, 2]:
                    num_edges = append_run(edges, num_edges, base + begin, base + end)
                    continue
                before = np.uint64(0)  # whether the pixel before belongs to the mask
                if num_edges and edges[num_edges - 1] == base + begin:
                    num_edges, before = num_edges - 1, _ONE  # The last run may go on.
                for block in range(begin // BLOCK, end // BLOCK):
                    found = _compare(first[block], second[block], third[block], w0, w1, w2, thresholds)
                    num_high, num_low = num_high + (found >> 16 & 31), num_low + (found >> 21)
                    inside = np.uint64(found) & _BLOCK_BITS
                    num_edges = _append_turns(edges, num_edges, inside ^ (inside << _ONE | before), base + block * BLOCK)
                    before = inside >> _LAST_BIT
                if before:
                    edges[num_edges] = base + end
                    num_edges += 1
    return edges[:num_edges].copy(), num_high, num_low


@compiled
def _judge_cells(
    logits: Float32, thresholds: tuple[np.float32, np.float32, np.float32], margin: np.float32, extremes: Float32, codes: UInt8
) -> bool:
    """Judge the cells of one column by the 3x3 logits that each draws on; false where all lie under the low threshold.

    A code is the number of thresholds that all nine lie above, rounding included, or ``_UNCLEAR`` where some threshold lies
    between them.

    Args:
        logits: (3, h).
        extremes: (2, h), room to work in.
        codes: (h - 2,), the answer.
    """
    low, middle, high = thresholds
    first, second, third = logits[0], logits[1], logits[2]
    smallest, greatest = extremes[0], extremes[1]
    for k in range(len(smallest)):
        smallest[k] = min(first[k], second[k], third[k])
        greatest[k] = max(first[k], second[k], third[k])
    any_code = np.uint8(0)
    for k in range(len(codes)):
        bottom = min(smallest[k], smallest[k + 1], smallest[k + 2])
        top = max(greatest[k], greatest[k + 1], greatest[k + 2])
        all_above = np.uint8(bottom > low + margin) + np.uint8(bottom > middle + margin) + np.uint8(bottom > high + margin)
        none_above = np.uint8(top <= low - margin) + np.uint8(top <= middle - margin) + np.uint8(top <= high - margin)
        codes[k] = all_above if all_above + none_above == 3 else _UNCLEAR
        any_code |= codes[k]
    return bool(any_code != 0)


@compiled
def _judge_blocks(cells: UInt8, row_first: Int32, blocks: UInt8) -> None:
    """A block has the code of its cells where they agree."""
    last_row = len(row_first) - 1
    for block in range(len(blocks)):
        k = row_first[block * BLOCK]
        code = cells[k]
        for other in range(k + 1, row_first[min(block * BLOCK + BLOCK - 1, last_row)] + 1):
            if cells[other] != code:
                code = _UNCLEAR
        blocks[block] = code


@compiled
def _find_segments(blocks: UInt8, height: int, segments: Int64) -> tuple[int, int, int]:
    """What is to be done in the columns of one column of cells.

    Fills ``segments`` with rows [begin, end, unclear]: unclear is 1 where the pixels need to be looked at, 0 where all
    belong to the mask; those that don't are left out. Returns the number of segments and, of the blocks that are clear, the
    pixel rows above the high and above the low threshold.
    """
    count, high_rows, low_rows = 0, 0, 0
    block = 0
    while block < len(blocks):
        code, begin = blocks[block], block * BLOCK
        while block < len(blocks) and blocks[block] == code:
            block += 1
        end = block * BLOCK
        if code == _UNCLEAR:
            segments[count, 0], segments[count, 1], segments[count, 2] = begin, end, 1
            count += 1
            continue
        end = min(end, height)
        low_rows += end - begin if code >= 1 else 0
        high_rows += end - begin if code == 3 else 0
        if code >= 2:
            segments[count, 0], segments[count, 1], segments[count, 2] = begin, end, 0
            count += 1
    return count, high_rows, low_rows


@compiled
def _enlarge(column: Float32, j: int, weights: Float32, row_first: Int32, blocks: UInt8, tall: Float32, made: Int64) -> None:
    """Column j of the logits at the crop's resolution, in the blocks that need it and don't have it yet."""
    w0, w1, w2 = weights[0], weights[1], weights[2]
    for block in range(len(blocks)):
        if blocks[block] != _UNCLEAR or made[block] == j:
            continue
        made[block] = j
        for y in range(block * BLOCK, min(block * BLOCK + BLOCK, len(row_first))):
            k = np.uint64(row_first[y])  # Unsigned, so that no index is looked at for being negative.
            tall[y] = w0[y] * column[k] + w1[y] * column[k + _ONE] + w2[y] * column[k + _TWO]


@inlined
def _compare(
    first: Float32,
    second: Float32,
    third: Float32,
    w0: np.float32,
    w1: np.float32,
    w2: np.float32,
    thresholds: tuple[np.float32, np.float32, np.float32],
) -> np.int32:
    """One block of a column, each pixel a mean of three tall logits: all that is asked of it in one sum.

    Bits 0 to 15 say which pixels lie above the middle; bits 16 to 20 how many above the high; from 21 on, above the low one.
    """
    low, middle, high = thresholds
    found = np.int32(0)
    for y in range(BLOCK):
        value = w0 * first[y] + w1 * second[y] + w2 * third[y]
        above = np.int32(1) << np.int32(y) if value > middle else np.int32(0)
        above = np.int32(above + (np.int32(1 << 16) if value > high else np.int32(0)))
        above = np.int32(above + (np.int32(1 << 21) if value > low else np.int32(0)))
        found = np.int32(found + above)  # Numba would go on with 64 bits: half as many in a vector.
    return found


@inlined
def _append_turns(edges: Int64, num_edges: int, turns: np.uint64, base: int) -> int:
    """Append an edge for every pixel of a block that begins at ``base`` whose bit says that it differs from the one before."""
    left = turns & _BLOCK_BITS
    while left:
        lowest = left & (~left + _ONE)
        edges[num_edges] = base + _PLACES[lowest * _DE_BRUIJN >> _SIX_HIGHEST]
        num_edges += 1
        left ^= lowest
    return num_edges


@compiled
def _lengthen(edges: Int64, num_edges: int, more: int) -> Int64:
    """The same edges with room for so many more."""
    longer = np.empty(2 * len(edges) + more, np.int64)
    longer[:num_edges] = edges[:num_edges]
    return longer


@inlined
def append_run(edges: Int64, num_edges: int, start: int, end: int) -> int:
    """Append a run of mask pixels, or lengthen the last one where it touches; the number of edges. There must be room."""
    if num_edges and edges[num_edges - 1] == start:
        edges[num_edges - 1] = end
        return num_edges
    edges[num_edges], edges[num_edges + 1] = start, end
    return num_edges + 2


@compiled
def measure_edges(edges: Int64, height: int) -> Int64:
    """[area, x0, y0, x1, y1] of runs given as [start, end, ...] positions; corners inclusive, zeros where there are none."""
    measured = np.zeros(5, np.int64)
    if not len(edges):
        return measured
    top, bottom = height - 1, 0
    for i in range(0, len(edges), 2):
        start, last = edges[i], edges[i + 1] - 1
        measured[0] += last - start + 1
        one_column = start // height == last // height
        top = min(top, start % height if one_column else 0)
        bottom = max(bottom, last % height if one_column else height - 1)
    measured[1], measured[3] = edges[0] // height, (edges[-1] - 1) // height
    measured[2], measured[4] = top, bottom
    return measured


@compiled
def edges_to_runs(edges: Int64, num_pixels: int) -> UInt32:
    """[start, end, ...] positions of the mask's runs -> run lengths, background first."""
    count = len(edges)
    last = edges[count - 1] if count else 0
    runs = np.empty(count + (1 if last < num_pixels else 0), np.uint32)
    position = 0
    for i in range(count):
        runs[i] = edges[i] - position
        position = edges[i]
    if last < num_pixels:
        runs[count] = num_pixels - last
    return runs


@compiled
def stretches_to_runs(starts: Int64, inside: Bool) -> UInt32:
    """Stretches of equal pixels, from each start (S + 1,) to the next, and which are mask (S,) -> run lengths."""
    edges = np.empty(2 * len(inside), np.int64)
    num_edges = 0
    for i in range(len(inside)):
        if inside[i]:
            num_edges = append_run(edges, num_edges, starts[i], starts[i + 1])
    return edges_to_runs(edges[:num_edges], starts[-1])
