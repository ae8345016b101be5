"""How many prompts a model answers in one call: measured once, at conversion, and written in ``model.json``.

Must not know how a folder is made. A call's work should fit the cache of one core: more prompts at a time share what is read
of the image, but each brings megabytes of its own. Which number is best depends on the model more than on the machine; a
job does not tune it, so that all its workers compute the same.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from labeler.engine import Engine
from labeler.model_folder import ModelInfo

logger = logging.getLogger(__name__)

CALL_SIZES = (1, 2, 4, 8)

_NUM_PROMPTS = max(CALL_SIZES)
_MAX_ROUNDS = 7
_MAX_SECONDS = 6.0
_WORTH_IT = 0.95
"""A larger call must take less than this part of a smaller one's time."""


def choose_call_size(folder: Path, info: ModelInfo) -> int:
    """The number of prompts a call with which this machine answers fastest, on one thread, in f32.

    Raises:
        ModelError: the folder's graphs can't be run here.
    """
    seconds = measure_call_sizes(folder, info)
    chosen = pick_fastest(seconds)
    figures = ", ".join(f"{size}: {1000 * s:.1f} ms" for size, s in seconds.items())
    logger.info("%d prompts a call (a prompt takes, by prompts a call, %s)", chosen, figures)
    return chosen


def pick_fastest(seconds: Mapping[int, float]) -> int:
    """The number of prompts a call that takes least time a prompt; of two hardly apart the smaller, for its memory."""
    chosen, *larger = sorted(seconds)
    for size in larger:
        if seconds[size] < seconds[chosen] * _WORTH_IT:
            chosen = size
    return chosen


def measure_call_sizes(folder: Path, info: ModelInfo) -> dict[int, float]:
    """CPU seconds a prompt takes on one thread, by prompts a call: the least of a few rounds, for other programs only add."""
    engine = Engine(folder, info, threads=1)
    random = np.random.default_rng(0)
    features = random.normal(size=info.embedding_shape).astype(np.float32)
    points = random.uniform(0, info.image_size, (_NUM_PROMPTS, 2, 2)).astype(np.float32)
    labels = np.tile(np.array([1, -1], np.int32), (_NUM_PROMPTS, 1))  # A point, and SAM's padding, as the grid asks.

    def answer(size: int) -> float:
        start = time.process_time()
        engine.predict(
            features, points=points, labels=labels, wanted=lambda iou: np.zeros(len(iou), np.bool_), prompts_per_call=size
        )
        return (time.process_time() - start) / _NUM_PROMPTS

    for size in CALL_SIZES:
        answer(size)  # Compiles.
    fastest = dict.fromkeys(CALL_SIZES, float("inf"))
    end = time.perf_counter() + _MAX_SECONDS
    for _ in range(_MAX_ROUNDS):
        for size in CALL_SIZES:
            fastest[size] = min(fastest[size], answer(size))
        if time.perf_counter() > end:
            break
    return fastest
