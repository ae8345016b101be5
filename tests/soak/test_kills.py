"""Twenty kills of workers and twenty of drivers, each at a moment drawn from a seed. ``make soak`` shows the table."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

from fakes import Cluster, find_workers, label_arguments, make_model, make_slow, read_masks, start_jobs, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

NUM_RUNS = 20
NUM_IMAGES = 16
SECONDS_OF_LABELING = NUM_IMAGES * 0.5 / 2
MORE = ("--workers", 2, "--images-per-shard", 2)


@dataclass(frozen=True)
class Run:
    """One run that was disturbed.

    Attributes:
        hit: the kill came before the end.
        done: shards that were committed when it came.
        fault: what is wrong with the output; empty where its masks are an undisturbed run's and each image has one row.
    """

    seed: int
    after_s: float
    hit: bool
    done: int
    rows: int
    seconds: float
    fault: str


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two CPUs for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(head_cpus=2)
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster
        cluster.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a model."""
    folder = tmp_path_factory.mktemp("soak")
    make_slow(folder / "pictures", count=NUM_IMAGES)
    make_model(folder / "model", content="graph")
    return folder


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, folder: Path) -> dict[str, bytes]:
    """The masks as they should be."""
    assert run_to_the_end(folder, "undisturbed")[0] == 0
    return read_masks(folder / "undisturbed")


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    return start_jobs(*label_arguments(folder / "pictures", folder / name, folder / "model", *MORE), cwd=folder)


def run_to_the_end(folder: Path, name: str) -> tuple[int, str]:
    driver = start(folder, name)
    _, err = driver.communicate(timeout=300)
    return driver.returncode, err


def count_parts(output: Path) -> int:
    return len(list((output / "images").glob("part-*")))


def judge(output: Path, undisturbed: dict[str, bytes]) -> tuple[int, str]:
    """How many rows a run has, and what is wrong with it."""
    images = pd.read_parquet(output / "images")
    if images["image_id"].tolist() != list(range(1, NUM_IMAGES + 1)):
        return len(images), f"rows {images['image_id'].tolist()}"
    if images["status"].ne("ok").any():
        return len(images), f"errors {images['error_kind'].dropna().tolist()}"
    return len(images), "" if read_masks(output) == undisturbed else "other masks"


def list_stages(cluster: Cluster, output: Path) -> list[Callable[[], object]]:
    """From when on a kill may come: the run is begun, workers are there, the first shard is committed."""
    return [output.exists, lambda: find_workers(cluster.process.pid), lambda: count_parts(output)]


def show(runs: list[Run], case: str) -> None:
    """Every run, and one line for the note; fails where one is wrong."""
    print(f"\n{pd.DataFrame(runs).to_string(index=False)}")
    seconds = sorted(run.seconds for run in runs)
    print(f"{'case':<36} runs  hit  equal  one row an image  seconds (median, most)")
    print(
        f"{case:<36} {len(runs):>4} {sum(run.hit for run in runs):>4} {sum(not run.fault for run in runs):>6} "
        f"{sum(run.rows == NUM_IMAGES for run in runs):>17}  {seconds[len(seconds) // 2]}, {seconds[-1]}"
    )
    assert not [run for run in runs if run.fault]
    assert sum(run.hit for run in runs) >= 0.8 * len(runs)


def test_workers_killed(cluster: Cluster, folder: Path, undisturbed: dict[str, bytes]) -> None:
    """One kill a run: every image has its masks in the end, and they are an undisturbed run's."""
    runs: list[Run] = []
    for seed in range(NUM_RUNS):
        draw, output = random.Random(seed), folder / f"worker{seed}"
        begin = time.monotonic()
        driver = start(folder, output.name)
        wait_until(list_stages(cluster, output)[1 + seed % 2])
        after_s = round(draw.uniform(0, SECONDS_OF_LABELING - 1), 2)
        time.sleep(after_s)
        workers = find_workers(cluster.process.pid)
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        done = count_parts(output)
        _, err = driver.communicate(timeout=300)
        rows, fault = judge(output, undisturbed) if driver.returncode == 0 else (0, err[-200:])
        hit = "a worker died" in err
        runs.append(Run(seed, after_s, hit, done, rows, round(time.monotonic() - begin, 1), fault))
    show(runs, "SIGKILL of a worker")


def test_drivers_killed(cluster: Cluster, folder: Path, undisturbed: dict[str, bytes]) -> None:
    """At any moment from its first file on; the same command goes on at once, without waiting for the dead one's lease."""
    runs: list[Run] = []
    for seed in range(NUM_RUNS):
        draw, output = random.Random(1000 + seed), folder / f"driver{seed}"
        driver = start(folder, output.name)
        wait_until(list_stages(cluster, output)[min(2, seed % 4)])
        after_s = round(draw.uniform(0, SECONDS_OF_LABELING - 1), 2)
        time.sleep(after_s)
        hit = driver.poll() is None
        driver.kill()
        driver.communicate()
        done = count_parts(output)
        begin = time.monotonic()
        code, err = run_to_the_end(folder, output.name)
        rows, fault = judge(output, undisturbed) if code == 0 else (0, err[-200:])
        fault = "waited for the dead driver" if "waiting" in err else fault
        runs.append(Run(seed, after_s, hit, done, rows, round(time.monotonic() - begin, 1), fault))
    show(runs, "SIGKILL of the driver, and rerun")
