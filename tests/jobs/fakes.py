"""What job tests share: a fake model, generated pictures, a job in a process of its own."""

import hashlib
import io
import os
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import fake_engine
import numpy as np
import pytest
from PIL import Image as PillowImage
from pyarrow import parquet

from jobs.events import Event
from jobs.options import Selection
from jobs.plan import RunRecord, RunSpec, describe_model, freeze_run
from jobs.sources import list_images
from jobs.worker import ShardLabeler
from labeler import storage
from labeler.model_folder import ModelInfo, read_model_info
from labeler.options import MaskOptions

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

PATHS = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "COLUMNS": "200"}

FAKE_ENGINE = "fake_engine:DiscEngine"

QUICK = ("--points-per-side", "3", "--stability-score-thresh", "0.5", "--cpus-per-worker", "1")
"""Options under which the fake engine's discs survive and an image takes milliseconds."""


def make_model(folder: Path, *, content: str) -> Path:
    """A folder that passes for a model; other content is another model."""
    folder.mkdir(exist_ok=True)
    files = {}
    for name in ("encoder.xml", "encoder.bin", "predictor.xml", "predictor.bin"):
        (folder / name).write_text(content)
        files[name] = hashlib.sha256(content.encode()).hexdigest()
    info = ModelInfo(
        model_type="discs",
        architecture={"image_size": 64},
        image_size=64,
        embedding_shape=(1, 1, 16, 16),
        mask_threshold=0.0,
        defaults={},
        prompts_per_call=16,
        weights="f32",
        checkpoint_sha256=hashlib.sha256(content.encode()).hexdigest(),
        files=files,
        tools={},
    )
    (folder / "model.json").write_text(info.to_json())
    return folder


def write_picture(path: Path, *, seed: int = 0, colour: tuple[int, int, int] | None = None) -> Path:
    """A small picture of one colour. Some colours make the fake engine misbehave."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 90, 2)
    pixels = np.full((height, width, 3), rng.integers(0, 200, 3) if colour is None else colour, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path)
    return path


def make_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    """An archive of these files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def start_jobs(*arguments: Any, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """``python -m jobs`` with the fake engine, in a process of its own, from any folder."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "fake_jobs.py"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **PATHS, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def label_arguments(photos: Path, output: Path, model: Path, *more: Any) -> tuple[Any, ...]:
    """A quick job's command line."""
    return ("label", "--input", photos, "--output", output, "--model", model, *QUICK, *more)


def freeze(photos: Path, output: Path, model: Path, *, images_per_shard: int = 5, **selection: Any) -> RunRecord:
    """A run's record, frozen with options under which the fake engine's discs survive."""

    spec = RunSpec(
        input=storage.path_to_uri(photos),
        selection=Selection(**selection),
        options=MaskOptions(points_per_side=3, stability_score_thresh=0.5),
        model=describe_model(read_model_info(model), name=str(model)),
    )
    listing = list_images(spec.input, selection=spec.selection)
    return freeze_run(str(output), spec, images_per_shard=images_per_shard, listing=listing, model_folder=model)


def load_worker(output: Path | str, *, retries: int = 0, engine: str = FAKE_ENGINE, **options: Any) -> ShardLabeler:
    """A worker of a run in this process, as an actor makes it."""
    labeler = ShardLabeler(str(output), threads=1, retries=retries, engine=engine, **options)
    labeler.load()
    return labeler


def label_shards(output: Path | str, shards: Iterable[int], *, retries: int = 0, engine: str = FAKE_ENGINE) -> list[Event]:
    """Label them in this process, without Ray; what the worker told."""
    labeler = load_worker(output, retries=retries, engine=engine)
    return [event for shard in shards for event in labeler.label_shard(shard)]


def label_undisturbed(photos: Path, output: Path, model: Path, *, images_per_shard: int) -> dict[str, bytes]:
    """The masks parts as one worker makes them without Ray, where nothing happens to it and nobody is slow."""
    record = freeze(photos, output, model, images_per_shard=images_per_shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_ENGINE_SLOW_S", "0")
        label_shards(output, range(record.num_shards))
    return read_masks(output)


def read_masks(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "masks").glob("part-*"))}


def read_mask_rows(output: Path, *, without: Collection[int] = ()) -> list[dict[str, Any]]:
    """The masks table, but for those of some images."""
    rows: list[dict[str, Any]] = parquet.read_table(output / "masks").to_pylist()
    return [row for row in rows if row["image_id"] not in without]


def wait_until(condition: Callable[[], Any], *, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def make_slow(folder: Path, *, count: int = 8) -> Path:
    """Pictures of half a second each."""
    for number in range(count):
        write_picture(folder / f"{number}.png", seed=number, colour=fake_engine.SLOW)
    return folder


def find_workers(ancestor: int, *, called: bytes = b"label_shard") -> list[int]:
    """The labeling processes below this one, or others by a word of their command line."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                pid, rest = int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()
                parents[pid], names[pid] = int(rest[1]), (entry / "cmdline").read_bytes()
            except OSError:
                continue  # It has ended.

    def is_below(pid: int) -> bool:
        return pid in parents and (parents[pid] == ancestor or is_below(parents[pid]))

    return [pid for pid, name in names.items() if called in name and is_below(pid)]


class Cluster:
    """A Ray cluster in processes of its own. ``environment`` is how a job finds it: by its address and token."""

    def __init__(self, *, head_cpus: int) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "start_ray.py"), str(head_cpus)],
            # Ray gives workers a low priority: on a busy machine a test would wait for them.
            env={**os.environ, **PATHS, **token, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.environment = {**token, "RAY_ADDRESS": self.process.stdout.readline().strip()}

    def order(self, word: str) -> str:
        """See ``start_ray``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(word, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        """End it."""
        self.process.communicate("", timeout=60)
