"""A training run's checkpoint to the embedded model: f16 state, architecture, default thresholds, model folder.

    python -m training.release --run FOLDER --photos DIR --output labeler/assets/tiny --state tests/data/tiny

The thresholds are those whose masks on validation scenes fit the scenes' regions best. Must not know how the run went.
"""

import argparse
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from labeler.convert import convert_checkpoint
from labeler.engine import Engine
from labeler.generator import generate_masks
from labeler.geometry import keep_best_boxes
from labeler.model_folder import read_model_info
from labeler.options import resolve_mask_options
from labeler.predictor import Predictor
from labeler.types import MaskSet
from training.evaluate import mask_set_to_rles
from training.photos import MEASURING, load_photos
from training.prompts import MEASURED
from training.scenes import PhotoBank, Scene, draw_scene
from training.train import CHECKPOINT

logger = logging.getLogger(__name__)

STATE_NAME, ARCHITECTURE_NAME = "state_f16.pth", "tiny.json"
TUNING_SEEDS = range(2000, 2016)  # beside the validation scenes, so that those stay unseen
PRED_IOU_CHOICES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)
STABILITY_CHOICES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OFFSET_CHOICES = (1.0, 0.5, 0.25)
SAME_REGION_IOU = 0.6
UNFILTERED = {"points_per_side": 16, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def write_state(run: Path, *, folder: Path) -> Path:
    """The checkpoint's weights, rounded to f16, with the architecture beside them; the path of the state."""
    checkpoint = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in checkpoint["sam"].items()}
    torch.save(state, folder / STATE_NAME)
    (folder / ARCHITECTURE_NAME).write_text(json.dumps(checkpoint["architecture"], indent=2) + "\n", encoding="utf-8")
    return folder / STATE_NAME


def choose_thresholds(predictor: Predictor, scenes: Sequence[Scene]) -> dict[str, float]:
    """The thresholds of the best F2 of precision (masks that fit a region) and recall (regions that a mask fits).

    Recall counts more, for a mask too many can be dropped by its scores, one that was not kept can't be had back.
    """
    scores: dict[tuple[float, float, float], float] = {}
    for offset in OFFSET_CHOICES:
        answers = [_answer_all(predictor, scene, offset=offset) for scene in scenes]
        for pred_iou, stability in itertools.product(PRED_IOU_CHOICES, STABILITY_CHOICES):
            fitting, masks, found, regions = np.sum([_count_fits(*answer, pred_iou, stability) for answer in answers], axis=0)
            precision, recall = fitting / max(masks, 1), found / regions
            score = 5.0 * precision * recall / max(4.0 * precision + recall, 1e-9)
            scores[offset, pred_iou, stability] = score
            told = (offset, pred_iou, stability, masks / len(scenes), precision, recall, score)
            logger.info("offset %.2f pred_iou %.2f stability %.2f: %.1f masks a scene, %.2f fit, %.2f found, F2 %.3f", *told)
    offset, pred_iou, stability = max(scores, key=lambda key: scores[key])
    return {"pred_iou_thresh": pred_iou, "stability_score_thresh": stability, "stability_score_offset": offset}


def _answer_all(predictor: Predictor, scene: Scene, *, offset: float) -> tuple[MaskSet, NDArray[np.bool_]]:
    """Every mask of a grid, unfiltered, and which region it fits: (N, regions)."""
    options = resolve_mask_options(UNFILTERED, {"stability_score_offset": offset})
    masks, _ = generate_masks(scene.pixels, predictor=predictor, options=options)
    regions = list_regions(scene, image_size=predictor.info.image_size)
    iou = np.asarray(coco_masks.iou(mask_set_to_rles(masks), regions, [0] * len(regions)), dtype=np.float64)
    return masks, iou.reshape(len(masks), len(regions)) >= SAME_REGION_IOU


def _count_fits(masks: MaskSet, fits: NDArray[np.bool_], pred_iou: float, stability: float) -> NDArray[np.int64]:
    """(masks that fit a region, masks, regions that a mask fits, regions) with these thresholds."""
    rows = np.nonzero((masks.predicted_iou > pred_iou) & (masks.stability_score >= stability))[0]
    kept = keep_best_boxes(
        masks.boxes_xyxy[rows], scores=masks.predicted_iou[rows], iou_thresh=resolve_mask_options().box_nms_thresh
    )
    fits = fits[rows[kept]]
    return np.array([fits.any(axis=1).sum(), len(fits), fits.any(axis=0).sum(), fits.shape[1]])


def list_regions(scene: Scene, *, image_size: int) -> list[dict[str, Any]]:
    """Every region of a scene that is large enough to ask for, once, as COCO RLE dicts."""
    masks: dict[bytes, dict[str, Any]] = {}
    for level in scene.levels:
        for region in np.unique(level)[1:] if level.min() == 0 else np.unique(level):
            mask: NDArray[np.uint8] = (level == region).astype(np.uint8)
            if mask.sum() >= MEASURED.min_area_ratio * image_size * image_size:
                rle = dict(coco_masks.encode(np.asfortranarray(mask)))
                masks[rle["counts"]] = rle
    return list(masks.values())


def main() -> None:
    """Read the flags and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the output folder of training.train")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the model folder")
    parser.add_argument("--state", type=Path, required=True, help="where the f16 state and the architecture go")
    parser.add_argument("--defaults", type=json.loads, help="default mask options as JSON; chosen on scenes where not given")
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    state = write_state(flags.run, folder=flags.state)
    architecture = str(flags.state / ARCHITECTURE_NAME)
    defaults = flags.defaults
    if defaults is None:
        with TemporaryDirectory() as name:
            convert_checkpoint(state, output=Path(name), model_type=architecture)
            info = read_model_info(Path(name))
            bank = PhotoBank.of(load_photos(flags.photos, cache=flags.run / "regions", begins=MEASURING))
            scenes = [draw_scene(np.random.default_rng(seed), size=info.image_size, bank=bank) for seed in TUNING_SEEDS]
            defaults = choose_thresholds(Predictor(Engine(Path(name), info, threads=flags.threads), info), scenes)
    convert_checkpoint(state, output=flags.output, model_type=architecture, defaults=defaults)
    logger.info("defaults %s", defaults)


if __name__ == "__main__":
    main()
