"""How much arithmetic a model's graphs hold, and how fast this CPU multiplies matrices: the two ends of a speed's scale.

Must not know images or masks. Only products are counted (matrix products and convolutions): nearly all of the arithmetic.
"""

import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13

from labeler.errors import ModelError
from labeler.options import Precision

_SIDE = 2048
_MIN_CALLS = 3
_OPEN_SIDES = {"points": [1, 2, 2], "labels": [1, 2]}
"""One prompt of a point and SAM's padding."""


def count_flops(folder: Path, *, graph: str) -> float:
    """Floating-point operations of one call of a graph: of one prompt with one point where it takes prompts.

    Raises:
        ModelError: the graph can't be read.
    """
    path = folder / f"{graph}.xml"
    try:
        model = ov.Core().read_model(path)
        model.reshape({p: ov.PartialShape(_OPEN_SIDES[p.any_name]) for p in model.inputs if p.any_name in _OPEN_SIDES})
    except RuntimeError as error:
        raise ModelError(f"OpenVINO can't read {path}: {error}") from error
    return float(sum(_count_node(node) for node in model.get_ordered_ops()))


def _count_node(node: Any) -> int:
    """Twice the multiplications of a node: each is added to a sum."""
    kind = node.get_type_name()
    if kind == "MatMul":
        shape = node.get_input_shape(0)
        inner = shape[-2] if node.get_attributes()["transpose_a"] else shape[-1]
        return int(2 * prod(node.get_output_shape(0)) * inner)
    if kind == "Convolution":
        return int(2 * prod(node.get_output_shape(0)) * prod(list(node.get_input_shape(1))[1:]))
    if kind == "ConvolutionBackpropData":
        return int(2 * prod(node.get_input_shape(0)) * prod(list(node.get_input_shape(1))[1:]))
    return 0


def measure_product_speed(*, threads: int, precision: Precision = "f32", seconds: float = 1.0) -> float:
    """Floating-point operations a second of OpenVINO's matrix product, 2048 x 2048 x 2048: the best of a few calls.

    Raises:
        ModelError: this CPU lacks the precision.
    """
    random = np.random.default_rng(0)
    left = random.normal(size=(_SIDE, _SIDE)).astype(np.float32)
    given = opset13.parameter([_SIDE, _SIDE], np.float32)
    product = opset13.matmul(given, opset13.constant(random.normal(size=(_SIDE, _SIDE)).astype(np.float32)), False, False)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        request = ov.Core().compile_model(ov.Model([product], [given]), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise ModelError(f"OpenVINO can't multiply in {precision} here: {error}") from error
    fastest, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while calls < _MIN_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        request.infer([left], share_inputs=True)
        fastest = min(fastest, time.perf_counter() - start)
        calls += 1
    return 2.0 * _SIDE**3 / fastest
