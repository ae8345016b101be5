"""Compares our masks with those of segment-anything in PyTorch, and names the decision behind each difference.

A reference mask needs a partner of ours with the same point and crop, nearly the same pixels and scores. A mask without
one is excused only where the test can name a decision that hung on rounding: a score at its threshold, a tie of scores,
a box overlap at the suppression threshold, an edge at the 20-px rule; or a mask excused so. Two that answer the same
prompt and find no partner do not excuse each other, for most likely one is the other made wrong. ``test_parity_judge`` shows
to what all this says no.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from labeler import rle
from labeler.options import MaskOptions
from labeler.types import MaskSet

SCORE_TOLERANCE = 1e-3
TIE_TOLERANCE = 1e-4
BOX_IOU_TOLERANCE = 0.01


@dataclass(frozen=True)
class Found:
    """One mask, from either side."""

    mask: dict[str, Any]  # pycocotools RLE
    area: int
    box_xyxy: np.ndarray  # inclusive
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    crop_xyxy: tuple[int, int, int, int]

    @property
    def stability_tolerance(self) -> float:
        return max(5e-3, 2 / max(1, self.area))


@dataclass
class Comparison:
    """What two lists of masks have in common."""

    pairs: list[tuple[int, int]] = field(default_factory=list)
    worst_iou: float = 1.0
    num_reference: int = 0
    excused: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def run_reference(sam: Sam, pixels: np.ndarray, options: MaskOptions) -> list[Found]:
    """segment-anything's own generator. Empty masks are left out."""
    names = set(SamAutomaticMaskGenerator.__init__.__code__.co_varnames)
    values = {k: v for k, v in options.model_dump().items() if k in names}
    if options.point_grids is not None:
        values |= {"points_per_side": None, "point_grids": [np.array(g) for g in options.point_grids]}
    generator = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **values)
    found = []
    for record in generator.generate(pixels):
        if record["area"] == 0:
            continue
        x, y, w, h = record["bbox"]
        cx, cy, cw, ch = record["crop_box"]
        found.append(
            Found(
                mask=record["segmentation"],
                area=record["area"],
                box_xyxy=np.array([x, y, x + w, y + h]),
                predicted_iou=record["predicted_iou"],
                stability_score=record["stability_score"],
                point=tuple(record["point_coords"][0]),
                crop_xyxy=(cx, cy, cx + cw, cy + ch),
            )
        )
    return found


def list_masks(masks: MaskSet) -> list[Found]:
    """Our columns as the same records."""
    return [
        Found(
            mask={"size": list(masks.image_hw), "counts": rle.runs_to_counts(masks.runs(i), image_hw=masks.image_hw)},
            area=int(masks.areas[i]),
            box_xyxy=masks.boxes_xyxy[i],
            predicted_iou=float(masks.predicted_iou[i]),
            stability_score=float(masks.stability_score[i]),
            point=(float(masks.points_xy[i][0]), float(masks.points_xy[i][1])),
            crop_xyxy=tuple(int(v) for v in masks.crop_boxes_xyxy[i]),
        )
        for i in range(len(masks))
    ]


def compare(reference: list[Found], ours: list[Found], *, options: MaskOptions, image_hw: tuple[int, int]) -> Comparison:
    """Pair the masks of both sides; excuse or blame those that stay alone, and pairs in another order."""
    result = Comparison(num_reference=len(reference))
    ious = np.zeros((len(reference), len(ours)))
    if reference and ours:
        ious = np.asarray(coco_mask.iou([r.mask for r in reference], [o.mask for o in ours], [0] * len(ours)))
    by_place: dict[Any, list[int]] = {}
    for j, mask in enumerate(ours):
        by_place.setdefault((mask.point, mask.crop_xyxy), []).append(j)
    taken: set[int] = set()
    for i, r in enumerate(reference):
        candidates = [j for j in by_place.get((r.point, r.crop_xyxy), []) if j not in taken and _same(r, ours[j], ious[i, j])]
        if candidates:
            j = max(candidates, key=lambda j: ious[i, j])
            taken.add(j)
            result.pairs.append((i, j))
            result.worst_iou = min(result.worst_iou, float(ious[i, j]))
    _judge_lonely(reference, ours, result, options, image_hw)
    _judge_order(reference, ours, result)
    return result


def _same(r: Found, o: Found, iou: float) -> bool:
    differing = (r.area + o.area) * (1 - iou) / (1 + iou)
    return (
        differing <= max(2, 0.01 * r.area) + 1e-6
        and abs(r.predicted_iou - o.predicted_iou) <= SCORE_TOLERANCE
        and abs(r.stability_score - o.stability_score) <= r.stability_tolerance
    )


def _judge_lonely(
    reference: list[Found], ours: list[Found], result: Comparison, options: MaskOptions, image_hw: tuple[int, int]
) -> None:
    lonely = {("reference", i) for i in range(len(reference))} - {("reference", i) for i, _ in result.pairs}
    lonely |= {("ours", j) for j in range(len(ours))} - {("ours", j) for _, j in result.pairs}
    sides = {"reference": reference, "ours": ours}
    other = {"reference": "ours", "ours": "reference"}
    excused: dict[tuple[str, int], str] = {}
    for side, i in lonely:
        mask = sides[side][i]
        rivals = {(other[side], j): rival for j, rival in enumerate(sides[other[side]])}
        strangers = {key: r for key, r in rivals.items() if key not in lonely or not _answer_same_prompt(mask, r)}
        reason = _name_own_decision(mask, options, image_hw) or _name_overlap(mask, strangers.values(), options)
        reason = reason or _name_tie(mask, [r for key, r in strangers.items() if key in lonely], options)
        if reason:
            excused[side, i] = reason
    while True:  # Through a mask excused already: what it suppressed, or no longer suppresses.
        added = {
            key: f"because of {rival}: {excused[rival]}"
            for key in lonely - excused.keys()
            for rival in list(excused)
            if _overlap(sides[key[0]][key[1]], sides[rival[0]][rival[1]], options, slack=BOX_IOU_TOLERANCE)
        }
        if not added:
            break
        excused |= added
    result.excused = [f"{key}: {reason}" for key, reason in sorted(excused.items())]
    result.faults += [f"{key}: {sides[key[0]][key[1]]}" for key in sorted(lonely - excused.keys())]


def _name_own_decision(mask: Found, options: MaskOptions, image_hw: tuple[int, int]) -> str:
    """The threshold this mask stands at, if any."""
    if options.pred_iou_thresh and abs(mask.predicted_iou - options.pred_iou_thresh) <= SCORE_TOLERANCE:
        return f"predicted_iou {mask.predicted_iou} at its threshold"
    if (
        options.stability_score_thresh
        and abs(mask.stability_score - options.stability_score_thresh) <= mask.stability_tolerance
    ):
        return f"stability_score {mask.stability_score} at its threshold"
    height, width = image_hw
    crop, image = np.array(mask.crop_xyxy), np.array([0, 0, width, height])
    to_crop, to_image = np.abs(mask.box_xyxy - crop), np.abs(mask.box_xyxy - image)
    hangs = (np.abs(to_crop - 20) <= 1) | ((np.abs(to_image - 20) <= 1) & (to_crop <= 21))
    if np.any(hangs & (crop != image)):  # A side that is the image's too cuts nothing off.
        return "a box side at the 20-px rule"
    return ""


def _name_overlap(mask: Found, rivals: Iterable[Found], options: MaskOptions) -> str:
    """The other side's mask whose box overlaps at a threshold of suppression."""
    for rival in rivals:
        iou = _box_iou(mask, rival)
        for name, thresh in (("box_nms_thresh", options.box_nms_thresh), ("crop_nms_thresh", options.crop_nms_thresh)):
            if abs(iou - thresh) <= BOX_IOU_TOLERANCE:
                return f"box IoU {iou:.4f} at {name}"
    return ""


def _name_tie(mask: Found, rivals: Iterable[Found], options: MaskOptions) -> str:
    """The other side's mask, lonely too, that stands in its place by a tie of scores."""
    for rival in rivals:
        is_tie = abs(mask.predicted_iou - rival.predicted_iou) <= TIE_TOLERANCE
        if is_tie and _box_iou(mask, rival) > min(options.box_nms_thresh, options.crop_nms_thresh):
            return f"predicted_iou {mask.predicted_iou} ties with {rival.predicted_iou}"
    return ""


def _answer_same_prompt(mask: Found, rival: Found) -> bool:
    return (mask.point, mask.crop_xyxy) == (rival.point, rival.crop_xyxy)


def _overlap(mask: Found, rival: Found, options: MaskOptions, *, slack: float) -> bool:
    return _box_iou(mask, rival) > min(options.box_nms_thresh, options.crop_nms_thresh) - slack


def _box_iou(a: Found, b: Found) -> float:
    low, high = np.maximum(a.box_xyxy[:2], b.box_xyxy[:2]), np.minimum(a.box_xyxy[2:], b.box_xyxy[2:])
    shared = float(np.prod(np.maximum(0, high - low)))
    total = float(np.prod(a.box_xyxy[2:] - a.box_xyxy[:2]) + np.prod(b.box_xyxy[2:] - b.box_xyxy[:2])) - shared
    return shared / total if total else 0.0


def _judge_order(reference: list[Found], ours: list[Found], result: Comparison) -> None:
    """Pairs come in the same order, but for neighbours whose scores tie."""
    order = [j for _, j in result.pairs]
    for (i, j), (k, m) in zip(result.pairs, result.pairs[1:], strict=False):
        if m < j and abs(reference[i].predicted_iou - reference[k].predicted_iou) > TIE_TOLERANCE:
            result.faults.append(f"order: reference {i} before {k}, ours {m} before {j}")
    assert len(set(order)) == len(order)
