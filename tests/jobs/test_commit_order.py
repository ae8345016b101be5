"""A worker killed between the steps of writing a shard: it counts whole or not at all, and made again it is as undisturbed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import PATHS, load_worker, write_picture
from prompt_fakes import label_prompts, write_prompts

from jobs.plan import read_run
from jobs.shards import read_parts
from jobs.verify import find_faults
from labeler import tables

BOXES = "prompt_fakes:BoxEngine"

# Labels a shard, and is killed when so many files were deleted or written; at the latest when it is done.
KILL = f"""
import os, pathlib, signal, sys
from labeler import storage
from fakes import load_worker

left = int(sys.argv[2])

def count(step):
    def call(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        step(*arguments)
    return call

labeler = load_worker(pathlib.Path(sys.argv[1]), engine="{BOXES}")
storage.delete, storage.write_bytes = count(storage.delete), count(storage.write_bytes)
list(labeler.label_shard(0))
assert left == 0
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """``old`` and ``new``: the same prompts, answered with discs and with boxes, each in one shard."""
    folder = tmp_path_factory.mktemp("runs")
    names = [write_picture(folder / "photos" / f"{number}.png", seed=number).name for number in range(3)]
    prompts = write_prompts(folder / "p.jsonl", [{"image": name, "box_xyxy": [5, 5, 30, 30]} for name in names])
    label_prompts(folder / "photos", prompts, folder / "old", model_folder)
    label_prompts(folder / "photos", prompts, folder / "new", model_folder, engine=BOXES)
    return folder


def read_bytes(output: Path) -> dict[str, bytes]:
    """All but the images part, which has clocks in it."""
    return {name: (output / name / "part-0000000.parquet").read_bytes() for name in ("masks", "prompts")}


@pytest.mark.parametrize(
    ("num_steps", "stands"),
    [
        pytest.param(0, "old", id="nothing yet"),
        pytest.param(1, None, id="old images part deleted"),
        pytest.param(2, None, id="masks part written"),
        pytest.param(3, None, id="prompts part written"),
        pytest.param(4, "new", id="images part written"),
    ],
)
def test_killed_between_the_steps_of_a_commit(runs: Path, tmp_path: Path, num_steps: int, stands: str | None) -> None:
    """While a shard that stands is made again with other masks: old and new ones never pass for one shard."""
    output = shutil.copytree(runs / "old", tmp_path / "run")
    arguments = [sys.executable, "-c", KILL, str(output), str(num_steps)]
    killed = subprocess.run(arguments, env={**os.environ, **PATHS}, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert tables.list_committed_shards(str(output)) == (set() if stands is None else {0})
    assert (read_parts(str(output), 0) is None) == (stands is None)
    assert stands is None or read_bytes(output) == read_bytes(runs / stands)

    list(load_worker(output, engine=BOXES).label_shard(0))
    assert read_bytes(output) == read_bytes(runs / "new") != read_bytes(runs / "old")
    record = read_run(str(output))
    assert record is not None
    assert list(find_faults(str(output), record)) == []
