"""Full-size vit_b with random weights: convert it, then time encoder and predictor beside segment-anything in PyTorch.

    python benchmarks/full_size.py [--folder /tmp/vit_b] [--threads 2]

Prints seconds (the median of several calls, PyTorch and OpenVINO in turn) and how far the answers differ. Needs the extra
``convert``. Random weights, because the time does not depend on them; they say nothing about quality.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
import torch
from segment_anything import sam_model_registry

from labeler.convert import convert_checkpoint, load_checkpoint, round_weights
from labeler.engine import Engine
from labeler.model_folder import read_model_info


def main() -> None:
    """See the module."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, default=Path("vit_b_random"))
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--calls", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    checkpoint = given.folder / "checkpoint.pth"
    if not checkpoint.exists():
        given.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(sam_model_registry["vit_b"]().state_dict(), checkpoint)
    if not (given.folder / "model.json").exists():
        start = time.perf_counter()
        convert_checkpoint(checkpoint, output=given.folder, model_type="vit_b")
        print(f"converted in {time.perf_counter() - start:.0f} s")
    sam = sam_model_registry["vit_b"]().eval()
    sam.load_state_dict(round_weights(load_checkpoint(checkpoint), weights="f16"))
    info = read_model_info(given.folder)
    engine = Engine(given.folder, info, threads=given.threads)
    print(f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {given.threads} threads, torch {torch.__version__}, f32")

    pixels = np.random.default_rng(0).normal(size=(1, 3, 1024, 1024)).astype(np.float32)
    expected, features = compare(
        "encoder", lambda: sam.image_encoder(torch.from_numpy(pixels)).numpy(), lambda: engine.encode(pixels), given.calls
    )
    report_difference("features", expected, features)

    count = 64
    points = np.random.default_rng(1).uniform(0, 1024, (count, 1, 2)).astype(np.float32)
    padded = np.concatenate([points, np.zeros_like(points)], axis=1)
    labels = np.tile(np.array([1, -1], np.int32), (count, 1))

    def predict_in_torch() -> Any:
        sparse, dense = sam.prompt_encoder((torch.from_numpy(points), torch.ones(count, 1)), None, None)
        logits, iou = sam.mask_decoder(
            torch.from_numpy(expected), sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True
        )
        return logits.numpy(), iou.numpy()

    (logits, iou), (our_logits, our_iou) = compare(
        f"predictor, {count} points",
        predict_in_torch,
        lambda: answer(engine, expected, padded, labels),
        given.calls,
    )
    report_difference("logits", logits, our_logits[:, 1:])
    report_difference("predicted IoU", iou, our_iou[:, 1:])


def answer(engine: Engine, features: Any, points: Any, labels: Any) -> tuple[Any, Any]:
    """All logits and predicted IoU."""
    answers = engine.predict(features, points=points, labels=labels)
    return answers.logits, answers.predicted_iou


def compare(name: str, in_torch: Callable[[], Any], ours: Callable[[], Any], calls: int) -> tuple[Any, Any]:
    """Time both in turn; their last answers."""
    with torch.no_grad():
        answers = in_torch(), ours()
        seconds: list[tuple[float, float]] = []
        for _ in range(calls):
            start = time.perf_counter()
            in_torch()
            middle = time.perf_counter()
            ours()
            seconds.append((middle - start, time.perf_counter() - middle))
    torch_s, ours_s = (median(column) for column in zip(*seconds, strict=True))
    print(f"{name:24s} PyTorch {torch_s:7.2f} s   OpenVINO {ours_s:7.2f} s   {torch_s / ours_s:.1f}x")
    return answers


def report_difference(name: str, expected: np.ndarray, ours: np.ndarray) -> None:
    """The largest difference, in units of the answers' own spread."""
    print(f"  {name}: largest difference {np.abs(ours - expected).max() / expected.std():.1e} of the spread")


if __name__ == "__main__":
    main()
