"""What follows the decoder, alone: logits to masks, filters, suppression, small regions, run lengths; ours and the reference's.

    python benchmarks/after_decoder.py --model FOLDER [--photo PHOTO] [--masks 1000] [--reference-masks 96] [--threads 2]

The logits are a trained model's surest answers to a 32x32 grid on the photo, resized to 256x256 as vit_b's are, and fed to both
programs in place of a decoder; every one of them passes the filters. The reference upsamples whole masks, so it gets fewer of
them (its time goes with their number) and 16 points a batch (its floats would not fit in memory otherwise). Needs ``convert``.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openvino as ov
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from skimage import data

from labeler.engine import Engine, Prediction, Receive
from labeler.generator import generate_masks
from labeler.geometry import fit_in_square, make_point_grid
from labeler.images import decode_image
from labeler.masks import plan_upsampling
from labeler.model_folder import read_model_info
from labeler.options import MaskOptions
from labeler.predictor import Predictor
from labeler.rle import runs_to_counts
from labeler.types import Embedding, Prompts

INPUT_SIDE, LOGITS_SIDE = 1024, 256
MASKS_A_PROMPT = 3
OPTIONS = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_mask_region_area": 100}


class LogitsPredictor:
    """In place of ``labeler.predictor.Predictor``: each prompt has its logits."""

    def __init__(self, logits: np.ndarray, iou: np.ndarray, *, threads: int) -> None:
        self.threads, self.info = threads, SimpleNamespace(mask_threshold=0.0)
        self._logits, self._iou = logits, iou

    def embed(self, pixels: np.ndarray, *, crop_xyxy: Any) -> Embedding:
        """A place without features."""
        image_hw = pixels.shape[:2]
        return Embedding(
            features=np.zeros((1, 1, 1, 1), np.float32),
            crop_xyxy=crop_xyxy,
            image_hw=image_hw,
            input_hw=fit_in_square(image_hw, side=INPUT_SIDE),
        )

    def _plan_upsampling(self, embedding: Embedding) -> Any:
        """As vit_b's."""
        return tuple(
            plan_upsampling(low_res_length=LOGITS_SIDE, input_side=INPUT_SIDE, input_length=inner, crop_length=outer)
            for inner, outer in zip(embedding.input_hw, embedding.image_hw, strict=True)
        )

    make_tracer = Predictor.make_tracer

    def predict(self, _embedding: Embedding, prompts: Prompts, *, receive: Receive, **_unused: Any) -> Prediction:
        """The first ones, on all threads."""
        rows = np.arange(len(prompts.labels))
        iou, logits = self._iou[: len(rows)], self._logits[: len(rows)]
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(receive, rows, iou, logits))
        return Prediction(predicted_iou=iou, rows=rows, logits=logits[:0])


class LogitsSamPredictor(SamPredictor):
    """The same in place of segment_anything's predictor."""

    def __init__(self, logits: np.ndarray, iou: np.ndarray) -> None:
        super().__init__(sam_model_registry["vit_b"]())
        self._logits, self._iou, self._begin = torch.from_numpy(logits), torch.from_numpy(iou), 0

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """No encoder."""
        self.original_size, self.input_size = image.shape[:2], fit_in_square(image.shape[:2], side=INPUT_SIDE)
        self.is_image_set = True

    def predict_torch(self, point_coords: Any, *_unused: Any, **_also_unused: Any) -> Any:
        """The next ones, upsampled as the reference does."""
        part = slice(self._begin, self._begin + len(point_coords))
        self._begin = part.stop
        logits = self._logits[part]
        return self.model.postprocess_masks(logits, self.input_size, self.original_size), self._iou[part], logits


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--photo", type=Path, help="without it one of scikit-image's, enlarged to 12 megapixels")
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--reference-masks", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    pixels = decode_image(flags.photo.read_bytes()).pixels if flags.photo else enlarge_photo()
    print(
        f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {flags.threads} threads, torch {torch.__version__}, "
        f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
    )
    logits, iou = make_logits(flags.model, pixels, threads=flags.threads)
    num_prompts = flags.masks // MASKS_A_PROMPT
    predictor: Any = LogitsPredictor(logits, iou, threads=flags.threads)
    seconds = []
    for _ in range(4):  # The first compiles the loops.
        start = time.perf_counter()
        count, parts = label_with_ours(predictor, pixels, num_prompts=num_prompts)
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    num_masks = num_prompts * MASKS_A_PROMPT
    print(
        f"ours              {num_masks:5d} masks {best:8.2f} s {1e3 * best / num_masks:8.2f} ms a mask ({count} kept; {parts})"
    )
    num_prompts = flags.reference_masks // MASKS_A_PROMPT
    num_masks = num_prompts * MASKS_A_PROMPT
    generator = make_reference(logits, iou, num_prompts=num_prompts)
    start = time.perf_counter()
    with torch.no_grad():
        count = len(generator.generate(pixels))
    reference_s = time.perf_counter() - start
    each_ms = 1e3 * reference_s / num_masks
    print(f"segment_anything  {num_masks:5d} masks {reference_s:8.2f} s {each_ms:8.2f} ms a mask ({count} kept)")


def enlarge_photo() -> np.ndarray:
    """4000x3000 pixels."""
    return np.asarray(cv2.resize(data.coffee(), (4000, 3000), interpolation=cv2.INTER_CUBIC))


def make_logits(folder: Path, pixels: np.ndarray, *, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """The model's answers as (P, 3, 256, 256) and (P, 3), the surest masks first whichever prompt they came from."""
    info = read_model_info(folder)
    predictor = Predictor(Engine(folder, info, threads=threads), info)
    embedding = predictor.embed(pixels)
    points = make_point_grid(32) * embedding.crop_hw[::-1]
    answers = predictor.predict(embedding, Prompts(points_xy=points[:, None], labels=np.ones((len(points), 1), np.int32)))
    surest = np.argsort(-answers.predicted_iou.ravel(), kind="stable")
    planes = answers.logits.reshape(-1, *answers.logits.shape[2:])[surest]
    size = (LOGITS_SIDE, LOGITS_SIDE)
    resized = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in planes])
    iou = answers.predicted_iou.ravel()[surest]
    return resized.reshape(-1, MASKS_A_PROMPT, *size), np.ascontiguousarray(iou.reshape(-1, MASKS_A_PROMPT))


def label_with_ours(predictor: Any, pixels: np.ndarray, *, num_prompts: int) -> tuple[int, str]:
    """Our generator and the run lengths as they go to the file."""
    options = MaskOptions(point_grids=(make_grid(num_prompts),), **OPTIONS)
    masks, seconds = generate_masks(pixels, predictor=predictor, options=options)
    start = time.perf_counter()
    for i in range(len(masks)):
        runs_to_counts(masks.runs(i), image_hw=masks.image_hw)
    return len(masks), f"masks {seconds.post:.2f} s, counts {time.perf_counter() - start:.2f} s"


def make_reference(logits: np.ndarray, iou: np.ndarray, *, num_prompts: int) -> SamAutomaticMaskGenerator:
    """segment-anything's generator with these answers; building its models is none of its work."""
    generator = SamAutomaticMaskGenerator(
        sam_model_registry["vit_b"](),
        points_per_side=None,
        point_grids=[np.array(make_grid(num_prompts))],
        points_per_batch=16,
        output_mode="coco_rle",
        **OPTIONS,
    )
    generator.predictor = LogitsSamPredictor(logits, iou)
    return generator


def make_grid(count: int) -> tuple[tuple[float, float], ...]:
    """So many points, anywhere."""
    return tuple((float(x), 0.5) for x in (np.arange(count) + 0.5) / count)


if __name__ == "__main__":
    main()
