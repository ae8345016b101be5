"""Which masks of an image stay. Must not know formats, nor anything of an image but its size.

What is left out is counted by the option that did it. A mask that a person refined or drew is right, whatever the model thinks
of it: no score is asked of it, and it comes before those of the highest.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from export.options import SelectionOptions
from labeler import rle
from labeler.runs import Row
from labeler.types import Size


def filter_masks(rows: list[Row], *, image_hw: Size, options: SelectionOptions, filtered: Counter[str]) -> list[Row]:
    """The rows that stay, in their order. Cheap questions first: overlaps are only measured among what those leave."""
    for option, is_kept in _make_questions(options, num_pixels=image_hw[0] * image_hw[1]):
        kept = [row for row in rows if is_kept(row)]
        filtered[option] += len(rows) - len(kept)
        rows = kept
    for option, choose in _CHOICES.items():
        if getattr(options, option) == SelectionOptions.model_fields[option].default:
            continue
        chosen = choose(rows, image_hw, getattr(options, option))
        filtered[option] += len(rows) - len(chosen)
        rows = [rows[i] for i in sorted(chosen)]
    return rows


def _make_questions(options: SelectionOptions, *, num_pixels: int) -> Iterator[tuple[str, Callable[[Row], bool]]]:
    """What is asked of each mask alone, by option."""
    # Scores are compared as the table holds them: 0.9 as float32 is a little less than 0.9, and a mask of just that is
    # not "lower". Where nothing is asked nothing may go, and a model may predict less than 0.
    if options.min_predicted_iou is not None:
        lowest_iou = float(np.float32(options.min_predicted_iou))
        yield "min_predicted_iou", lambda row: _is_by_hand(row) or row["predicted_iou"] >= lowest_iou
    if options.min_stability_score is not None:
        lowest_score = float(np.float32(options.min_stability_score))
        yield "min_stability_score", lambda row: _is_by_hand(row) or row["stability_score"] >= lowest_score
    if options.min_area:
        yield "min_area", lambda row: row["area"] >= options.min_area
    if options.max_area is not None:
        largest = options.max_area
        yield "max_area", lambda row: row["area"] <= largest
    if options.min_area_ratio:
        yield "min_area_ratio", lambda row: row["area"] / num_pixels >= options.min_area_ratio
    if options.max_area_ratio < 1:
        yield "max_area_ratio", lambda row: row["area"] / num_pixels <= options.max_area_ratio


def _is_by_hand(row: Row) -> bool:
    return bool(row.get("is_by_hand"))


def _rank_by_score(rows: Sequence[Row]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: (not _is_by_hand(rows[i]), -rows[i]["predicted_iou"]))


def _choose_unlike(rows: Sequence[Row], image_hw: Size, max_mask_iou: float) -> list[int]:
    return _suppress(_rank_by_score(rows), rle.measure_overlaps(_counts(rows), image_hw=image_hw) > max_mask_iou)


def _choose_wholes(rows: Sequence[Row], image_hw: Size, max_containment: float) -> list[int]:
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["area"])
    return _suppress(order, rle.measure_containment(_counts(rows), image_hw=image_hw) > max_containment)


def _choose_best(rows: Sequence[Row], _image_hw: Size, max_masks_per_image: int) -> list[int]:
    return _rank_by_score(rows)[:max_masks_per_image]


_CHOICES: dict[str, Callable[[Sequence[Row], Size, Any], list[int]]] = {
    "max_mask_iou": _choose_unlike,
    "max_containment": _choose_wholes,
    "max_masks_per_image": _choose_best,
}
"""What is asked of the masks of an image together, in this order: the row numbers that stay."""


def _suppress(order: Sequence[int], rivals: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """Those that, met in this order, have no rival ([i, j]: i yields to j) among the ones kept before."""
    kept: list[int] = []
    for i in order:
        if not rivals[i, kept].any():
            kept.append(i)
    return kept


def _counts(rows: Sequence[Row]) -> list[str]:
    return [row["segmentation"]["counts"] for row in rows]
