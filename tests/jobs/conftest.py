"""A fake model, generated pictures, and a way to run jobs in processes of their own."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import jobs.cli

sys.path.insert(0, str(Path(__file__).parent))  # So that tests and workers find "fakes" and "fake_engine" by name.

from fakes import FAKE_ENGINE, Cluster, freeze, label_shards, make_model, start_jobs, write_picture

RunJobs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose graphs nobody reads: the engine is a fake."""
    return make_model(tmp_path_factory.mktemp("model"), content="graph")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten good pictures in two folders, two broken files, and some that are no pictures by name."""
    folder = tmp_path / "photos"
    for number in range(10):
        write_picture(folder / ("a" if number % 2 else "b/c") / f"{number} %.png", seed=number)
    (folder / "a" / "empty.jpg").write_bytes(b"")
    (folder / "a" / "page.png").write_text("<html>not found</html>")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def run_jobs(tmp_path: Path) -> RunJobs:
    """Run a job to its end: exit code, stdout and stderr."""

    def run(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        process = start_jobs(*arguments, cwd=tmp_path, **environment)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def label_here(photos: Path, model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Freeze and label a run in this process, without Ray. Gives its folder; not all shards where ``shards`` says which."""

    def label(*, name: str = "run", images_per_shard: int = 5, shards: Sequence[int] | None = None) -> Path:
        output = tmp_path / name
        record = freeze(photos, output, model_folder, images_per_shard=images_per_shard)
        label_shards(output, range(record.num_shards) if shards is None else shards)
        return output

    return label


@pytest.fixture(scope="session")
def cluster_of_two() -> Iterator[Cluster]:
    """One Ray cluster of two CPUs for many tests."""
    cluster = Cluster(head_cpus=2)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(cluster_of_two: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """It, and the way to it."""
    for name, value in cluster_of_two.environment.items():
        monkeypatch.setenv(name, value)
    return cluster_of_two


@pytest.fixture
def growing_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head has one CPU and that nodes are added to and taken from."""
    cluster = Cluster(head_cpus=1)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.stop()


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command line in this process, from an empty folder."""
    monkeypatch.setattr(jobs.cli, "ENGINE", FAKE_ENGINE)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: jobs.cli.main([str(argument) for argument in arguments])
