"""What a precision costs and gives: masks compared with f32's, recall of human-made regions, seconds.

    python -m benchmarks.precision --model FOLDER [--int8 FOLDER] --regions eval/coco_panoptic [--options '{...}']

Every precision that this CPU has, for encoder and predictor together and each on its own; and, where one is given, the folder
whose encoder is INT8 (``labeler convert --precision int8``), which must be of the same checkpoint. All precisions label each
photo in turn, so that a busy machine slows all of them alike. Needs the packages of the tests.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from labeler.engine import Engine
from labeler.errors import ModelError
from labeler.generator import generate_masks
from labeler.model_folder import read_model_info
from labeler.options import Precision, resolve_mask_options
from labeler.predictor import Predictor
from training.coco import read_labeled_photos
from training.evaluate import AR_THRESHOLDS, best_ious, mask_set_to_rles

SAME_MASK_IOU = 0.9
COSTLY_POINTS = 1.0

# Low thresholds, with which the small model under tests/ finds about as much as a person marks.
OPTIONS = {
    "points_per_side": 24,
    "pred_iou_thresh": 0.25,
    "stability_score_thresh": 0.3,
    "stability_score_offset": 0.3,
    "min_mask_region_area": 100,
}

_PAIRS: tuple[tuple[Precision, Precision], ...] = (
    ("f32", "f32"),
    ("bf16", "bf16"),
    ("bf16", "f32"),
    ("f32", "bf16"),
    ("f16", "f16"),
)
"""Of the encoder, of the predictor."""


@dataclass
class Figures:
    """What one precision did, photo by photo."""

    counts: list[int] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    """For each mask that f32 found, whether this one found it too."""
    region_ious: list[float] = field(default_factory=list)
    """For each human-made region, of the mask that fits it best."""
    seconds: list[tuple[float, ...]] = field(default_factory=list)
    """Encoder, predictor, what follows."""

    @property
    def recall(self) -> float:
        """Mean recall over IoU 0.5, 0.55 ... 0.95, in points (0-100)."""
        return 100.0 * float((np.array(self.region_ious)[:, None] >= AR_THRESHOLDS).mean())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--regions", type=Path, required=True, help="a folder with images/ and instances.json (COCO, RLE)")
    parser.add_argument("--options", type=json.loads, default=OPTIONS, help="mask options as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--photos", type=int, help="only so many photos")
    flags = parser.parse_args()
    predictors = load_predictors(flags.model, flags.int8, threads=flags.threads)
    name = ov.Core().get_property("CPU", "FULL_DEVICE_NAME")
    print(f"{name}, {flags.threads} threads, OpenVINO {ov.get_version()}, {json.dumps(flags.options)}")
    report(measure(predictors, flags.regions, given=flags.options, num_photos=flags.photos))


def load_predictors(model: Path, int8: Path | None, *, threads: int) -> dict[str, Predictor]:
    """A predictor for each precision that this CPU has, by its name; f32 first."""
    folders = [(model, pair) for pair in _PAIRS] + [(int8, pair) for pair in _PAIRS[:2] if int8]
    predictors = {}
    for folder, (encoder, predictor) in folders:
        info = read_model_info(folder)
        if (folder == int8) != (info.quantization is not None):
            raise SystemExit(f"{folder}: --int8 takes a folder with an INT8 encoder, --model one without")
        name = f"int8 + {predictor}" if folder == int8 else encoder if encoder == predictor else f"{encoder} + {predictor}"
        try:
            engine = Engine(folder, info, threads=threads, precision=predictor, encoder_precision=encoder)
        except ModelError as error:
            print(f"without {name}: {error}")
        else:
            predictors[name] = Predictor(engine, info)
    return predictors


def measure(
    predictors: Mapping[str, Predictor], regions: Path, *, given: Mapping[str, Any], num_photos: int | None
) -> dict[str, Figures]:
    """Every photo by every predictor; the first photo once before, for it compiles."""
    figures = {name: Figures() for name in predictors}
    options = {name: resolve_mask_options(given, model_defaults=one.info.defaults) for name, one in predictors.items()}
    photos = list(read_labeled_photos(regions))[:num_photos]
    for name, predictor in predictors.items():
        generate_masks(photos[0].pixels, predictor=predictor, options=options[name])
    for photo in photos:
        expected: list[dict[str, Any]] = []
        for name, predictor in predictors.items():
            masks, seconds = generate_masks(photo.pixels, predictor=predictor, options=options[name])
            found = mask_set_to_rles(masks)
            if name == "f32":
                expected = found
            row = figures[name]
            row.counts.append(len(found))
            row.same += (best_ious(expected, found) >= SAME_MASK_IOU).tolist()
            row.region_ious += best_ious(photo.regions, found).tolist()
            row.seconds.append(tuple(seconds))
    return figures


def report(figures: Mapping[str, Figures]) -> None:
    """A line a precision, encoder + predictor where they differ."""
    reference = figures["f32"]
    print(
        f"{len(reference.counts)} photos, {len(reference.region_ious)} human-made regions, {len(reference.same)} masks in f32"
    )
    print("encoder + predictor   masks   found again   recall AR   change   s/photo: encoder  predictor  after")
    for name, row in figures.items():
        more = sum(row.counts) / max(sum(reference.counts), 1) - 1
        encode_s, predict_s, post_s = np.array(row.seconds).mean(axis=0)
        change = row.recall - reference.recall
        costly = "  costs more than a point" if change < -COSTLY_POINTS else ""
        print(
            f"{name:18s} {more:+8.1%} {np.mean(row.same):13.1%} {row.recall:11.2f} {change:+8.2f}"
            f"   {encode_s + predict_s + post_s:7.3f}: {encode_s:7.3f} {predict_s:10.3f} {post_s:6.3f}{costly}"
        )


if __name__ == "__main__":
    main()
