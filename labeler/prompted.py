"""Masks that somebody asked for: every prompt of an image gets its one mask. Must not know files, grids or jobs.

The image is encoded once, whole; prompts of the same shape are answered in batches. Nothing is dropped or repaired: no
threshold on scores, no suppression, no small regions. The answers are ``SamPredictor.predict_torch``'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np

from labeler.errors import PromptError
from labeler.masks import TracedMask
from labeler.options import MaskOptions, PromptOptions
from labeler.predictor import Predictor
from labeler.prompts import Prompt, fit_prompt
from labeler.types import Float32, Image, Int64, MaskSet, Prompts, StageSeconds


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
    encode_s = perf_counter() - start

    tracer = predictor.make_tracer(embedding, stability_score_offset=options.stability_score_offset)
    found: dict[int, TracedMask] = {}
    seconds: list[float] = []

    def trace_best(places: Sequence[int], prompt: int, predicted_iou: Float32, logits: Float32) -> None:
        start = perf_counter()
        best = predicted_iou.argmax()
        point_xy = np.full(2, np.nan)  # A prompt may have many; the prompts table holds them.
        found[places[prompt]] = tracer.trace(logits[best], predicted_iou=predicted_iou[best], point_xy=point_xy)
        seconds.append(perf_counter() - start)

    for batch in _group(asked):
        best_of_three = prompt_options.prompt_masks == "best" and _is_single_point(asked[batch[0]])
        prompts_of_batch = _to_columns([asked[i] for i in batch])
        predictor.predict(embedding, prompts_of_batch, multimask=best_of_three, receive=partial(trace_best, batch))

    in_order = np.array(sorted(found), np.int64)
    masks = tracer.collect([found[place] for place in in_order.tolist()])
    for place in in_order[masks.areas == 0].tolist():
        errors[place] = PromptError("no_mask", "the model answered with an empty mask")
    kept = masks.areas > 0
    post_s = sum(seconds) / predictor.threads
    predict_s = perf_counter() - start - encode_s - post_s
    return Answers(asked, masks.take(kept), in_order[kept], errors, StageSeconds(encode_s, predict_s, post_s))


def _fit_prompts(
    prompts: Sequence[Prompt], *, image: Image, options: MaskOptions, prompt_options: PromptOptions
) -> tuple[dict[int, Prompt], dict[int, PromptError]]:
    """Those that can be asked, and what is wrong with the others, by their places."""
    asked, errors = {}, {}
    for place, prompt in enumerate(prompts):
        try:
            asked[place] = fit_prompt(prompt, image=image, exif=options.exif, frame=prompt_options.prompts_frame)
        except PromptError as error:
            errors[place] = error
    return asked, errors


def _group(asked: Mapping[int, Prompt]) -> list[list[int]]:
    """Places of prompts of the same shape: with a box or without, and as many points. A call's arrays have one shape, and
    padding points up would change the answer: SAM sees every point, also one that says nothing.
    """
    groups: dict[tuple[bool, int], list[int]] = {}
    for place, prompt in asked.items():
        groups.setdefault((prompt.box_xyxy is not None, len(prompt.points_xy)), []).append(place)
    return [places for _, places in sorted(groups.items())]


def _is_single_point(prompt: Prompt) -> bool:
    return prompt.box_xyxy is None and len(prompt.points_xy) == 1


def _to_columns(prompts: Sequence[Prompt]) -> Prompts:
    boxes = [prompt.box_xyxy for prompt in prompts]
    return Prompts(
        points_xy=np.array([prompt.points_xy for prompt in prompts], np.float64).reshape(len(prompts), -1, 2),
        labels=np.array([prompt.point_labels for prompt in prompts], np.int32).reshape(len(prompts), -1),
        boxes_xyxy=None if boxes[0] is None else np.array(boxes, np.float64),
    )
