"""The OpenVINO seam: a model folder's graphs, compiled for this CPU. Arrays in, arrays out; must not know images or SAM.

What is set on purpose: the precision (OpenVINO would pick bf16 by itself where a CPU has it, so one job on mixed machines
would give mixed masks), the threads (it sees neither cgroup quotas nor OMP_NUM_THREADS) and no pinning (every process
would pin from core 0 on). Shapes are static: each graph is compiled for a number of prompts and of points a prompt.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from labeler.errors import ModelError
from labeler.model_folder import ModelInfo
from labeler.options import Precision
from labeler.types import Float32, Int32

logger = logging.getLogger(__name__)

_CAPABILITIES: dict[Precision, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


class Engine:
    """The encoder and the predictor of one model folder.

    Args:
        folder: a complete model folder on this machine's disk.
        info: its ``model.json``.
        threads: how many CPU threads a call may use.
        precision: what the CPU computes in.
        cache_folder: where compiled graphs are kept between processes; None compiles anew each time.

    Raises:
        ModelError: a graph can't be read or compiled, or this CPU lacks the precision.
    """

    def __init__(
        self, folder: Path, info: ModelInfo, *, threads: int, precision: Precision = "f32", cache_folder: Path | None = None
    ) -> None:
        self._folder = folder
        self._prompts_per_call = info.prompts_per_call
        self._core = ov.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[precision] not in capabilities:
            raise ModelError(f"this CPU can't compute in {precision} (it has {', '.join(capabilities)}); use --precision f32")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,
        }
        if cache_folder is not None:
            # OpenVINO's cache forgets some of what a compiled graph depends on: the folder's name says it all.
            dependencies = (ov.get_version(), sorted(capabilities), self._core.get_property("CPU", "FULL_DEVICE_NAME"))
            key = hashlib.sha256(repr((dependencies, self._settings, sorted(info.files.items()))).encode()).hexdigest()
            self._settings["CACHE_DIR"] = str(cache_folder / key[:16])
        self._encoder = self._compile("encoder.xml", {})
        self._predictors: dict[tuple[bool, int, int], ov.CompiledModel] = {}

    def encode(self, pixels: Float32) -> Float32:
        """(1, 3, S, S) normalised and padded pixels -> (1, C, h, w) features."""
        return self._run(self._encoder, {"pixels": pixels})["features"]

    def predict(
        self, features: Float32, *, points: Float32, labels: Int32, mask_logits: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        """Answer P prompts of N points each about one crop.

        Args:
            features: (1, C, h, w), what ``encode`` gave.
            points: (P, N, 2) float32, pixels of the model's input.
            labels: (P, N) int32: 1 inside, 0 outside, 2 and 3 a box's corners, -1 SAM's padding point.
            mask_logits: (P, 1, 4h, 4w) logits of an earlier answer, or None.

        Returns:
            (P, 4, 4h, 4w) logits, the single mask first and then the three, and (P, 4) predicted IoU.
        """
        num_prompts, num_points = labels.shape
        size = 1 if num_prompts == 1 else self._prompts_per_call
        predictor = self._find_predictor(mask_logits is not None, size, num_points)
        logits, ious = [], []
        for begin in range(0, num_prompts, size):
            part = slice(begin, min(begin + size, num_prompts))
            inputs = {"points": _pad(points[part], size), "labels": _pad(labels[part], size)}
            if mask_logits is not None:
                inputs["mask_logits"] = _pad(mask_logits[part], size)
            answer = self._run(predictor, {"features": features, **inputs})
            logits.append(answer["logits"][: part.stop - begin])
            ious.append(answer["iou"][: part.stop - begin])
        return (logits[0], ious[0]) if len(logits) == 1 else (np.concatenate(logits), np.concatenate(ious))

    def _find_predictor(self, with_mask: bool, num_prompts: int, num_points: int) -> ov.CompiledModel:
        key = (with_mask, num_prompts, num_points)
        if key not in self._predictors:
            shapes = {"points": [num_prompts, num_points, 2], "labels": [num_prompts, num_points]}
            if with_mask:
                shapes["mask_logits"] = [num_prompts, 1, -1, -1]
            self._predictors[key] = self._compile("predictor_mask.xml" if with_mask else "predictor.xml", shapes)
        return self._predictors[key]

    def _compile(self, file_name: str, shapes: dict[str, list[int]]) -> ov.CompiledModel:
        path = self._folder / file_name
        try:
            model = self._core.read_model(path)
            if shapes:
                names = {port.any_name: port for port in model.inputs}
                if "mask_logits" in shapes:
                    side = names["mask_logits"].partial_shape
                    shapes["mask_logits"][2:] = [side[2].get_length(), side[3].get_length()]
                model.reshape({names[name]: ov.PartialShape(shape) for name, shape in shapes.items()})
            logger.debug("compiling %s %s", path, shapes)
            return self._core.compile_model(model, "CPU", self._settings)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO can't read or compile {path}: {error}") from error

    def _run(self, model: ov.CompiledModel, inputs: dict[str, Any]) -> dict[str, Float32]:
        try:
            answer = model(inputs, share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO failed while running a graph of {self._folder}: {error}") from error
        return {port.any_name: np.array(answer[port], np.float32) for port in model.outputs}


def _pad(rows: Any, size: int) -> Any:
    """Repeat the last row until there are ``size`` rows: the graph's shape is fixed, the answers are cut off."""
    missing = size - len(rows)
    return rows if missing == 0 else np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
