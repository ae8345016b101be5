"""The OpenVINO seam: a model folder's graphs, compiled for this CPU. Arrays in, arrays out; must not know images or SAM.

What is set on purpose: the precision (OpenVINO would pick bf16 by itself where a CPU has it, so one job on mixed machines
would give mixed masks), the threads (it sees neither cgroup quotas nor OMP_NUM_THREADS) and no pinning (every process
would pin from core 0 on). Shapes are static: each graph is compiled for a number of prompts and of points a prompt.

One image, or one prompt, uses all threads at once; many prompts are answered side by side, each call on one thread. So a
batch needs no barriers between threads, and its answers do not depend on how many there are. Each of these threads has a
compiled graph of its own, for then OpenVINO computes in the thread that calls: handing calls to others and waiting for them
took a quarter of the time of a small model.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov

from labeler.errors import ModelError
from labeler.locks import open_alone
from labeler.model_folder import ModelInfo
from labeler.options import Precision
from labeler.types import Bool, Float32, Int32, Int64

logger = logging.getLogger(__name__)

_CAPABILITIES: dict[Precision, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
_ELEMENT_TYPES: dict[Precision, ov.Type] = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}

_INNER_PORTS = {"image", "first_keys", "first_values", "first_queries", "mask_tokens", "seen_image"}
"""What goes from graph to graph, in the precision that is computed in: converting it would cost a pass over it."""

_TAKEN = ("mask_tokens", "seen_image")
"""Outputs of the graph ``prompts`` that the graph ``masks`` takes, one prompt's row at a time."""

_STAGES = {"prompts", "masks"}
"""Graphs of many small products, which OpenVINO's fused attention (Snippets) makes slower, by a fifth where measured."""

_NUM_MASKS = 4
"""Answers to a prompt: the single mask and the three."""

MAX_SHAPES = 4
"""Shapes of prompts whose graphs are kept, the latest; those of vit_b hold 220 MiB at two threads."""

MAX_UNUSED_S = 30 * 24 * 3600.0
"""After which compiled graphs that nobody asked for are removed from the disk."""

_Tensors = dict[str, Any]
"""Arrays or OpenVINO's tensors, by the name of their port."""

Receive = Callable[[int, Float32, Float32], None]
"""Is given a prompt's place, its predicted IoU (4,) and its logits (4, 4h, 4w), the single mask first. The logits are the
graph's own memory: they last as long as the call."""


class _Request:
    """A compiled graph, ready to run. Its outputs' memory stays where it is, for its shapes are static."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.infer_request = compiled.create_infer_request()
        self.outputs: _Tensors = {port.any_name: self.infer_request.get_tensor(port) for port in compiled.outputs}
        names = [name for name in _TAKEN if name in self.outputs]
        self.rows: list[_Tensors] = [
            {name: _take(self.outputs[name], row) for name in names}
            for row in range(self.outputs[names[0]].shape[0] if names else 0)
        ]

    def run(self, inputs: _Tensors) -> None:
        """Compute the outputs, here and now."""
        self.infer_request.infer(inputs, share_inputs=True, share_outputs=True)


_Requests = SimpleQueue[_Request]
"""The idle requests of a graph. There are as many in all as may run at once, each with a compiled model of its own."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says to P prompts, K masks each: the engine's four are the single mask and then the three.

    Attributes:
        predicted_iou: (P, K) float32, the model's own estimate.
        rows: (M,) int64, the prompts whose masks were wanted, in order.
        logits: (P, K, 4h, 4w) float32 at low resolution, for the model's whole padded input; prompts that are not in ``rows``
            hold nothing of meaning. (0, K, 4h, 4w) where ``receive`` took them one by one.
    """

    predicted_iou: Float32
    rows: Int64
    logits: Float32


class Engine:
    """The encoder and the predictor's stages of one model folder.

    Args:
        folder: a complete model folder on this machine's disk.
        info: its ``model.json``.
        threads: how many CPU threads a call may use.
        precision: what the CPU computes in; predicted IoU is made of the answers in f32 always.
        encoder_precision: the encoder's, where it is not the same; for measuring what each costs.
        cache_folder: where compiled graphs are kept between processes, which may use it at the same time; None, or one that
            can't be written, compiles anew each time.

    Raises:
        ModelError: a graph can't be read or compiled, or this CPU lacks the precision.
    """

    def __init__(
        self,
        folder: Path,
        info: ModelInfo,
        *,
        threads: int,
        precision: Precision = "f32",
        encoder_precision: Precision | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        self._folder = folder
        self._info = info
        self.threads = threads
        self._inner_type = _ELEMENT_TYPES[precision]
        self._core = ov.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.has_bf16 = _CAPABILITIES["bf16"] in capabilities
        self._encoder_precision = encoder_precision or precision
        for needed in (precision, self._encoder_precision):
            if _CAPABILITIES[needed] not in capabilities:
                raise ModelError(f"this CPU can't compute in {needed} (it has {', '.join(capabilities)}); use --precision f32")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,
        }
        self._cache_folder = cache_folder
        self._dependencies = (
            ov.get_version(),
            sorted(capabilities),
            self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            sorted(info.files.items()),
        )
        self._graphs: dict[tuple[str, int, int, int], _Requests] = {}
        self._find_graph("encoder")

    def encode(self, pixels: Float32) -> Float32:
        """(1, 3, S, S) normalised and padded pixels -> (1, C, h, w) features."""
        with self._run(self._find_graph("encoder"), {"pixels": pixels}) as answer:
            return np.array(answer.outputs["features"].data, np.float32)  # A copy: the tensor's memory is the next call's.

    def predict(
        self,
        features: Float32,
        *,
        points: Float32,
        labels: Int32,
        mask_logits: Float32 | None = None,
        wanted: Callable[[Float32], Bool] | None = None,
        receive: Receive | None = None,
        prompts_per_call: int | None = None,
    ) -> Prediction:
        """Answer P prompts of N points each about one crop.

        Args:
            features: (1, C, h, w), what ``encode`` gave.
            points: (P, N, 2) float32, pixels of the model's input.
            labels: (P, N) int32: 1 inside, 0 outside, 2 and 3 a box's corners, -1 SAM's padding point.
            mask_logits: (P, 1, 4h, 4w) logits of an earlier answer, or None.
            wanted: (n, 4) predicted IoU -> (n,) whether these prompts' masks are wanted; all by default. A mask costs
                about as much as its predicted IoU.
            receive: called for each wanted prompt, in the thread that drew its masks, while they are in its cache; several
                threads call at once, in any order. Without it all logits are kept.
            prompts_per_call: how many are answered at a time, where there are several; the model's own number by default.
        """
        count, (_, _, height, width) = len(labels), self._info.embedding_shape
        # Memory that is not written to costs nothing: no need to know first how many will be wanted.
        logits = np.empty((0 if receive else count, _NUM_MASKS, 4 * height, 4 * width), np.float32)

        def keep(prompt: int, _iou: Float32, drawn: Float32) -> None:
            logits[prompt] = drawn

        ask = partial(
            self._answer,
            wanted=wanted or (lambda iou: np.ones(len(iou), np.bool_)),
            receive=receive or keep,
            size=prompts_per_call or self._info.prompts_per_call,
        )
        if mask_logits is None:
            with self._run(self._find_graph("image_side"), {"features": features}) as shared:
                seen = {name: _copy(tensor) for name, tensor in shared.outputs.items()}
            iou, chosen = ask(seen, points, labels)  # However long it takes, others may ask meanwhile.
        else:
            iou, chosen = np.empty((count, _NUM_MASKS), np.float32), np.empty(count, np.bool_)
            # Under each mask the image looks different: one prompt after the other.
            for i in range(count):
                one = slice(i, i + 1)
                inputs = {"features": features, "mask_logits": mask_logits[one]}
                with self._run(self._find_graph("image_side_mask"), inputs) as shared:
                    iou[one], chosen[one] = ask(shared.outputs, points[one], labels[one], first=i)
        return Prediction(predicted_iou=iou, rows=np.flatnonzero(chosen).astype(np.int64), logits=logits)

    def _answer(
        self,
        shared: _Tensors,
        points: Float32,
        labels: Int32,
        *,
        wanted: Callable[[Float32], Bool],
        receive: Receive,
        size: int,
        first: int = 0,
    ) -> tuple[Float32, Bool]:
        """Predicted IoU and whether wanted, of prompts whose places begin with ``first``, ``size`` a call."""
        num_prompts, num_points = labels.shape
        size, streams = (1, 1) if num_prompts == 1 else (size, self.threads)
        prompts = self._find_graph("prompts", num_prompts=size, num_points=num_points, streams=streams)
        iou_head = self._find_graph("iou_head", num_prompts=size, streams=streams)
        masks = self._find_graph("masks", streams=streams)
        iou, chosen = np.empty((num_prompts, _NUM_MASKS), np.float32), np.empty(num_prompts, np.bool_)

        def answer(begin: int) -> None:
            part = slice(begin, min(begin + size, num_prompts))
            inputs = shared | {"points": _pad(points[part], size), "labels": _pad(labels[part], size)}
            with self._run(prompts, inputs) as state:
                with self._run(iou_head, {"iou_token": state.outputs["iou_token"]}) as answered:
                    iou[part] = answered.outputs["iou"].data[: part.stop - begin]
                chosen[part] = wanted(iou[part])
                for i in map(int, np.flatnonzero(chosen[part])):
                    with self._run(masks, state.rows[i]) as drawn:
                        receive(first + begin + i, iou[begin + i], drawn.outputs["logits"].data[0])

        with ThreadPoolExecutor(streams) as pool:
            for _ in pool.map(answer, range(0, num_prompts, size)):
                pass  # An error in a thread is raised here.
        return iou, chosen

    def _find_graph(self, name: str, *, num_prompts: int = 0, num_points: int = 0, streams: int = 1) -> _Requests:
        """A graph compiled for so many prompts of so many points (0: it has no such sides)."""
        key = (name, num_prompts, num_points, streams)
        requests = self._graphs.pop(key, None) or self._make_requests(name, num_prompts, num_points, streams)
        self._graphs[key] = requests  # The last one used is the last one in order.
        for old in [key for key in list(self._graphs) if key[0] == "prompts"][:-MAX_SHAPES]:
            self._graphs.pop(old, None)
        return requests

    def _make_requests(self, name: str, num_prompts: int, num_points: int, streams: int) -> _Requests:
        sides = {"points": [num_prompts, num_points, 2], "labels": [num_prompts, num_points]}
        sides["iou_token"] = [num_prompts, self._info.embedding_shape[1]]
        requests: _Requests = SimpleQueue()
        with self._hold_cache() as cache_folder, ThreadPoolExecutor(streams) as pool:
            compile_one = partial(self._compile, name, sides, cache_folder)
            for compiled in pool.map(compile_one, [self.threads // streams] * streams):
                requests.put(_Request(compiled))
        return requests

    @contextmanager
    def _hold_cache(self) -> Iterator[Path | None]:
        """The folder of compiled graphs, for one process at a time; None where there is none.

        OpenVINO writes a graph in place, where others may have it mapped and compute from it: they would die of that.
        """
        folder = self._cache_folder
        with ExitStack() as held:
            try:
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(open_alone(folder / "lock"))
                    _drop_unused(folder)
            except OSError as error:
                logger.info("compiled graphs are not kept in %s: %s", folder, error)
                folder = None
            yield folder

    def _compile(self, name: str, sides: Mapping[str, list[int]], cache_folder: Path | None, threads: int) -> ov.CompiledModel:
        path = self._folder / f"{name}.xml"
        settings = self._settings | {"INFERENCE_NUM_THREADS": threads}
        if name == "encoder":
            settings["INFERENCE_PRECISION_HINT"] = self._encoder_precision
        if name == "iou_head":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        if name in _STAGES:
            settings["SNIPPETS_MODE"] = "DISABLE"
        if cache_folder is not None:
            # OpenVINO's cache forgets some of what a compiled graph depends on, as its threads: the folder's name says all.
            key = hashlib.sha256(repr((self._dependencies, settings)).encode()).hexdigest()
            settings["CACHE_DIR"] = str(cache_folder / key[:16])
            _note_use(cache_folder / key[:16])
        try:
            model = self._core.read_model(path)
            open_sides = {p: ov.PartialShape(sides[p.any_name]) for p in model.inputs if p.partial_shape.is_dynamic}
            model.reshape(open_sides)
            steps = ov.preprocess.PrePostProcessor(model)
            for port in model.inputs:
                if port.any_name in _INNER_PORTS:
                    steps.input(port.any_name).tensor().set_element_type(self._inner_type)
            for port in model.outputs:
                if port.any_name in _INNER_PORTS:
                    steps.output(port.any_name).tensor().set_element_type(self._inner_type)
            logger.debug("compiling %s for %s, %d threads", path, list(open_sides.values()), threads)
            return self._core.compile_model(steps.build(), "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO can't read or compile {path}: {error}") from error

    @contextmanager
    def _run(self, requests: _Requests, inputs: _Tensors) -> Iterator[_Request]:
        """A request that has run; its outputs last as long as the context does."""
        request = requests.get()
        try:
            try:
                request.run(inputs)
            except RuntimeError as error:
                raise ModelError(f"OpenVINO failed while running a graph of {self._folder}: {error}") from error
            yield request
        finally:
            requests.put(request)


def _note_use(folder: Path) -> None:
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        os.utime(folder)


def _drop_unused(cache_folder: Path) -> None:
    """Remove graphs that nobody has asked for in a month: of other settings, other models, an older OpenVINO."""
    for folder in cache_folder.iterdir():
        with suppress(OSError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > MAX_UNUSED_S:
                shutil.rmtree(folder)


def _copy(tensor: ov.Tensor) -> ov.Tensor:
    copy = ov.Tensor(tensor.element_type, tensor.shape)
    tensor.copy_to(copy)
    return copy


def _take(tensor: ov.Tensor, row: int) -> ov.Tensor:
    """One row of a tensor, in place."""
    shape = list(tensor.shape)
    return ov.Tensor(tensor, ov.Coordinate([row] + [0] * (len(shape) - 1)), ov.Coordinate([row + 1, *shape[1:]]))


def _pad(rows: Any, size: int) -> Any:
    """Repeat the last row until there are ``size`` rows: the graph's shape is fixed, the answers are cut off."""
    missing = size - len(rows)
    return rows if missing == 0 else np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
