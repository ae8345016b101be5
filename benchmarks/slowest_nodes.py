"""Where the time of a model's graphs goes: the slowest nodes, beside the CPU's own speed at matrix products.

    python -m benchmarks.slowest_nodes --model FOLDER [--precision f32] [--threads 2] [--nodes 8]

All prompts of a 32x32 grid on one photo keep their masks, so each graph runs as often as it can for one image. OpenVINO counts
each node's time on each call; calls that run side by side are added up, so seconds are those of threads. Needs the extra
``demo``.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from skimage import data

from labeler.engine import Engine
from labeler.geometry import make_point_grid
from labeler.model_folder import read_model_info
from labeler.predictor import Predictor
from labeler.speed import count_flops, measure_product_speed
from labeler.types import Prompts

Node = tuple[str, str, str]
"""Graph, name, and how it is carried out."""


class CountingEngine(Engine):
    """An engine that adds up the seconds of each node of each graph."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.seconds: Counter[Node] = Counter()
        self._names: dict[int, str] = {}
        super().__init__(*args, **settings)

    def _find_graph(self, name: str, **sides: int) -> Any:
        self._settings["PERF_COUNT"] = True
        requests = super()._find_graph(name, **sides)
        self._names[id(requests)] = name
        return requests

    @contextmanager
    def _run(self, requests: Any, inputs: Any) -> Iterator[Any]:
        with super()._run(requests, inputs) as request:
            for node in request.infer_request.get_profiling_info():
                key = (self._names[id(requests)], node.node_name, f"{node.node_type} {node.exec_type}")
                self.seconds[key] += node.real_time.total_seconds()
            yield request


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=8)
    flags = parser.parse_args()
    info = read_model_info(flags.model)
    engine = CountingEngine(flags.model, info, threads=flags.threads, precision=flags.precision)
    predictor = Predictor(engine, info)
    pixels = np.asarray(data.coffee())
    points = make_point_grid(32)
    for side in (4, 32):  # The first call compiles.
        engine.seconds.clear()
        embedding = predictor.embed(pixels)
        points = make_point_grid(side) * embedding.crop_hw[::-1]
        predictor.predict(embedding, Prompts(points_xy=points[:, None], labels=np.ones((len(points), 1), np.int32)))
    print(f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {flags.threads} threads, OpenVINO {ov.get_version()}")
    tell_graphs(engine.seconds, flags.model, num_prompts=len(points), flags=flags)
    print(f"\nthe {flags.nodes} slowest nodes")
    whole = engine.seconds.total()
    for (graph, name, kind), seconds in engine.seconds.most_common(flags.nodes):
        print(f"{seconds:8.2f} s {seconds / whole:6.1%}  {graph:12s} {kind:40s} {name}")


def tell_graphs(seconds: Counter[Node], folder: Path, *, num_prompts: int, flags: Any) -> None:
    """A line a graph: seconds of threads, and its part of what one thread can do in matrix products."""
    limit = {n: measure_product_speed(threads=n, precision=flags.precision) for n in (1, flags.threads)}
    print(f"matrix products: {limit[1] / 1e9:.0f} GFLOP/s on one thread, {limit[flags.threads] / 1e9:.0f} on {flags.threads}")
    for graph in dict.fromkeys(node[0] for node in seconds):
        spent = sum(s for node, s in seconds.items() if node[0] == graph)
        calls = num_prompts if graph in ("prompts", "iou_head", "masks") else 1
        if graph == "iou_head":  # Too small to matter, and of no shape until it is compiled.
            print(f"{graph:12s} {spent:8.2f} s")
            continue
        speed = count_flops(folder, graph=graph) * calls / spent
        most = limit[1] if calls > 1 else limit[flags.threads]
        print(f"{graph:12s} {spent:8.2f} s  {speed / 1e9:7.0f} GFLOP/s  {speed / most:6.1%} of matrix products")


if __name__ == "__main__":
    main()
