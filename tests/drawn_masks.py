"""Masks that tests draw, and read back."""

import numpy as np
import pyarrow as pa

from labeler import rle
from labeler.types import MaskSet, Size, join_runs


def draw_box(hw: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    """(H, W) bool: a rectangle, its end left out."""
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def table_to_masks(rows: pa.Table, *, image_hw: Size) -> MaskSet:
    """The rows of one image in the masks table, back as a ``MaskSet``: the inverse of ``masks_to_batch``."""
    counts = rows["segmentation"].combine_chunks().field("counts").to_pylist()
    run_lengths, run_offsets = join_runs([rle.counts_to_runs(c) for c in counts])
    boxes, crops = (np.asarray(rows[c].to_pylist(), np.int64).reshape(-1, 4) for c in ("bbox", "crop_box"))
    points = [point[0] if point else (np.nan, np.nan) for point in rows["point_coords"].to_pylist()]
    return MaskSet(
        image_hw=image_hw,
        run_lengths=run_lengths,
        run_offsets=run_offsets,
        boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1),
        areas=rows["area"].to_numpy(),
        predicted_iou=rows["predicted_iou"].to_numpy(),
        stability_score=rows["stability_score"].to_numpy(),
        points_xy=np.asarray(points, np.float64).reshape(-1, 2),
        crop_boxes_xyxy=np.concatenate([crops[:, :2], crops[:, :2] + crops[:, 2:]], axis=1),
    )
