"""Low-resolution logits -> masks as run lengths, with area, box and stability. Compiled loops.

SAM answers a prompt with logits at a quarter of its input's resolution. The reference enlarges them to the input's
square, cuts the padding off and resizes to the image, two bilinear steps over every pixel of every mask. Here a pixel is
one weighted sum of at most 3x3 logits (the two steps multiplied out, see ``Upsampling``), and where all nine that a cell
of pixels draws on lie on one side of a threshold, the cell is decided without looking at its pixels. So a mask costs about
its border, and no mask ever exists as floats at image size. Must not know models, options or files.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from labeler.types import Box, Float32, Float64, Int32, Int64, Size, UInt32, join_runs

_TAPS = 3
_ROUNDING_ULP = 8.0


@dataclass(frozen=True, slots=True)
class Upsampling:
    """How pixels along one axis of a crop are summed from low-resolution logits.

    Attributes:
        first: (L,) int32, the first of the three logits that pixel i draws on; never decreases.
        weights: (L, 3) float64, what it takes of each; they add up to 1.
        stretches: (T + 1,) int32; pixels ``stretches[j]:stretches[j + 1]`` are those with ``first == j``.
    """

    first: Int32
    weights: Float64
    stretches: Int32


def plan_upsampling(*, low_res_length: int, input_side: int, input_length: int, crop_length: int) -> Upsampling:
    """The reference's two bilinear steps along one axis, multiplied out.

    Args:
        low_res_length: logits along the axis, for the whole padded input; at least 3.
        input_side: pixels of the model's square input.
        input_length: pixels of the resized crop in it, without padding.
        crop_length: pixels of the crop in the image.
    """
    to_input, to_input_weight = _bilinear(np.arange(crop_length), input_length, crop_length)
    weights = np.zeros((crop_length, low_res_length))
    pixels = np.arange(crop_length)
    for source, share in ((to_input, 1 - to_input_weight), (np.minimum(to_input + 1, input_length - 1), to_input_weight)):
        low, low_weight = _bilinear(source, low_res_length, input_side)
        np.add.at(weights, (pixels, low), share * (1 - low_weight))
        np.add.at(weights, (pixels, np.minimum(low + 1, low_res_length - 1)), share * low_weight)
    first, _ = _bilinear(to_input, low_res_length, input_side)
    first = np.minimum(first, low_res_length - _TAPS)
    taken = np.take_along_axis(weights, first[:, None] + np.arange(_TAPS), axis=1)
    stretches = np.searchsorted(first, np.arange(low_res_length - _TAPS + 2))
    return Upsampling(first=first.astype(np.int32), weights=taken, stretches=stretches.astype(np.int32))


def upsample_logits(logits: Float32, *, rows: Upsampling, columns: Upsampling) -> Float32:
    """(M, h, w) low-resolution logits -> (M, H, W) at the crop's size. For few masks: this is the big array."""
    taps = np.arange(_TAPS)
    tall = np.einsum("mykx,yk->myx", logits[:, rows.first[:, None] + taps], rows.weights.astype(np.float32))
    wide: Float32 = np.einsum("myxk,xk->myx", tall[:, :, columns.first[:, None] + taps], columns.weights.astype(np.float32))
    return wide


@dataclass(frozen=True, slots=True)
class TracedMasks:
    """M masks in the image's frame; columns as in ``types.MaskSet``. Stability is nan where both counts are 0."""

    run_lengths: UInt32
    run_offsets: Int64
    boxes_xyxy: Int64
    areas: Int64
    stability_score: Float32


def trace_masks(
    logits: Float32,
    *,
    rows: Upsampling,
    columns: Upsampling,
    crop_xyxy: Box,
    image_hw: Size,
    mask_threshold: float,
    stability_score_offset: float,
) -> TracedMasks:
    """Threshold logits at the image's resolution and trace each mask.

    A pixel belongs to the mask where its logit is greater than the threshold. Stability is the count of pixels above
    threshold + offset over that above threshold - offset. Boxes of empty masks are zeros.

    Args:
        logits: (M, h, w) float32, low resolution, for the whole padded input of a crop.
        rows, columns: how the crop's pixels are made of them.
        crop_xyxy: where the crop lies in the image, half-open.
        image_hw: the frame of the result.
    """
    offset = stability_score_offset
    low, middle, high = (np.float32(mask_threshold + shift) for shift in (-offset, 0.0, offset))
    column_axis, row_axis = ((axis.weights.astype(np.float32), axis.stretches) for axis in (columns, rows))
    facts = np.zeros((len(logits), 5), np.int64)
    counts = np.zeros((len(logits), 2), np.float32)
    runs = []
    for i, plane in enumerate(logits):
        transposed = np.ascontiguousarray(plane.T)
        edges, counts[i, 0], counts[i, 1] = _trace(
            transposed, column_axis, row_axis, (low, middle, high), crop_xyxy[:2], image_hw[0]
        )
        facts[i] = measure_edges(edges, image_hw[0])
        runs.append(edges_to_runs(edges, image_hw[0] * image_hw[1]))
    run_lengths, run_offsets = join_runs(runs)
    with np.errstate(invalid="ignore", divide="ignore"):
        stability = counts[:, 0] / counts[:, 1]
    return TracedMasks(
        run_lengths=run_lengths,
        run_offsets=run_offsets,
        boxes_xyxy=facts[:, 1:],
        areas=facts[:, 0],
        stability_score=stability,
    )


def _bilinear(pixels: Int64, source_length: int, target_length: int) -> tuple[Int64, Float64]:
    """The lower source pixel of each target pixel and the weight of the next one (torch's align_corners=False)."""
    position = np.maximum((pixels + 0.5) * (source_length / target_length) - 0.5, 0.0)
    lower = np.minimum(position.astype(np.int64), source_length - 1)
    return lower, position - lower


@njit(cache=True, nogil=True)
def _trace(
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
        columns, rows: weights and stretches of the two axes.
        thresholds: low, middle and high.

    Returns:
        The mask's runs as flat [start, end, start, end ...] positions in the image, and how many pixels lie above the
        high and above the low threshold.
    """
    column_weights, column_stretches = columns
    row_weights, row_stretches = rows
    low, middle, high = thresholds
    margin = np.float32(np.abs(logits).max() * np.float32(_ROUNDING_ULP * 1.1920929e-07))
    segments = np.empty((len(row_stretches), 3), np.int64)
    edges = np.empty(256, np.int64)
    num_edges, num_high, num_low = 0, 0, 0

    for j in range(len(column_stretches) - 1):
        begin_x, end_x = column_stretches[j], column_stretches[j + 1]
        if begin_x == end_x:
            continue
        first, second, third = logits[j], logits[j + 1], logits[j + 2]
        num_segments, high_rows, low_rows = _find_segments(first, second, third, row_stretches, thresholds, margin, segments)
        num_high += high_rows * (end_x - begin_x)
        num_low += low_rows * (end_x - begin_x)
        for x in range(begin_x, end_x if num_segments else begin_x):
            w0, w1, w2 = column_weights[x, 0], column_weights[x, 1], column_weights[x, 2]
            base = (origin_xy[0] + x) * image_height + origin_xy[1]
            for s in range(num_segments):
                begin, end, k = segments[s]
                if k < 0:
                    edges, num_edges = append_run(edges, num_edges, base + begin, base + end)
                    continue
                a = w0 * first[k] + w1 * second[k] + w2 * third[k]
                b = w0 * first[k + 1] + w1 * second[k + 1] + w2 * third[k + 1]
                c = w0 * first[k + 2] + w1 * second[k + 2] + w2 * third[k + 2]
                start = -1
                for y in range(begin, end):
                    value = row_weights[y, 0] * a + row_weights[y, 1] * b + row_weights[y, 2] * c
                    num_high += value > high
                    num_low += value > low
                    if (value > middle) == (start < 0):  # The mask begins or ends here.
                        if start >= 0:
                            edges, num_edges = append_run(edges, num_edges, base + start, base + y)
                        start = y if start < 0 else -1
                if start >= 0:
                    edges, num_edges = append_run(edges, num_edges, base + start, base + end)
    return edges[:num_edges].copy(), num_high, num_low


@njit(cache=True, nogil=True)
def _find_segments(
    first: Float32,
    second: Float32,
    third: Float32,
    row_stretches: Int32,
    thresholds: tuple[np.float32, np.float32, np.float32],
    margin: np.float32,
    segments: Int64,
) -> tuple[int, int, int]:
    """What is to be done in one column of cells, whose pixels draw on these three columns of logits.

    Fills ``segments`` with rows [begin, end, k]: k is -1 where all pixels belong to the mask, else the cell, whose pixels
    need to be looked at. Cells outside are left out. Returns the number of segments and, of the cells that are decided,
    the pixel rows above the high and above the low threshold.
    """
    low, middle, high = thresholds
    count, high_rows, low_rows = 0, 0, 0
    smallest = np.minimum(np.minimum(first, second), third)
    greatest = np.maximum(np.maximum(first, second), third)
    if greatest.max() <= low - margin:
        return 0, 0, 0
    for k in range(len(row_stretches) - 1):
        begin, end = row_stretches[k], row_stretches[k + 1]
        top = max(greatest[k], greatest[k + 1], greatest[k + 2])
        if begin == end or top <= low - margin:
            continue
        bottom = min(smallest[k], smallest[k + 1], smallest[k + 2])
        if not (
            _is_decided(bottom, top, low, margin)
            and _is_decided(bottom, top, middle, margin)
            and _is_decided(bottom, top, high, margin)
        ):
            segments[count, 0], segments[count, 1], segments[count, 2] = begin, end, k
            count += 1
            continue
        low_rows += end - begin
        high_rows += end - begin if bottom > high else 0
        if bottom > middle and count and segments[count - 1, 2] < 0 and segments[count - 1, 1] == begin:
            segments[count - 1, 1] = end
        elif bottom > middle:
            segments[count, 0], segments[count, 1], segments[count, 2] = begin, end, -1
            count += 1
    return count, high_rows, low_rows


@njit(cache=True, nogil=True)
def _is_decided(smallest: np.float32, greatest: np.float32, threshold: np.float32, margin: np.float32) -> bool:
    """Whether every weighted mean of values in this range lies on the same side of the threshold, rounding included."""
    return bool(smallest > threshold + margin or greatest <= threshold - margin)


@njit(cache=True, nogil=True)
def append_run(edges: Int64, num_edges: int, start: int, end: int) -> tuple[Int64, int]:
    """Append a run of mask pixels, or lengthen the last one where it touches."""
    if num_edges and edges[num_edges - 1] == start:
        edges[num_edges - 1] = end
        return edges, num_edges
    if num_edges + 2 > len(edges):
        longer = np.empty(2 * len(edges), np.int64)
        longer[:num_edges] = edges[:num_edges]
        edges = longer
    edges[num_edges], edges[num_edges + 1] = start, end
    return edges, num_edges + 2


@njit(cache=True, nogil=True)
def measure_edges(edges: Int64, height: int) -> Int64:
    """[area, x0, y0, x1, y1] of runs given as [start, end, ...] positions; corners inclusive, zeros where there are none."""
    facts = np.zeros(5, np.int64)
    if not len(edges):
        return facts
    top, bottom = height - 1, 0
    for i in range(0, len(edges), 2):
        start, last = edges[i], edges[i + 1] - 1
        facts[0] += last - start + 1
        one_column = start // height == last // height
        top = min(top, start % height if one_column else 0)
        bottom = max(bottom, last % height if one_column else height - 1)
    facts[1], facts[3] = edges[0] // height, (edges[-1] - 1) // height
    facts[2], facts[4] = top, bottom
    return facts


@njit(cache=True, nogil=True)
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
