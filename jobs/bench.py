"""How a machine is best cut into workers: a few splits, each run for a while with real worker processes at the same time.

Must not know Ray, runs or shards: a worker here labels photos and forgets the masks. Progress is told in sentences.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jobs.processes import add_own_path
from labeler import storage
from labeler.errors import ImageError, ModelError, OptionsError
from labeler.images import decode_image, encode_png
from labeler.limits import count_usable_cpus, measure_free_memory
from labeler.options import MaskOptions
from labeler.speed import count_flops
from labeler.temporary import temporary_folder

MAX_PHOTOS = 8
STAGES = ("decode", "encode", "predict", "after")
_COUNTED = ("encoder", "image_side", "prompts", "masks")
_DRAWN_HW = (1200, 1800)
_MIN_LABEL_S = 1.0


@dataclass(frozen=True, slots=True)
class Split:
    """So many workers of so many CPU threads each."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """What a split did.

    Attributes:
        images_per_s: of all workers together.
        num_images: labeled in the time there was.
        num_masks: found in them.
        stage_s: seconds an image spends in each of ``STAGES``.
        peak_bytes: memory of the largest worker.
        product_share: of the speed at which these workers, all at once, multiply matrices, what encoder and predictor got.
    """

    split: Split
    images_per_s: float
    num_images: int
    num_masks: int
    stage_s: tuple[float, ...]
    peak_bytes: int
    product_share: float


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """What a machine did.

    Attributes:
        cold_s: from a worker's start until it can label, its model compiled for the first time on this machine.
        cached_s: the same with the compiled model in the node's cache.
        splits: widest workers first.
    """

    num_cpus: int
    cold_s: float
    cached_s: float
    splits: tuple[SplitFigures, ...]

    @property
    def best(self) -> SplitFigures:
        """The split of most images a second."""
        return max(self.splits, key=lambda figures: figures.images_per_s)


def plan_splits(num_cpus: int) -> list[Split]:
    """Ways to fill the CPUs, widest worker first: it needs least memory, and one of its photos ends soonest."""
    workers = sorted({max(1, num_cpus >> halvings) for halvings in range(num_cpus.bit_length())})
    return [Split(number, num_cpus // number) for number in workers]


def run_bench(
    folder: Path,
    *,
    options: MaskOptions,
    images: str | None,
    seconds: float,
    say: Callable[[str], None],
    num_cpus: int | None = None,
) -> BenchFigures:
    """Measure every split on this machine.

    Args:
        folder: the model's.
        options: with which photos are labeled.
        images: a folder or URI of photos; drawn pictures where there is none.
        seconds: about how long all of it may take; each split labels one photo a worker at least.
        say: told what goes on.
        num_cpus: how many CPUs to fill; all usable ones by default.

    Raises:
        OptionsError: no photo in ``images``.
        ModelError: a worker can't load or run the model.
    """
    end = time.perf_counter() + seconds
    num_cpus = num_cpus or count_usable_cpus()
    splits = plan_splits(num_cpus)
    with temporary_folder("sam-labeler-bench-") as name:
        photos = _copy_photos(images, folder=Path(name)) if images else _draw_photos(Path(name))
        flops = {graph: count_flops(folder, graph=graph) for graph in _COUNTED}
        request = {"model": str(folder.resolve()), "options": options.model_dump(mode="json")}
        bench = _Bench(request, cache=Path(name, "cache"), photos=photos, flops=flops)

        say(f"a worker of {splits[0].threads} threads, its model compiled for the first time ...")
        cold_s, load_s = bench.time_start(splits[0].threads)
        say(f"ready after {cold_s:.1f} s, {load_s:.1f} of them for the model; another, which finds it compiled ...")
        cached_s, load_s = bench.time_start(splits[0].threads)
        say(f"ready after {cached_s:.1f} s, {load_s:.1f} of them for the model")

        done: list[SplitFigures] = []
        for number, split in enumerate(splits):
            if done and (needed := split.workers * done[-1].peak_bytes) > measure_free_memory():
                say(f"{split} is left out: it would need about {needed / 2**30:.1f} GiB of memory")
                break
            share_s = (end - time.perf_counter()) / (len(splits) - number)
            say(f"{split}: labeling ...")
            done.append(bench.measure(split, end=time.perf_counter() + share_s))
            say(f"{split}: {done[-1].images_per_s:.3g} images/s, {done[-1].num_images} labeled")
    return BenchFigures(num_cpus, cold_s, cached_s, tuple(done))


def describe_bench(figures: BenchFigures, *, price: float | None) -> str:
    """The table, and the flags of the best split.

    Args:
        price: of a core for an hour; the currency is the caller's. None: what 1000 images cost is told in hours of a core.
    """
    cost = "cost of 1000 images" if price is not None else "core-hours for 1000 images"
    lines = [f"workers x threads  images/s   s/image: {'  '.join(STAGES)}   memory/worker  of product speed  {cost}"]
    for row in figures.splits:
        stages = "  ".join(f"{s:{len(name)}.3g}" for name, s in zip(STAGES, row.stage_s, strict=True))
        line = f"{row.split!s:>17}  {row.images_per_s:8.3g}   {sum(row.stage_s):7.3g}: {stages}"
        line += f"   {row.peak_bytes / 2**20:9.0f} MiB  {row.product_share:16.0%}"
        core_hours = figures.num_cpus * 1000 / row.images_per_s / 3600
        lines.append(f"{line}  {core_hours if price is None else core_hours * price:{len(cost)}.4g}")
    best = figures.best
    num_masks, num_images = (sum(getattr(row, name) for row in figures.splits) for name in ("num_masks", "num_images"))
    lines += [
        f"{num_masks / num_images:.0f} masks an image",
        f"a worker starts in {figures.cold_s:.1f} s, in {figures.cached_s:.1f} s with its model in the node's cache",
        f"best here: --cpus-per-worker {best.split.threads}, with room for {best.split.workers} "
        f"worker{'s' if best.split.workers > 1 else ''} a machine",
    ]
    return "\n".join(lines)


class _Bench:
    """Starts workers; knows what all of them are told."""

    def __init__(self, request: dict[str, Any], *, cache: Path, photos: Sequence[Path], flops: dict[str, float]) -> None:
        self._request = request
        self._cache = cache
        self._photos = [str(path) for path in photos]
        self._flops = flops

    def time_start(self, threads: int) -> tuple[float, float]:
        """Seconds until one worker, alone, can label; and those of them that it took to load the model."""
        start = time.perf_counter()
        with self._start(threads) as worker:
            load_s = worker.hear()["load_s"]
            return time.perf_counter() - start, load_s

    def measure(self, split: Split, *, end: float) -> SplitFigures:
        """All workers of a split at once: start them, let them label until ``end``, then let them multiply matrices."""
        with ExitStack() as running:
            workers = [running.enter_context(self._start(split.threads)) for _ in range(split.workers)]
            for worker in workers:
                worker.hear()
            label_s = max(_MIN_LABEL_S, end - time.perf_counter())
            for number, worker in enumerate(workers):
                worker.tell({"label_s": label_s, "photos": self._photos, "first": number % len(self._photos)})
            answers = [worker.hear() for worker in workers]
            for worker in workers:
                worker.tell({"multiply": True})
            speeds = [worker.hear()["product_flops_per_s"] for worker in workers]
        num_images = sum(answer["num_images"] for answer in answers)
        stages = np.array([answer["stages"] for answer in answers]).sum(axis=0)
        counts = sum((Counter(answer["counts"]) for answer in answers), Counter[str]())
        flops = sum(number * self._flops[graph] for graph, number in counts.items())
        return SplitFigures(
            split=split,
            images_per_s=sum(answer["num_images"] / answer["seconds"] for answer in answers),
            num_images=num_images,
            num_masks=sum(answer["num_masks"] for answer in answers),
            stage_s=tuple((stages / num_images).tolist()),
            peak_bytes=max(answer["peak_bytes"] for answer in answers),
            product_share=float(flops / (stages[1] + stages[2]) / np.mean(speeds)),
        )

    @contextmanager
    def _start(self, threads: int) -> "Iterator[_Worker]":
        worker = _Worker(self._request | {"threads": threads}, cache=self._cache)
        try:
            yield worker
        finally:
            worker.stop()


class _Worker:
    """A process of ``jobs.bench_worker``."""

    def __init__(self, request: dict[str, Any], *, cache: Path) -> None:
        environment = os.environ | {"PYTHONPATH": add_own_path(os.environ.get("PYTHONPATH")), "SAM_LABELER_CACHE": str(cache)}
        # As Ray starts its workers.
        environment["OMP_NUM_THREADS"] = str(request["threads"])
        command = [sys.executable, "-c", "from jobs.bench_worker import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.tell(request)

    def tell(self, request: dict[str, Any]) -> None:
        """Send a line. A worker that is gone is noticed by ``hear``."""
        assert self._process.stdin is not None  # It is a pipe.
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def hear(self) -> dict[str, Any]:
        """The next line, waited for.

        Raises:
            ModelError: the worker says so, or it died.
        """
        assert self._process.stdout is not None  # It is a pipe.
        line = self._process.stdout.readline()
        if not line:
            raise ModelError(f"a worker ended with {self._process.wait()}: too little memory for it, or see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ModelError(answer["error"])
        return answer

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _copy_photos(images: str, *, folder: Path) -> list[Path]:
    """Up to ``MAX_PHOTOS`` of a folder or URI, evenly over its names, as files of this machine."""
    root = storage.path_to_uri(images)
    if not storage.is_folder(root):
        raise OptionsError(f"--images: there is no folder {images}")
    uris = sorted(file.uri for file in storage.list_files(root))
    step = max(1, len(uris) // MAX_PHOTOS)
    spread = (uri for offset in range(step) for uri in uris[offset::step])
    copied: list[Path] = []
    for data in islice(filter(None, map(_read_photo, spread)), MAX_PHOTOS):
        copied.append(folder / f"photo{len(copied)}")
        copied[-1].write_bytes(data)
    if copied:
        return copied
    raise OptionsError(f"--images: none of the {len(uris)} files in {images} is an image that can be read")


def _read_photo(uri: str) -> bytes | None:
    try:
        data = storage.read_bytes(uri)
        decode_image(data)
    except (ImageError, FileNotFoundError, PermissionError):
        return None
    return data


def _draw_photos(folder: Path) -> list[Path]:
    """Three pictures of ellipses on a slope, the size of a small photograph."""
    random = np.random.default_rng(0)
    height, width = _DRAWN_HW
    y, x = np.mgrid[:height, :width].astype(np.float32)
    paths = []
    for number in range(3):
        pixels = np.stack([80 + 60 * x / width, 90 + 60 * y / height, np.full_like(x, 120)], axis=-1)
        for _ in range(40):
            center, radii = random.uniform(0, (width, height)), random.uniform(20, 250, 2)
            inside = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1
            pixels[inside] = random.uniform(0, 255, 3)
        pixels += random.normal(0, 4, pixels.shape)
        paths.append(folder / f"drawn{number}.png")
        paths[-1].write_bytes(encode_png(np.clip(pixels, 0, 255).astype(np.uint8)))
    return paths
