"""What is found in one image: all its masks, or those that prompts ask for; and a row for every prompt.

Must not know how an image is read, nor who writes what was found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jobs.plan import PlannedImage, RunRecord, find_part
from jobs.prompts import read_shard_prompts
from labeler.generator import generate_masks
from labeler.options import MaskOptions, PromptOptions
from labeler.predictor import Predictor
from labeler.prompt_rows import PromptRow, add_prompts
from labeler.prompted import answer_prompts
from labeler.prompts import Prompt
from labeler.tables import ImageRow, masks_to_batch
from labeler.types import Image, StageSeconds

ShardPrompts = Mapping[int | None, Sequence[Prompt]]
"""The prompts of a shard by the id of their image; under None those whose image the run does not have."""


class Found(NamedTuple):
    """The masks of one image as a record batch, where the time went, and the rows of its prompts."""

    batch: Any
    seconds: StageSeconds
    prompts: Sequence[PromptRow] = ()


def read_prompts(output: str, record: RunRecord, shard: int) -> ShardPrompts | None:
    """What is asked about the images of a shard; None in a run without prompts."""
    if record.prompts is None:
        return None
    part = find_part(record, shard)
    prompts: dict[int | None, list[Prompt]] = {}
    for prompt in read_shard_prompts(output, part=part, group=shard - record.plan[part].first_shard):
        prompts.setdefault(prompt.image_id, []).append(prompt)
    return prompts


def find_masks(
    picture: Image,
    *,
    image: PlannedImage,
    prompts: Sequence[Prompt] | None,
    predictor: Predictor,
    options: MaskOptions,
    prompt_options: PromptOptions | None,
) -> Found:
    """All masks of an image, or, where there is a list of prompts, the one of each prompt."""
    ids: dict[str, Any] = {"image_id": image.image_id, "file_name": image.ref.file_name}
    if prompts is None:
        masks, seconds = generate_masks(picture.pixels, predictor=predictor, options=options)
        return Found(masks_to_batch(masks, **ids), seconds)
    answers = answer_prompts(
        picture, prompts, predictor=predictor, options=options, prompt_options=prompt_options or PromptOptions()
    )
    mask_ids = {place: mask_id for mask_id, place in enumerate(answers.places.tolist())}
    rows = []
    for place, prompt in enumerate(prompts):
        error = answers.errors.get(place)
        if error is None:
            rows.append(PromptRow(prompt=answers.asked[place], mask_id=mask_ids[place]))
        else:
            rows.append(PromptRow(prompt=prompt, error_kind=error.kind, error_message=error.reason))
    answered = [prompts[place] for place in mask_ids]
    batch = add_prompts(
        masks_to_batch(answers.masks, **ids),
        prompt_ids=[prompt.prompt_id for prompt in answered],
        category_ids=[prompt.category_id for prompt in answered],
        points=[answers.asked[place].points_xy for place in mask_ids],
    )
    return Found(batch, answers.seconds, rows)


def complete_rows(
    prompts: ShardPrompts | None, results: Sequence[tuple[ImageRow, Sequence[PromptRow]]]
) -> list[PromptRow] | None:
    """A row for each prompt of a shard, in the order of its plan; None in a run without prompts.

    Args:
        prompts: what was planned.
        results: for each image of the shard, in order, its row and those of its prompts, if they could be asked.
    """
    if prompts is None:
        return None
    rows: list[PromptRow] = []
    for image, answered in results:
        planned = prompts.get(image.image_id, ())
        rows += answered or (
            _fail(prompt, image.error_kind or "internal", f"its image: {image.error_message}") for prompt in planned
        )
    rows += (_fail(prompt, "missing", "the run has no such image") for prompt in prompts.get(None, ()))
    num_planned = sum(map(len, prompts.values()))
    if len(rows) != num_planned:
        raise RuntimeError(f"there are {len(rows)} rows for {num_planned} prompts")
    return rows


def _fail(prompt: Prompt, kind: str, message: str) -> PromptRow:
    return PromptRow(prompt=replace(prompt, error=None), error_kind=kind, error_message=message)
