"""Low-resolution logits -> masks as run lengths, with area, box and stability.

SAM answers a prompt with logits at a quarter of its input's resolution. The reference enlarges them to the input's
square, cuts the padding off and resizes to the image, two bilinear steps over every pixel of every mask. Here a pixel is
one weighted sum of at most 3x3 logits (the two steps multiplied out, see ``Upsampling``), and where all nine that a cell
of pixels draws on lie on one side of a threshold, the cell is decided without looking at its pixels. So a mask costs about
its border, and no mask ever exists as floats at image size. The loops stand in ``labeler.tracing``. Must not know models,
options or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labeler.tracing import TAPS, edges_to_runs, measure_edges, trace_mask
from labeler.types import Box, Float32, Float64, Int32, Int64, MaskSet, Size, UInt32, join_runs


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
    pixels = np.arange(crop_length)
    to_input, to_input_weight = _bilinear(pixels, input_length, crop_length)
    first = np.minimum(_bilinear(to_input, low_res_length, input_side)[0], low_res_length - TAPS)
    weights = np.zeros((crop_length, TAPS))
    for source, share in ((to_input, 1 - to_input_weight), (np.minimum(to_input + 1, input_length - 1), to_input_weight)):
        low, low_weight = _bilinear(source, low_res_length, input_side)
        weights[pixels, low - first] += share * (1 - low_weight)
        weights[pixels, np.minimum(low + 1, low_res_length - 1) - first] += share * low_weight
    stretches = np.searchsorted(first, np.arange(low_res_length - TAPS + 2))
    return Upsampling(first=first.astype(np.int32), weights=weights, stretches=stretches.astype(np.int32))


def upsample_logits(logits: Float32, *, rows: Upsampling, columns: Upsampling) -> Float32:
    """(M, h, w) low-resolution logits -> (M, H, W) at the crop's size. For few masks: this is the big array."""
    taps = np.arange(TAPS)
    tall = np.einsum("mykx,yk->myx", logits[:, rows.first[:, None] + taps], rows.weights.astype(np.float32))
    wide: Float32 = np.einsum("myxk,xk->myx", tall[:, :, columns.first[:, None] + taps], columns.weights.astype(np.float32))
    return wide


@dataclass(frozen=True, slots=True)
class TracedMask:
    """One mask in the image's frame.

    Attributes:
        runs: run lengths, background first.
        area, box_xyxy: in pixels, the corners (4,) inclusive; zeros where the mask is empty.
        stability: pixels above the high threshold over those above the low one, nan where there are none.
        predicted_iou, point_xy: as they are to stand in the result.
    """

    runs: UInt32
    area: np.int64
    box_xyxy: Int64
    stability: np.float32
    predicted_iou: np.float32
    point_xy: Float64


class Tracer:
    """Thresholds the logits of one crop at the image's resolution and traces each mask.

    A pixel belongs to the mask where its logit is greater than the threshold. Stability is the count of pixels above
    threshold + offset over that above threshold - offset.

    Args:
        rows, columns: how the crop's pixels are made of logits.
        crop_xyxy: where the crop lies in the image, half-open.
        image_hw: the frame of the result.
    """

    def __init__(
        self,
        *,
        rows: Upsampling,
        columns: Upsampling,
        crop_xyxy: Box,
        image_hw: Size,
        mask_threshold: float,
        stability_score_offset: float,
    ) -> None:
        offset = stability_score_offset
        low, middle, high = (np.float32(mask_threshold + shift) for shift in (-offset, 0.0, offset))
        self._thresholds = low, middle, high
        self._columns = columns.weights.astype(np.float32), columns.stretches
        self._rows = np.ascontiguousarray(rows.weights.T, np.float32), rows.first
        self._crop_xyxy, self._image_hw = crop_xyxy, image_hw

    def trace(self, logits: Float32, *, predicted_iou: np.float32, point_xy: Float64) -> TracedMask:
        """One mask.

        Args:
            logits: (h, w) float32: low resolution, for the whole padded input of the crop.
            predicted_iou, point_xy: as they are to stand in the result; the point (2,) that asked, in the image.
        """
        height, width = self._image_hw
        transposed = np.ascontiguousarray(logits.T)
        edges, num_high, num_low = trace_mask(
            transposed, self._columns, self._rows, self._thresholds, self._crop_xyxy[:2], height
        )
        stability = np.float32(num_high) / np.float32(num_low) if num_low else np.float32(np.nan)
        measured = measure_edges(edges, height)
        return TracedMask(
            runs=edges_to_runs(edges, height * width),
            area=measured[0],
            box_xyxy=measured[1:],
            stability=stability,
            predicted_iou=predicted_iou,
            point_xy=point_xy,
        )

    def collect(self, traced: Sequence[TracedMask]) -> MaskSet:
        """Traced masks as columns, in their order."""
        run_lengths, run_offsets = join_runs([mask.runs for mask in traced])
        return MaskSet(
            image_hw=self._image_hw,
            run_lengths=run_lengths,
            run_offsets=run_offsets,
            boxes_xyxy=np.array([mask.box_xyxy for mask in traced], np.int64).reshape(-1, 4),
            areas=np.array([mask.area for mask in traced], np.int64),
            predicted_iou=np.array([mask.predicted_iou for mask in traced], np.float32),
            stability_score=np.array([mask.stability for mask in traced], np.float32),
            points_xy=np.array([mask.point_xy for mask in traced], np.float64).reshape(-1, 2),
            crop_boxes_xyxy=np.tile(np.array(self._crop_xyxy, np.int64), (len(traced), 1)),
        )


def _bilinear(pixels: Int64, source_length: int, target_length: int) -> tuple[Int64, Float64]:
    """The lower source pixel of each target pixel and the weight of the next one (torch's align_corners=False)."""
    position = np.maximum((pixels + 0.5) * (source_length / target_length) - 0.5, 0.0)
    lower = np.minimum(position.astype(np.int64), source_length - 1)
    return lower, position - lower
