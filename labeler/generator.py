"""The automatic mask generator: ask at every point of a grid, keep the sure and stable answers, drop duplicates.

Reads as the method in Segment Anything, section 5 and appendix B, and keeps every decision of
``segment_anything/automatic_mask_generator.py``, without its float masks at image size. Must not know files, OpenVINO
or jobs.
"""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from labeler.adaptive import lie_well_inside, plan_rounds
from labeler.geometry import Crop, boxes_touch_crop_edge, keep_best_boxes, make_crops, make_layer_grids
from labeler.masks import TracedMask
from labeler.options import MaskOptions
from labeler.predictor import Predictor
from labeler.regions import measure_runs, remove_small_regions
from labeler.types import Embedding, Float32, Float64, MaskSet, Prompts, StageSeconds, UInt8, UInt32, join_runs


def generate_masks(pixels: UInt8, *, predictor: Predictor, options: MaskOptions) -> tuple[MaskSet, StageSeconds]:
    """Find all masks of an image.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        predictor: the model.
        options: resolved options; see ``options.MaskOptions``.

    Returns:
        The masks, best first (predicted IoU in a crop, smaller crops first, untouched before repaired), and where the
        time went. No masks is a normal answer.
    """
    image_hw = (pixels.shape[0], pixels.shape[1])
    grids = _make_grids(options)
    crops = make_crops(image_hw, n_layers=options.crop_n_layers, overlap_ratio=options.crop_overlap_ratio)

    # Label the image and its crops, each as if it were an image.
    found, seconds = [], [StageSeconds(0.0, 0.0, 0.0)]
    for crop in crops:
        masks, crop_seconds = _label_crop(pixels, crop, grids[crop.layer], predictor=predictor, options=options)
        found.append(masks)
        seconds.append(crop_seconds)

    # Drop what several crops found, preferring the smaller crop.
    start = perf_counter()
    masks = MaskSet.concat(found, image_hw=image_hw)
    if len(crops) > 1:
        masks = masks.take(
            keep_best_boxes(masks.boxes_xyxy, scores=_inverse_crop_areas(masks), iou_thresh=options.crop_nms_thresh)
        )

    # Fill small holes, drop small islands, and the duplicates that makes.
    if options.min_mask_region_area > 0:
        masks = _repair_masks(masks, options, threads=predictor.threads)

    # In an image one pixel wide or high no box has an area, so suppression is blind: drop equal masks instead.
    if min(image_hw) == 1:
        masks = _drop_equal_masks(masks)
    seconds.append(StageSeconds(0.0, 0.0, perf_counter() - start))
    return masks, StageSeconds(*(sum(stage) for stage in zip(*seconds, strict=True)))


def warm_up(predictor: Predictor, options: MaskOptions) -> None:
    """Compile, or take from the cache, all that labels an image: graphs and loops. The encoder is not run: it is slow."""
    side = predictor.info.image_size
    features = np.zeros(predictor.info.embedding_shape, np.float32)
    embedding = Embedding(features=features, crop_xyxy=(0, 0, side, side), image_hw=(side, side), input_hw=(side, side))
    points = np.full((2, 2), side / 2)  # Two, for one alone is answered by graphs of its own.
    masks, _ = _ask(points, embedding, predictor=predictor, options=options.model_copy(update={"pred_iou_thresh": 0.0}))
    if options.min_mask_region_area > 0:
        _repair_masks(masks, options, threads=predictor.threads)


def _label_crop(
    pixels: UInt8, crop: Crop, grid: Float64, *, predictor: Predictor, options: MaskOptions
) -> tuple[MaskSet, StageSeconds]:
    """All masks of one crop, in the image's frame, without duplicates."""
    start = perf_counter()
    embedding = predictor.embed(pixels, crop_xyxy=crop.box_xyxy)
    encode_s = perf_counter() - start

    masks = MaskSet.empty(embedding.image_hw)
    select_s = 0.0
    points = grid * embedding.crop_hw[::-1]
    for asked in plan_rounds(grid) if options.points == "adaptive" else [np.arange(len(grid))]:
        if len(masks):
            # Points well inside what was found would most likely find it again.
            reach_xy = np.array(embedding.crop_hw[::-1]) / np.sqrt(len(grid))
            asked = asked[~lie_well_inside(points[asked] + crop.box_xyxy[:2], masks, reach_xy=reach_xy)]
        found, seconds = _ask(points[asked], embedding, predictor=predictor, options=options)
        masks = MaskSet.concat([masks, found], image_hw=embedding.image_hw)
        select_s += seconds

    # Drop what several points found, preferring the higher predicted IoU.
    kept = keep_best_boxes(masks.boxes_xyxy, scores=masks.predicted_iou, iou_thresh=options.box_nms_thresh)
    masks = masks.take(kept)
    return masks, StageSeconds(encode_s, perf_counter() - start - encode_s - select_s, select_s)


def _ask(points_in_crop: Float64, embedding: Embedding, *, predictor: Predictor, options: MaskOptions) -> tuple[MaskSet, float]:
    """All masks that points (P, 2) find and that pass, in their order, and the seconds that went into looking at logits.

    A prompt's masks are traced by the thread that drew them, while their logits are in its cache: no thread waits for
    the others before all points are asked.
    """
    tracer = predictor.make_tracer(embedding, stability_score_offset=options.stability_score_offset)
    points_xy = points_in_crop + np.array(embedding.crop_xyxy[:2])
    found: dict[int, list[TracedMask]] = {}
    seconds: list[float] = []

    def select(prompt: int, predicted_iou: Float32, logits: Float32) -> None:
        start = perf_counter()
        traced = [
            tracer.trace(plane, predicted_iou=iou, point_xy=points_xy[prompt])
            for plane, iou in zip(logits, predicted_iou, strict=True)
            # By predicted IoU first: it needs no pixel.
            if options.pred_iou_thresh <= 0 or iou > np.float32(options.pred_iou_thresh)
        ]
        found[prompt] = [mask for mask in traced if _is_good(mask, embedding, options=options)]
        seconds.append(perf_counter() - start)

    predictor.predict(
        embedding,
        Prompts(points_xy=points_in_crop[:, None], labels=np.ones((len(points_in_crop), 1), np.int32)),
        iou_above=options.pred_iou_thresh if options.pred_iou_thresh > 0 else None,
        receive=select,
    )
    masks = tracer.collect([mask for prompt in sorted(found) for mask in found[prompt]])
    cut_off = boxes_touch_crop_edge(masks.boxes_xyxy, crop_xyxy=embedding.crop_xyxy, image_hw=embedding.image_hw)
    return masks.take(~cut_off), sum(seconds) / predictor.threads


def _is_good(mask: TracedMask, embedding: Embedding, *, options: MaskOptions) -> bool:
    """Whether a mask passes by its stability and its size."""
    is_stable = options.stability_score_thresh <= 0 or mask.stability >= np.float32(options.stability_score_thresh)
    largest = options.max_mask_area_ratio * embedding.image_hw[0] * embedding.image_hw[1]
    return bool(is_stable and 0 < mask.area <= largest)


def _repair_masks(masks: MaskSet, options: MaskOptions, *, threads: int) -> MaskSet:
    """Masks without small holes and islands; of those that now coincide, one that needed no repair is preferred."""

    def repair(i: int) -> tuple[UInt32, bool]:
        return remove_small_regions(masks.runs(i), image_hw=masks.image_hw, min_area=options.min_mask_region_area)

    with ThreadPoolExecutor(threads) as pool:
        repaired = list(pool.map(repair, range(len(masks))))
    boxes, areas = masks.boxes_xyxy.copy(), masks.areas.copy()
    untouched = np.ones(len(masks), np.float32)
    for i, (runs, changed) in enumerate(repaired):
        if changed:
            untouched[i] = 0.0
            boxes[i], areas[i] = measure_runs(runs, image_hw=masks.image_hw)
    run_lengths, run_offsets = join_runs([runs for runs, _ in repaired])
    repaired_masks = MaskSet(
        image_hw=masks.image_hw,
        run_lengths=run_lengths,
        run_offsets=run_offsets,
        boxes_xyxy=boxes,
        areas=areas,
        predicted_iou=masks.predicted_iou,
        stability_score=masks.stability_score,
        points_xy=masks.points_xy,
        crop_boxes_xyxy=masks.crop_boxes_xyxy,
    )
    iou_thresh = max(options.box_nms_thresh, options.crop_nms_thresh)
    return repaired_masks.take(keep_best_boxes(boxes, scores=untouched, iou_thresh=iou_thresh))


def _drop_equal_masks(masks: MaskSet) -> MaskSet:
    """The first of each group of masks with the same pixels."""
    first = {masks.runs(i).tobytes(): i for i in reversed(range(len(masks)))}
    return masks.take(np.array(sorted(first.values()), np.int64))


def _make_grids(options: MaskOptions) -> list[Float64]:
    """One grid of points (n, 2) in 0-1 for each crop layer."""
    if options.point_grids is not None:
        return [np.array(grid, np.float64).reshape(-1, 2) for grid in options.point_grids]
    return make_layer_grids(
        options.points_per_side,
        n_layers=options.crop_n_layers,
        downscale_factor=options.crop_n_points_downscale_factor,
    )


def _inverse_crop_areas(masks: MaskSet) -> Float32:
    x0, y0, x1, y1 = masks.crop_boxes_xyxy.T
    scores: Float32 = np.float32(1) / ((x1 - x0) * (y1 - y0)).astype(np.float32)
    return scores
