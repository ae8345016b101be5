"""Masks that somebody asked for: every prompt of an image gets its one mask. Must not know files, grids or jobs.

The image is encoded once, whole; prompts of the same shape are answered in batches. Nothing is dropped or repaired: no
threshold on scores, no suppression, no small regions. The answers are ``SamPredictor.predict_torch``'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from labeler.errors import PromptError
from labeler.generator import POINTS_PER_BATCH
from labeler.masks import Upsampling, trace_masks
from labeler.options import MaskOptions, PromptOptions
from labeler.predictor import MAX_POINTS, Prediction, Predictor
from labeler.prompts import Prompt, fit_prompt
from labeler.types import Embedding, Image, Int64, MaskSet, Prompts, StageSeconds


@dataclass(frozen=True, slots=True)
class Answers:
    """What some prompts of one image were answered.

    Attributes:
        asked: the prompts that could be asked, in the frame of the masks, by their place among all.
        masks: in the order of their prompts.
        places: (M,) int64, the place of each mask's prompt.
        errors: why a prompt has no mask, by its place.
        seconds: where the time went.
    """

    asked: Mapping[int, Prompt]
    masks: MaskSet
    places: Int64
    errors: Mapping[int, PromptError]
    seconds: StageSeconds


def answer_prompts(
    image: Image, prompts: Sequence[Prompt], *, predictor: Predictor, options: MaskOptions, prompt_options: PromptOptions
) -> Answers:
    """One mask for each prompt that can be asked. An image without any is not encoded.

    Args:
        image: the decoded picture.
        prompts: all of this image.
        predictor: the model.
        options: resolved; see ``options.USED_WITH_PROMPTS``.
        prompt_options: which of the model's answers are wanted, and the frame of the prompts.
    """
    asked, errors = _fit_prompts(prompts, image=image, options=options, prompt_options=prompt_options)
    if not asked:
        none = MaskSet.empty(image.hw)
        return Answers(asked, none, np.zeros(0, np.int64), errors, StageSeconds(0.0, 0.0, 0.0))
    start = perf_counter()
    embedding = predictor.embed(image.pixels)
    upsampling = predictor.plan_upsampling(embedding)
    encode_s = perf_counter() - start

    found, places, predict_s, post_s = [], [], 0.0, 0.0
    for batch in _batch(asked):
        start = perf_counter()
        best_of_three = prompt_options.prompt_masks == "best" and _is_single_point(asked[batch[0]])
        prediction = predictor.predict(embedding, _to_columns([asked[i] for i in batch]), multimask=best_of_three)
        predicted = perf_counter()
        found.append(_trace_best(prediction, embedding, upsampling, predictor.info.mask_threshold, options))
        places += batch
        predict_s += predicted - start
        post_s += perf_counter() - predicted

    start = perf_counter()
    masks = MaskSet.concat(found, image_hw=embedding.image_hw)
    order = np.argsort(np.array(places, np.int64), kind="stable")
    masks, in_order = masks.take(order), np.array(places, np.int64)[order]
    for place in in_order[masks.areas == 0].tolist():
        errors[place] = PromptError("no_mask", "the model answered with an empty mask")
    kept = masks.areas > 0
    post_s += perf_counter() - start
    return Answers(asked, masks.take(kept), in_order[kept], errors, StageSeconds(encode_s, predict_s, post_s))


def _fit_prompts(
    prompts: Sequence[Prompt], *, image: Image, options: MaskOptions, prompt_options: PromptOptions
) -> tuple[dict[int, Prompt], dict[int, PromptError]]:
    """Those that can be asked, and what is wrong with the others, by their places."""
    asked, errors = {}, {}
    for place, prompt in enumerate(prompts):
        try:
            asked[place] = fit_prompt(
                prompt, image=image, exif=options.exif, frame=prompt_options.prompts_frame, max_points=MAX_POINTS
            )
        except PromptError as error:
            errors[place] = error
    return asked, errors


def _batch(asked: Mapping[int, Prompt]) -> Iterator[list[int]]:
    """Places of prompts of the same shape: with a box or without, and as many points. A call's arrays have one shape, and
    padding points up would change the answer: SAM sees every point, also one that says nothing.
    """
    groups: dict[tuple[bool, int], list[int]] = {}
    for place, prompt in asked.items():
        groups.setdefault((prompt.box_xyxy is not None, len(prompt.points_xy)), []).append(place)
    for _, places in sorted(groups.items()):
        for begin in range(0, len(places), POINTS_PER_BATCH):
            yield places[begin : begin + POINTS_PER_BATCH]


def _is_single_point(prompt: Prompt) -> bool:
    return prompt.box_xyxy is None and len(prompt.points_xy) == 1


def _to_columns(prompts: Sequence[Prompt]) -> Prompts:
    boxes = [prompt.box_xyxy for prompt in prompts]
    return Prompts(
        points_xy=np.array([prompt.points_xy for prompt in prompts], np.float64).reshape(len(prompts), -1, 2),
        labels=np.array([prompt.point_labels for prompt in prompts], np.int32).reshape(len(prompts), -1),
        boxes_xyxy=None if boxes[0] is None else np.array(boxes, np.float64),
    )


def _trace_best(
    prediction: Prediction,
    embedding: Embedding,
    upsampling: tuple[Upsampling, Upsampling],
    mask_threshold: float,
    options: MaskOptions,
) -> MaskSet:
    """Of each prompt's answers the one of highest predicted IoU, at the image's resolution; it may be empty."""
    count = len(prediction.predicted_iou)
    best = np.arange(count), prediction.predicted_iou.argmax(axis=1)
    traced = trace_masks(
        prediction.logits[best],
        rows=upsampling[0],
        columns=upsampling[1],
        crop_xyxy=embedding.crop_xyxy,
        image_hw=embedding.image_hw,
        mask_threshold=mask_threshold,
        stability_score_offset=options.stability_score_offset,
    )
    return MaskSet(
        image_hw=embedding.image_hw,
        run_lengths=traced.run_lengths,
        run_offsets=traced.run_offsets,
        boxes_xyxy=traced.boxes_xyxy,
        areas=traced.areas,
        predicted_iou=prediction.predicted_iou[best],
        stability_score=traced.stability_score,
        points_xy=np.full((count, 2), np.nan),  # A prompt may have any number of points; the prompts table holds them.
        crop_boxes_xyxy=np.tile(np.array(embedding.crop_xyxy, np.int64), (count, 1)),
    )
