"""Measure a trained model: unseen scenes, clicks on human-made regions, and the whole generator against a classical method.

    python -m training.evaluate scenes  --state state.pth --architecture tiny.json --photos DIR
    python -m training.evaluate clicks  --state state.pth --architecture tiny.json --regions eval/coco_panoptic
    python -m training.evaluate masks   --model FOLDER --regions eval/coco_panoptic

Must not know how the model was trained.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_masks
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional

from labeler.convert import load_sam
from labeler.engine import Engine
from labeler.generator import generate_masks
from labeler.geometry import fit_in_square
from labeler.images import resize_image
from labeler.model_folder import read_model_info
from labeler.options import resolve_mask_options
from labeler.predictor import Predictor
from labeler.types import MaskSet
from training.classical import segment_pooled
from training.coco import LabeledPhoto, read_labeled_photos
from training.model import decode, embed_points, encode
from training.photos import MEASURING, load_photos
from training.prompts import MEASURED, Example, make_example
from training.scenes import PhotoBank, draw_scene

VALIDATION_SEEDS = range(1000)  # fixed before any training; training draws from other seeds (train.py)
CLICKS_A_SCENE, BOXES_A_SCENE = 12, 4
CLICK_CLASSES = {"pixels from a border": (0, 2, 4, 8, 16), "area": (0, 150, 400, 1200, 4000)}
AR_THRESHOLDS = np.arange(0.5, 0.96, 0.05)
NUMBERS_OF_MASKS = (50, 100)

Bool = NDArray[np.bool_]
Floats = NDArray[np.float64]


# Unseen scenes ------------------------------------------------------------------------------------------------------


def measure_scenes(sam: Sam, *, bank: PhotoBank, seeds: Sequence[int] = VALIDATION_SEEDS) -> dict[str, float]:
    """The figures of the scenes of these seeds, each by its name."""
    rows = [_measure_example(sam, example) for example in _draw_examples(bank, seeds, size=int(sam.image_encoder.img_size))]
    table = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    click, found = table["is_click"] > 0, table["found"] > 0
    drawn = click & ~found
    return {
        "clicks on drawn things": float(drawn.sum()),
        "best of three": float(table["best"][drawn].mean()),
        "chosen by predicted IoU, part or whole": float(table["chosen"][drawn].mean()),
        "chosen by predicted IoU, the very one asked for": float(table["chosen_asked"][drawn].mean()),
        "correlation of predicted and true IoU": _correlation(table, drawn),
        "box on drawn things": float(table["single"][~click & ~found].mean()),
        "best of three, regions found in photographs": float(table["best"][click & found].mean()),
        "chosen, regions found in photographs": float(table["chosen"][click & found].mean()),
        "correlation, all clicks": _correlation(table, click),
        "box, regions found in photographs": float(table["single"][~click & found].mean()),
        **_split_clicks({name: column[drawn] for name, column in table.items()}),
    }


def _split_clicks(table: dict[str, Floats]) -> dict[str, float]:
    """Best of three by where a click lies and by how large the thing is (what of these is known), in pixels of the input."""
    figures = {}
    for column in (name for name in CLICK_CLASSES if name in table):
        for low, high in pairwise((*CLICK_CLASSES[column], math.inf)):
            rows = (table[column] >= low) & (table[column] < high)
            if rows.any():
                figures[f"best of three, {column} {low} to {high}, {rows.sum()} clicks"] = float(table["best"][rows].mean())
    return figures


def _draw_examples(bank: PhotoBank, seeds: Sequence[int], *, size: int) -> Iterator[Example]:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        try:
            scene = draw_scene(rng, size=size, bank=bank)
            yield make_example(
                scene, rng, size=size, num_clicks=CLICKS_A_SCENE, num_boxes=BOXES_A_SCENE, asking=MEASURED, box_shake=0.0
            )
        except ValueError:  # nothing to ask for
            continue


@torch.no_grad()
def _measure_example(sam: Sam, example: Example) -> dict[str, Floats]:
    """Columns, a row a prompt: the three masks' predicted and true IoUs as (P, 3), the rest (P,)."""
    batch = {name: torch.from_numpy(np.asarray(value))[None] for name, value in vars(example).items()}
    features = encode(sam, batch["pixels"], batch["size_hw"])
    logits, predicted = decode(sam, features, embed_points(sam, batch["points_xy"], batch["labels"]))
    masks = functional.interpolate(logits[0], scale_factor=2.0, mode="bilinear", align_corners=False) > 0  # (P, 4, S, S)
    wanted = batch["levels"][0][None] == torch.where(batch["ids"] == 0, -1, batch["ids"])[0, :, :, None, None]  # (P, 3, S, S)
    iou = _pair_iou(masks, wanted)  # (P, 4, 3)
    asked = iou[torch.arange(len(iou)), :, batch["pick"][0]]
    fits = iou.amax(-1)[:, 1:]
    chosen = predicted[0, :, 1:].argmax(-1, keepdim=True)
    regions = wanted[torch.arange(len(iou)), batch["pick"][0]]  # (P, S, S)
    points_xy = example.points_xy[:, 0].astype(int)
    columns = {
        "is_click": batch["labels"][0, :, 0] == 1,
        "found": batch["found"][0],
        "best": asked[:, 1:].amax(-1),
        "chosen": fits.gather(1, chosen)[:, 0],
        "chosen_asked": asked[:, 1:].gather(1, chosen)[:, 0],
        "single": asked[:, 0],
        "predicted": predicted[0, :, 1:],
        "true": fits,
        "area": regions.flatten(1).sum(-1),
        "pixels from a border": torch.tensor([_measure_depth(*pair) for pair in zip(regions.numpy(), points_xy, strict=True)]),
    }
    return {name: column.double().numpy() for name, column in columns.items()}


def _measure_depth(mask: Bool, at_xy: NDArray[np.int64]) -> float:
    """How far a pixel lies from what is outside a mask (H, W); 0 outside."""
    x, y = at_xy
    return float(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)[y, x])


def _pair_iou(masks: Tensor, wanted: Tensor) -> Tensor:
    """(P, K, S, S) and (P, L, S, S) bool to IoU (P, K, L)."""
    first, second = masks.flatten(2).float(), wanted.flatten(2).float()
    overlap = first @ second.transpose(1, 2)
    return overlap / (first.sum(-1)[:, :, None] + second.sum(-1)[:, None] - overlap).clamp(min=1.0)


def _correlation(table: dict[str, Floats], rows: Bool) -> float:
    return float(np.corrcoef(table["predicted"][rows].ravel(), table["true"][rows].ravel())[0, 1])


# Human-made regions -------------------------------------------------------------------------------------------------


def find_innermost(mask: Bool) -> tuple[float, float]:
    """The (x, y) farthest from anything outside a mask (H, W), the picture's edge included."""
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x - 1), float(y - 1)


@torch.no_grad()
def measure_clicks(sam: Sam, photos: Iterator[LabeledPhoto]) -> dict[str, float]:
    """Mean IoU of a click at the innermost point of each region: best of three, and the one chosen; the best also by area."""
    side = int(sam.image_encoder.img_size)
    best, chosen, area = [], [], []
    for photo in photos:
        image_hw = photo.pixels.shape[:2]
        input_hw = fit_in_square((image_hw[0], image_hw[1]), side=side)
        padded = np.zeros((1, side, side, 3), dtype=np.uint8)
        padded[0, : input_hw[0], : input_hw[1]] = resize_image(photo.pixels, size_hw=input_hw)
        features = encode(sam, torch.from_numpy(padded), torch.tensor([input_hw]))
        for region in photo.regions:
            wanted = coco_masks.decode(region).astype(bool)
            x, y = find_innermost(wanted)
            point = [x * input_hw[1] / image_hw[1], y * input_hw[0] / image_hw[0]]
            points, labels = torch.tensor([[[point, [0.0, 0.0]]]]), torch.tensor([[[1, -1]]])
            logits, predicted = decode(sam, features, embed_points(sam, points, labels))
            masks = sam.postprocess_masks(logits[0], input_hw, image_hw)[0, 1:].numpy() > 0
            iou = [(mask & wanted).sum() / max((mask | wanted).sum(), 1) for mask in masks]
            best.append(max(iou))
            chosen.append(iou[int(predicted[0, 0, 1:].argmax())])
            area.append(wanted.sum() * (input_hw[0] * input_hw[1]) / (image_hw[0] * image_hw[1]))
    return {
        "regions": float(len(best)),
        "click, best of three": float(np.mean(best)),
        "click, chosen by predicted IoU": float(np.mean(chosen)),
        **_split_clicks({"best": np.array(best), "area": np.array(area)}),
    }


# The whole generator ------------------------------------------------------------------------------------------------


def measure_masks(predictor: Predictor, photos: Iterator[LabeledPhoto], *, given: dict[str, Any]) -> dict[str, float]:
    """Recall of human-made regions by the generator, and by a classical method, at equal numbers of masks an image."""
    options = resolve_mask_options(given, model_defaults=predictor.info.defaults)
    counts: list[float] = []
    recalls: dict[str, list[Floats]] = {}
    for photo in photos:
        masks, _ = generate_masks(photo.pixels, predictor=predictor, options=options)
        counts.append(len(masks))
        ours = mask_set_to_rles(masks)
        by_area = sorted(ours, key=lambda rle: -float(coco_masks.area(rle)))
        columns = {"generator, all": ours}
        largest, shuffled = segment_pooled(photo.pixels)
        for number in NUMBERS_OF_MASKS:
            columns[f"generator, best {number}"] = ours[:number]
            columns[f"generator, largest {number}"] = by_area[:number]
            columns[f"felzenszwalb, largest {number}"] = largest[:number]
            columns[f"felzenszwalb, random {number}"] = shuffled[:number]
        for name, found in columns.items():
            recalls.setdefault(name, []).append(best_ious(photo.regions, found))
    figures = {"masks an image": float(np.mean(counts)), "fewest": min(counts), "most": max(counts)}
    for name, per_photo in recalls.items():
        iou = np.concatenate(per_photo)
        figures[f"{name}: AR"] = float((iou[:, None] >= AR_THRESHOLDS).mean())
        figures[f"{name}: found at 0.5"] = float((iou >= 0.5).mean())
    return figures


def mask_set_to_rles(masks: MaskSet) -> list[dict[str, Any]]:
    """COCO RLE dicts of a mask set, in its order: the surest first."""
    height, width = masks.image_hw
    rows = [{"size": [height, width], "counts": masks.runs(i).tolist()} for i in range(len(masks))]
    return [dict(coco_masks.frPyObjects(row, height, width)) for row in rows]


def best_ious(regions: list[dict[str, Any]], found: list[dict[str, Any]]) -> Floats:
    """For each region the IoU of the mask that fits it best; 0 where nothing was found."""
    if not found or not regions:
        return np.zeros(len(regions))
    iou = np.asarray(coco_masks.iou(found, regions, [0] * len(regions)), dtype=np.float64)
    return np.asarray(iou.max(axis=0))


def main() -> None:
    """Read the flags and print the figures, one a line."""
    parser = argparse.ArgumentParser(description="Measure a trained model.")
    parser.add_argument("what", choices=["scenes", "clicks", "masks"])
    parser.add_argument("--state", type=Path)
    parser.add_argument("--architecture", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cache", type=Path, help="where the regions of the photographs are kept")
    parser.add_argument("--regions", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scenes", type=int, default=len(VALIDATION_SEEDS))
    parser.add_argument("--options", type=json.loads, default={}, help="mask options as JSON, instead of the model's defaults")
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.what == "masks":
        info = read_model_info(flags.model)
        predictor = Predictor(Engine(flags.model, info, threads=flags.threads), info)
        figures = measure_masks(predictor, read_labeled_photos(flags.regions), given=flags.options)
    else:
        sam = load_sam(flags.state, model_type=str(flags.architecture))
        if flags.what == "scenes":
            bank = PhotoBank.of(load_photos(flags.photos, cache=flags.cache, begins=MEASURING))
            figures = measure_scenes(sam, bank=bank, seeds=VALIDATION_SEEDS[: flags.scenes])
        else:
            figures = measure_clicks(sam, read_labeled_photos(flags.regions))
    for name, value in figures.items():
        sys.stdout.write(f"{name:60s} {value:.3f}\n")


if __name__ == "__main__":
    main()
