"""The whole mask generator on a full-size SAM: ours, segment-anything in PyTorch, and OpenVINO graphs as conversion gives them.

    python benchmarks/whole_generator.py --folder /tmp/vit_b [--model-type vit_b] [--photo PHOTO] [--kept 0 0.3 0.6 1]

One run, one photo, same random weights, same thresholds, one program after the other. Random weights let hardly a mask
through, and an engine that filters by predicted IoU first would never draw one: so pred_iou_thresh is set, in all programs,
to the quantile at which the given parts of the prompts keep a mask. At the first part given that is not 0 or 1 the steps
between the reference and ours are timed too, one technique after the other. Needs the extras ``convert`` and ``demo``.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from skimage import data, transform

from labeler.convert import build_sam, convert_checkpoint, load_sam
from labeler.engine import Engine, Prediction, Receive
from labeler.generator import generate_masks
from labeler.geometry import make_point_grid
from labeler.graphs import export_onnx, onnx_to_openvino
from labeler.images import decode_image
from labeler.model_folder import ModelInfo, read_model_info
from labeler.options import MaskOptions
from labeler.predictor import Predictor
from labeler.types import Prompts

POINTS_PER_BATCH = 64  # segment-anything's own default


class PlainEngine:
    """The encoder and SAM's predictor as conversion gives them, in place of ``labeler.engine.Engine``."""

    def __init__(self, folder: Path, info: ModelInfo, *, threads: int) -> None:
        self.threads = threads
        self.has_bf16 = False
        self._core = ov.Core()
        self._settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._path = folder / "predictor.xml"
        self._encoder = self._core.compile_model(folder / "encoder.xml", "CPU", self._settings)
        self._predictors: dict[int, ov.CompiledModel] = {}

    def encode(self, pixels: Any) -> Any:
        """(1, 3, S, S) -> (1, C, h, w)."""
        return self._encoder([pixels])["features"].copy()

    def predict(self, features: Any, *, points: Any, labels: Any, receive: Receive, **_unused: Any) -> Prediction:
        """All masks of all prompts, wanted or not, in calls of so many."""
        iou = []
        for begin in range(0, len(labels), POINTS_PER_BATCH):
            part = slice(begin, begin + POINTS_PER_BATCH)
            answers = self.answer(features, points=points[part], labels=labels[part])
            iou.append(answers.predicted_iou)
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(receive, range(begin, begin + len(answers.rows)), answers.predicted_iou, answers.logits))
        return Prediction(
            predicted_iou=np.concatenate(iou), rows=np.arange(len(labels)), logits=np.empty((0, 4, 1, 1), np.float32)
        )

    def answer(self, features: Any, *, points: Any, labels: Any) -> Prediction:
        """All masks of a batch of prompts, in one call compiled for so many."""
        count = len(labels)
        if count not in self._predictors:
            model = self._core.read_model(self._path)
            model.reshape({"points": [count, 2, 2], "labels": [count, 2]})
            self._predictors[count] = self._core.compile_model(model, "CPU", self._settings)
        answer = self._predictors[count]({"features": features, "points": points, "labels": labels})
        return Prediction(predicted_iou=answer["iou"].copy(), rows=np.arange(count), logits=answer["logits"].copy())


class EagerEngine(Engine):
    """Ours, but with every mask drawn before predicted IoU is looked at."""

    def predict(self, features: Any, **arguments: Any) -> Prediction:
        """All masks of all prompts, wanted or not."""
        return super().predict(features, **(arguments | {"wanted": None}))


class ConvertedPredictor(SamPredictor):
    """segment-anything's predictor over OpenVINO's graphs: everything but the two networks is the reference's own code."""

    def __init__(self, sam: Sam, engine: PlainEngine) -> None:
        super().__init__(sam)
        self._engine = engine

    def set_torch_image(self, transformed_image: Any, original_image_size: Any) -> None:
        """Encode with OpenVINO."""
        self.reset_image()
        self.original_size, self.input_size = original_image_size, tuple(transformed_image.shape[-2:])
        self.features = self._engine.encode(self.model.preprocess(transformed_image).numpy())
        self.is_image_set = True

    def predict_torch(self, point_coords: Any, point_labels: Any, *_unused: Any, **_also_unused: Any) -> Any:
        """Three masks a point, upsampled as the reference does."""
        points = np.concatenate([point_coords.numpy(), np.zeros_like(point_coords.numpy())], axis=1).astype(np.float32)
        labels = np.concatenate([point_labels.numpy(), np.full(point_labels.shape, -1)], axis=1).astype(np.int32)
        answers = self._engine.answer(self.features, points=points, labels=labels)
        logits = torch.from_numpy(answers.logits[:, 1:])
        masks = self.model.postprocess_masks(logits, self.input_size, self.original_size)
        return masks, torch.from_numpy(answers.predicted_iou[:, 1:]), logits


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("random_model"))
    parser.add_argument("--model-type", default="vit_b")
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.6, 0.0, 0.3, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    sam, info = make_models(flags.folder, flags.model_type)
    pixels = decode_image(flags.photo.read_bytes()).pixels if flags.photo else draw_photo()
    print(
        f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {flags.threads} threads, OpenVINO {ov.get_version()}, "
        f"torch {torch.__version__}; {flags.model_type}, 32x32 points, {pixels.shape[1]}x{pixels.shape[0]} pixels",
        flush=True,
    )
    ours = Predictor(Engine(flags.folder, info, threads=flags.threads), info)
    best_iou = ask_iou(ours, pixels)
    faster: dict[str, Predictor] = {}
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        faster["ours, bf16"] = Predictor(Engine(flags.folder, info, threads=flags.threads, precision="bf16"), info)
    with_steps = next((kept for kept in flags.kept if 0 < kept < 1), None)
    for kept in flags.kept:
        thresh = pick_threshold(best_iou, kept)
        options = MaskOptions(pred_iou_thresh=thresh)
        print(f"\n{kept:.0%} of the prompts keep a mask (pred_iou_thresh {thresh:.6f})", flush=True)
        programs = {"segment_anything, PyTorch": partial(run_reference, SamPredictor(sam), pixels, thresh)}
        if kept == with_steps:
            plain = PlainEngine(flags.folder, info, threads=flags.threads)
            eager = Predictor(EagerEngine(flags.folder, info, threads=flags.threads), info)
            programs |= {
                "OpenVINO as converted": partial(run_reference, ConvertedPredictor(sam, plain), pixels, thresh),
                "+ masks traced by border": run_ours(Predictor(plain, info), pixels, options),  # type: ignore[arg-type]
                "+ decoder in stages": run_ours(eager, pixels, options),
            }
        programs |= {"ours, f32": run_ours(ours, pixels, options)}
        programs |= {name: run_ours(predictor, pixels, options) for name, predictor in faster.items()}
        tell(programs)


def tell(programs: dict[str, Callable[[], str]]) -> None:
    """Run one after the other; seconds, and how many times faster than the first, and than the one before."""
    first = before = None
    for name, program in programs.items():
        start = time.perf_counter()
        note = program()
        seconds = time.perf_counter() - start
        first, before = first or seconds, before or seconds
        print(f"{name:28s} {seconds:8.2f} s  {first / seconds:6.1f}x  step {before / seconds:5.2f}x  {note}", flush=True)
        before = seconds


def run_reference(predictor: SamPredictor, pixels: np.ndarray, thresh: float) -> str:
    """segment-anything's generator over a predictor; how many masks."""
    generator = SamAutomaticMaskGenerator(
        predictor.model, points_per_batch=POINTS_PER_BATCH, pred_iou_thresh=thresh, output_mode="coco_rle"
    )
    generator.predictor = predictor
    with torch.no_grad():
        return f"{len(generator.generate(pixels))} masks"


def run_ours(predictor: Predictor, pixels: np.ndarray, options: MaskOptions) -> Callable[[], str]:
    """Our generator, warm (graphs compiled, loops too); how many masks and where the time went."""
    few = options.model_copy(update={"points_per_side": 8})
    generate_masks(pixels, predictor=predictor, options=few)

    def run() -> str:
        masks, seconds = generate_masks(pixels, predictor=predictor, options=options)
        encode, predict, post = seconds
        return f"{len(masks)} masks: encoder {encode:.2f}, decoder {predict:.2f}, after it {post:.2f} s"

    return run


def make_models(folder: Path, model_type: str) -> tuple[Sam, ModelInfo]:
    """A random SAM in PyTorch and as a model folder with SAM's plain predictor beside the stages."""
    checkpoint = folder / "random.pth"
    if not checkpoint.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        fresh = build_sam(model_type)
        with torch.no_grad():  # Predicted IoUs above 0, where the reference's filter begins to work.
            fresh.mask_decoder.iou_prediction_head.layers[-1].bias += 0.5
        torch.save(fresh.state_dict(), checkpoint)
    sam = load_sam(checkpoint, model_type=model_type, weights="f16")
    if not (folder / "model.json").exists():
        convert_checkpoint(checkpoint, output=folder, model_type=model_type)
    if not (folder / "predictor.xml").exists():
        onnx_to_openvino(export_onnx(sam, graph="predictor", folder=folder), xml_path=folder / "predictor.xml", compress=True)
    return sam, read_model_info(folder)


def draw_photo() -> np.ndarray:
    """A photograph that comes with scikit-image, enlarged to 1800x1200."""
    return (transform.resize(data.coffee(), (1200, 1800), order=1) * 255).astype(np.uint8)


def ask_iou(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """The highest of each prompt's three predicted IoUs, (1024,)."""
    embedding = predictor.embed(pixels)
    points = make_point_grid(32) * embedding.crop_hw[::-1]
    prompts = Prompts(points_xy=points[:, None], labels=np.ones((len(points), 1), np.int32))
    return predictor.predict(embedding, prompts, iou_above=np.inf).predicted_iou.max(axis=1)


def pick_threshold(best_iou: np.ndarray, kept: float) -> float:
    """The threshold that lets one mask or more of this part of the prompts pass: between two neighbouring scores."""
    ranked = np.sort(best_iou.astype(np.float64))[::-1]
    count = round(kept * len(ranked))
    if count == 0:
        return float(ranked[0] + 1e-3)
    # A threshold of 0 or less is no filter, in either program.
    return max(0.0, float(ranked[-1] - 1e-3)) if count == len(ranked) else float((ranked[count - 1] + ranked[count]) / 2)


if __name__ == "__main__":
    main()
