"""Twenty kills of workers and twenty of drivers, each at a moment drawn from a seed; prints a table. ``pytest -m soak``."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

from fakes import Cluster, find_workers, label_arguments, make_model, make_slow, read_masks, start_jobs, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

NUM_RUNS = 20
NUM_IMAGES = 8
MORE = ("--workers", 2, "--images-per-shard", 2)


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


def check(folder: Path, name: str, undisturbed: dict[str, bytes]) -> str:
    """What is wrong with a run's output; nothing where it is right."""
    images = pd.read_parquet(folder / name / "images")
    if images["image_id"].tolist() != list(range(1, NUM_IMAGES + 1)):
        return f"rows {images['image_id'].tolist()}"
    if images["status"].ne("ok").any():
        return f"errors {images['error_kind'].dropna().tolist()}"
    return "" if read_masks(folder / name) == undisturbed else "other masks"


def show(rows: list[dict[str, object]], title: str) -> None:
    print(f"\n{title}\n{pd.DataFrame(rows).to_string(index=False)}")


def test_workers_killed(cluster: Cluster, folder: Path, undisturbed: dict[str, bytes]) -> None:
    """One kill a run: every image has its masks in the end, and they are an undisturbed run's."""
    rows: list[dict[str, object]] = []
    for seed in range(NUM_RUNS):
        draw, name = random.Random(seed), f"worker{seed}"
        driver = start(folder, name)
        wait_until(lambda: find_workers(cluster.process.pid))
        delay_s = draw.uniform(0, 2)
        time.sleep(delay_s)
        workers = find_workers(cluster.process.pid)
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        _, err = driver.communicate(timeout=300)
        fault = check(folder, name, undisturbed) if driver.returncode == 0 else err[-200:]
        died = err.count("a worker died")
        rows.append({"seed": seed, "after_s": round(delay_s, 2), "killed": bool(workers), "noticed": died, "fault": fault})
    show(rows, "a worker killed in mid-run")
    assert not [row for row in rows if row["fault"]]


def test_drivers_killed(cluster: Cluster, folder: Path, undisturbed: dict[str, bytes]) -> None:
    """At any moment, planning included; the same command again goes on, without waiting for the dead one's lease."""
    rows: list[dict[str, object]] = []
    for seed in range(NUM_RUNS):
        draw, name = random.Random(1000 + seed), f"driver{seed}"
        driver = start(folder, name)
        delay_s = draw.uniform(0.5, 7)
        time.sleep(delay_s)
        driver.kill()
        driver.communicate()
        done = len(list((folder / name / "images").glob("part-*")))
        begin = time.monotonic()
        code, err = run_to_the_end(folder, name)
        fault = check(folder, name, undisturbed) if code == 0 else err[-200:]
        seconds = round(time.monotonic() - begin, 1)
        rows.append({"seed": seed, "after_s": round(delay_s, 2), "shards_done": done, "rerun_s": seconds, "fault": fault})
    show(rows, "a driver killed and started again")
    assert not [row for row in rows if row["fault"]]
