"""The two tables of prompts: what was asked and what became of it, rows <-> Arrow. Must not know who asks or answers.

Their columns stand in ``labeler.tables``. Every prompt leaves one row, whatever happens to its image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from labeler import tables
from labeler.errors import PromptError
from labeler.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """One row of the prompts table: its mask, or the reason why it has none."""

    prompt: Prompt
    mask_id: int | None = None
    error_kind: str | None = None
    error_message: str | None = None


def add_prompts(
    batch: pa.RecordBatch, *, prompt_ids: Sequence[int], category_ids: Sequence[int | None], points: Sequence[Any]
) -> pa.RecordBatch:
    """Rows of ``masks_to_batch`` with what asked for each: its prompt, its category and its points."""
    columns = {name: batch.column(name) for name in tables.MASKS_SCHEMA.names}
    columns["point_coords"] = pa.array(points, tables.MASKS_SCHEMA.field("point_coords").type)
    columns["prompt_id"] = pa.array(prompt_ids, pa.int64())
    columns["category_id"] = pa.array(category_ids, pa.int64())
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=tables.make_schema("masks", prompted=True))


def prompts_to_batch(rows: Sequence[PromptRow]) -> pa.RecordBatch:
    """Rows of the prompts table as Arrow columns."""
    values = [
        {
            **_to_values(row.prompt),
            "status": "ok" if row.error_kind is None else "error",
            "error_kind": row.error_kind,
            "error_message": row.error_message,
            "mask_id": row.mask_id,
        }
        for row in rows
    ]
    return pa.RecordBatch.from_pylist(values, schema=tables.PROMPTS_SCHEMA)


def values_to_row(values: Mapping[str, Any]) -> PromptRow:
    """A row of the prompts table as a dictionary, back as it was: the inverse of ``prompts_to_batch``."""
    return PromptRow(
        prompt=_to_prompt(values),
        mask_id=values["mask_id"],
        error_kind=values["error_kind"],
        error_message=values["error_message"],
    )


def plan_to_batch(prompts: Iterable[Prompt], *, shard: int) -> pa.RecordBatch:
    """What one shard is asked, as rows of the plan of prompts."""
    values = [
        {
            **_to_values(prompt),
            "frame_width": prompt.frame_hw and prompt.frame_hw[1],
            "frame_height": prompt.frame_hw and prompt.frame_hw[0],
            "error_kind": prompt.error and prompt.error.kind,
            "error_message": prompt.error and prompt.error.reason,
            "shard": shard,
        }
        for prompt in prompts
    ]
    return pa.RecordBatch.from_pylist(values, schema=tables.PROMPTS_PLAN_SCHEMA)


def values_to_prompt(values: Mapping[str, Any]) -> Prompt:
    """A row of the plan of prompts as a dictionary, back as it was: the inverse of ``plan_to_batch``."""
    width, height, kind = values["frame_width"], values["frame_height"], values["error_kind"]
    return _to_prompt(
        values,
        frame_hw=None if width is None else (height, width),
        error=None if kind is None else PromptError(kind, values["error_message"]),
    )


def _to_values(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "source_prompt_id": prompt.source_id,
        "image": prompt.image,
        "image_id": prompt.image_id,
        "category_id": prompt.category_id,
        "box_xyxy": prompt.box_xyxy,
        "points_xy": prompt.points_xy,
        "point_labels": prompt.point_labels,
    }


def _to_prompt(values: Mapping[str, Any], **more: Any) -> Prompt:
    box = values["box_xyxy"]
    return Prompt(
        prompt_id=values["prompt_id"],
        source_id=values["source_prompt_id"],
        image=values["image"],
        image_id=values["image_id"],
        category_id=values["category_id"],
        box_xyxy=None if box is None else tuple(box),
        points_xy=tuple(map(tuple, values["points_xy"] or ())),
        point_labels=tuple(values["point_labels"] or ()),
        **more,
    )
