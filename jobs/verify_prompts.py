"""Are a run's prompts whole? Each that was planned has one row, each row its mask or its reason, each mask its prompt.

Trusts nothing but ``run.json`` and rows that ``jobs.verify`` has found to be those of the plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.asking import ShardPrompts
from jobs.plan import RunRecord
from jobs.prompts import hash_file
from labeler import tables
from labeler.errors import PROMPT_ERROR_KINDS
from labeler.prompts import Prompt


def check_prompts_plan(output: str, record: RunRecord) -> Iterator[str]:
    """Whether the frozen prompts are those that ``run.json`` names. Raises as ``labeler.storage`` does."""
    if record.prompts_plan is None:
        return
    for number, sha256 in enumerate(record.prompts_plan.parts):
        uri = tables.locate_part(output, "prompts_plan", number)
        try:
            if hash_file(uri) != sha256:
                yield f"{uri} is not the part of the prompts that run.json names"
        except FileNotFoundError:
            yield f"{uri} is missing"


def check_prompt_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    planned: ShardPrompts,
    images: Sequence[Mapping[str, Any]],
    masks: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    """What is wrong with a prompts part.

    Args:
        rows: its rows.
        planned: the shard's prompts, by image.
        images, masks: the rows of the shard's other parts.
    """
    expected = [prompt for image in images for prompt in planned.get(image["image_id"], ())]
    expected += planned.get(None, ())
    if [row["prompt_id"] for row in rows] != [prompt.prompt_id for prompt in expected]:
        yield f"{len(rows)} rows are not the {len(expected)} prompts of the plan, each once and in order"
        return
    for row, prompt in zip(rows, expected, strict=True):
        fault = _find_row_fault(row, prompt)
        if fault:
            yield f"prompt {row['prompt_id']} {fault}"
    answered = [
        (row["image_id"], row["mask_id"], row["prompt_id"], row["category_id"]) for row in rows if row["status"] == "ok"
    ]
    if answered != [(mask["image_id"], mask["mask_id"], mask["prompt_id"], mask["category_id"]) for mask in masks]:
        yield f"its {len(answered)} answered prompts are not those that the {len(masks)} masks name, in order"


def _find_row_fault(row: Mapping[str, Any], prompt: Prompt) -> str | None:
    known = (row["source_prompt_id"], row["image"], row["image_id"], row["category_id"])
    if known != (prompt.source_id, prompt.image, prompt.image_id, prompt.category_id):
        return "is another prompt than planned"
    if row["status"] == "ok":
        return "is ok, but has an error or no mask" if row["error_kind"] is not None or row["mask_id"] is None else None
    if row["status"] != "error" or row["error_kind"] not in PROMPT_ERROR_KINDS or row["mask_id"] is not None:
        return f"has status {row['status']}, error_kind {row['error_kind']}, mask_id {row['mask_id']}"
    return None
