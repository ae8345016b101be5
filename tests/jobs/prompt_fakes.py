"""What tests of prompts share: a file of them, a run with them frozen and labeled without Ray, an engine that fills boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from fake_engine import DiscEngine
from fakes import FAKE_ENGINE, label_shards

from jobs.options import Selection
from jobs.plan import RunRecord, RunSpec, describe_model, freeze_run
from jobs.prompts import describe_prompts, match_prompts
from jobs.sources import list_images
from labeler import storage
from labeler.engine import Prediction
from labeler.model_folder import read_model_info
from labeler.options import MaskOptions, PromptOptions


class BoxEngine(DiscEngine):
    """Answers each prompt with the inside of its box: the last two points are its corners."""

    def predict(self, features: np.ndarray, *, points: np.ndarray, labels: np.ndarray, receive: Any, **_more: Any) -> Any:
        """Predicted IoU (P, 4); logits (4, 4h, 4w) that change sign at the box's edges go to who receives them."""
        side = 4 * self._shape[2]
        y, x = np.mgrid[:side, :side] + 0.5
        (x0, y0), (x1, y1) = points[:, -2].T[:, :, None, None], points[:, -1].T[:, :, None, None]
        inside = np.minimum.reduce([x - x0, x1 - x, y - y0, y1 - y])
        logits = np.repeat(inside[:, None], 4, axis=1).astype(np.float32)
        iou = np.full((len(points), 4), 0.9, np.float32)
        for row, answer in enumerate(logits):
            receive(row, iou[row], answer)
        return Prediction(predicted_iou=iou, rows=np.arange(len(points)), logits=logits[:0])


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def freeze_prompts(
    photos: Path, prompts: Path, output: Path, model: Path, *, images_per_shard: int = 3, **options: Any
) -> RunRecord:
    asked = describe_prompts(str(prompts), options=PromptOptions(**options), frozen=None)
    spec = RunSpec(
        input=storage.path_to_uri(photos),
        selection=Selection(),
        options=MaskOptions(),
        model=describe_model(read_model_info(model), name=str(model)),
        prompts=asked,
    )
    listing = list_images(spec.input, selection=spec.selection)
    with match_prompts(asked, listing=listing, say=print) as matched:
        return freeze_run(
            str(output), spec, images_per_shard=images_per_shard, listing=listing, model_folder=model, prompts=matched
        )


def label_prompts(
    photos: Path, prompts: Path, output: Path, model: Path, *, engine: str = FAKE_ENGINE, **options: Any
) -> RunRecord:
    """Freeze and label a run with prompts in this process."""
    record = freeze_prompts(photos, prompts, output, model, **options)
    label_shards(output, range(record.num_shards), engine=engine)
    return record
