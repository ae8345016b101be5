"""The job with two workers of one core each against two plain processes without Ray that label the same shards.

    python benchmarks/against_plain.py MODEL [--rounds 5] [--images 48] [--input FOLDER]

Both do everything a worker does, to the committed Parquet. Rounds of the two alternate. Each side's throughput is the
sum over its processes, in the time when both were at work: from the later first commit to the earlier last one. Ray
gives its workers a low priority, which costs nothing on a quiet machine; here it does not, so that a busy one is fair too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.events import ShardCommitted
from jobs.lease import LeaseHolder
from jobs.options import JobOptions, Selection
from jobs.plan import RunRecord, RunSpec, describe_model, freeze_run, read_run
from jobs.report import Watch
from jobs.run import label_shards
from jobs.shards import Tally
from jobs.sources import list_images
from jobs.worker import ShardLabeler
from labeler import storage
from labeler.model_folder import read_model_info
from labeler.options import resolve_mask_options

ENGINE = "labeler.engine:Engine"
IMAGES_PER_SHARD = 2


@dataclass(frozen=True)
class Commit:
    """A shard of a process, on the clock that all processes of the machine share."""

    process: str
    at_s: float
    num_images: int


def write_pictures(folder: Path, *, count: int) -> None:
    """Soft shapes on a soft ground, so that there is something to find."""
    y, x = np.mgrid[:480, :640]
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.full((480, 640, 3), rng.integers(60, 200, 3), np.float32)
        for _shape in range(12):
            center_y, center_x, radius = rng.uniform(0, 480), rng.uniform(0, 640), rng.uniform(15, 120)
            inside = np.hypot(y - center_y, (x - center_x) * rng.uniform(0.5, 2)) < radius
            pixels[inside] = rng.integers(0, 256, 3)
        pixels += rng.normal(0, 4, pixels.shape)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")


def freeze(photos: Path, output: Path, model: Path) -> RunRecord:
    """A run of shards of two images, with SAM's options as the model folder sets them."""
    info = read_model_info(model)
    spec = RunSpec(
        input=storage.path_to_uri(photos),
        selection=Selection(),
        options=resolve_mask_options({}, preset=None, model_defaults=info.defaults),
        model=describe_model(info, name=str(model)),
    )
    listing = list_images(spec.input, selection=spec.selection)
    return freeze_run(str(output), spec, images_per_shard=IMAGES_PER_SHARD, listing=listing, model_folder=model)


def measure_throughput(commits: Sequence[Commit]) -> float:
    """Images a second of all processes together, while all were at work."""
    by_process = {name: [commit for commit in commits if commit.process == name] for name in {c.process for c in commits}}
    begin_s = max(own[0].at_s for own in by_process.values())
    end_s = min(own[-1].at_s for own in by_process.values())
    total = 0.0
    for name, own in by_process.items():
        inside = [commit for commit in own if begin_s <= commit.at_s <= end_s]
        if len(inside) < 2:
            raise SystemExit(
                f"process {name} committed fewer than two shards while all were at work: too few images to compare"
            )
        # A process's own clock runs from commit to commit, so that no shard is cut in two.
        total += sum(commit.num_images for commit in inside[1:]) / (inside[-1].at_s - inside[0].at_s)
    return total


def run_plain(output: Path) -> list[Commit]:
    """Two processes, every other shard each."""
    command = [sys.executable, __file__, str(output), "--child"]
    children = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(2)]
    outs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a plain process failed")
    return [Commit(**json.loads(line)) for out in outs for line in out.splitlines()]


def label_plainly(output: str, *, child: int) -> None:
    """One of the two."""
    record = read_run(output)
    assert record is not None  # Frozen by who started this.
    labeler = ShardLabeler(output, threads=1, retries=0, engine=ENGINE)
    labeler.load()
    for shard in range(child, record.num_shards, 2):
        for event in labeler.label_shard(shard):
            if isinstance(event, ShardCommitted):
                commit = {"process": str(child), "at_s": time.monotonic(), "num_images": event.tally.num_images}
                print(json.dumps(commit), flush=True)


class Recorder(Watch):
    """Notes when which worker committed."""

    commits: list[Commit]

    def say(self, text: str) -> None:
        """Nothing."""

    def count_shard(self, committed: ShardCommitted, *, worker: str = "") -> None:
        """See ``Watch``."""
        super().count_shard(committed, worker=worker)
        self.commits.append(Commit(worker, time.monotonic(), committed.tally.num_images))


def run_job(output: Path, record: RunRecord) -> list[Commit]:
    """The job, two workers, on a cluster of its own."""
    with LeaseHolder(str(output), say=print) as lease:
        lease.take()
        watch = Recorder(str(output), record=record, before=Tally())
        watch.commits = []
        options = JobOptions(workers=2, cpus_per_worker=1)
        label_shards(range(record.num_shards), output=str(output), options=options, watch=watch, engine=ENGINE, lease=lease)
    return watch.commits


def main() -> None:
    """Alternate, print each round and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--child", type=int)
    given = parser.parse_args()
    if given.child is not None:
        label_plainly(str(given.model), child=given.child)
        return
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so.
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = given.input or folder / "photos"
        if given.input is None:
            write_pictures(photos, count=given.images)
        for number in range(given.rounds):
            figures = {}
            for side in ("plain", "job") if number % 2 == 0 else ("job", "plain"):
                output = folder / f"{side}{number}"
                record = freeze(photos, output, given.model)
                commits = run_plain(output) if side == "plain" else run_job(output, record)
                figures[side] = measure_throughput(commits)
            ratios.append(figures["job"] / figures["plain"])
            rounded = {side: round(value, 3) for side, value in figures.items()}
            print(json.dumps({"round": number, "images_per_s": rounded, "ratio": round(ratios[-1], 3)}), flush=True)
    print(json.dumps({"median_ratio": round(statistics.median(ratios), 3), "least": round(min(ratios), 3)}))


if __name__ == "__main__":
    main()
