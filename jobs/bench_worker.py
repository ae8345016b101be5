"""One worker of ``jobs bench``: a process that loads a model, labels photos when it is told to, and says what it took.

Spoken to in lines of JSON on stdin, it answers in lines of JSON on stdout. Must not know the other workers: that they
run at the same time is ``jobs.bench``'s doing.
"""

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jobs.worker import load_predictor, measure_peak_memory
from labeler.engine import Engine, Prediction
from labeler.errors import LabelerError
from labeler.generator import generate_masks
from labeler.images import decode_image
from labeler.options import MaskOptions
from labeler.predictor import Predictor
from labeler.speed import measure_product_speed
from labeler.tables import masks_to_batch
from labeler.types import Float32

_PRODUCT_SECONDS = 1.0


class CountingEngine(Engine):
    """Counts how often each graph answered, for what arithmetic there was."""

    counts: ClassVar[Counter[str]] = Counter()

    def encode(self, pixels: Float32) -> Float32:
        """As the engine."""
        self.counts["encoder"] += 1
        return super().encode(pixels)

    def predict(self, features: Float32, **given: Any) -> Prediction:
        """As the engine."""
        answers = super().predict(features, **given)
        self.counts["image_side"] += 1
        self.counts["prompts"] += len(answers.predicted_iou)
        self.counts["masks"] += len(answers.rows)
        return answers


def main() -> None:
    """Serve until stdin ends: first the model, then ``label`` and ``multiply``."""
    try:
        _serve()
    except LabelerError as error:
        _answer({"error": str(error)})


def _serve() -> None:
    request = json.loads(sys.stdin.readline())
    options, threads = MaskOptions(**request["options"]), int(request["threads"])
    start = time.perf_counter()
    predictor = load_predictor(
        Path(request["model"]), options=options, threads=threads, engine="jobs.bench_worker:CountingEngine"
    )
    _answer({"load_s": time.perf_counter() - start})
    for line in sys.stdin:
        request = json.loads(line)
        if "label_s" in request:
            photos = itertools.islice(itertools.cycle(request["photos"]), request["first"], None)
            _answer(_label(photos, predictor, options, seconds=request["label_s"]))
        else:
            speed = measure_product_speed(threads=threads, precision=options.precision, seconds=_PRODUCT_SECONDS)
            _answer({"product_flops_per_s": speed})


def _label(photos: Any, predictor: Predictor, options: MaskOptions, *, seconds: float) -> dict[str, Any]:
    """Label photo after photo until the time is over, one at least."""
    CountingEngine.counts.clear()
    stages: list[Sequence[float]] = []
    num_masks = 0
    start = time.perf_counter()
    for path in photos:
        before = time.perf_counter()
        pixels = decode_image(Path(path).read_bytes(), exif=options.exif, max_pixels=options.max_pixels).pixels
        decoded = time.perf_counter()
        masks, spent = generate_masks(pixels, predictor=predictor, options=options)
        generated = time.perf_counter()
        num_masks += masks_to_batch(masks, image_id=1, file_name=path).num_rows
        packing_s = time.perf_counter() - generated
        stages.append((decoded - before, spent.encode, spent.predict, spent.post + packing_s))
        elapsed = time.perf_counter() - start
        if elapsed + elapsed / len(stages) / 2 > seconds:  # The next one would end farther from it.
            break
    return {
        "num_images": len(stages),
        "num_masks": num_masks,
        "seconds": time.perf_counter() - start,
        "stages": [sum(column) for column in zip(*stages, strict=True)],
        "counts": dict(CountingEngine.counts),
        "peak_bytes": _measure_peak(),
    }


def _measure_peak() -> int:
    """The most memory of this process; ``ru_maxrss`` would remember that of the process that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return measure_peak_memory()
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else measure_peak_memory()


def _answer(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
