"""How many workers are wanted, how large and where: on described nodes, and on real ones that come, go and fail."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from fakes import Cluster, find_workers, label_arguments, make_slow, start_jobs, wait_until

import jobs.cluster
import jobs.crew
from jobs.crew import Crew, Task, Worker
from jobs.events import WorkerInfo
from jobs.lease import ProcessName
from jobs.ledger import Assignment
from jobs.options import JobOptions
from labeler.errors import StorageError

RunJobs = Callable[..., subprocess.CompletedProcess[str]]
GIB = 2**30


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """As Ray describes them: a head without CPUs, two of 4 CPUs and 8 GiB, one of 4 CPUs and 3 GiB."""
    sizes = [(0, 8), (4, 8), (4, 8), (4, 3)]
    described = [
        {"NodeID": f"node{number}", "NodeManagerAddress": f"10.0.0.{number}", "Resources": {"CPU": cpus, "memory": gib * GIB}}
        for number, (cpus, gib) in enumerate(sizes)
    ]
    monkeypatch.setattr(jobs.cluster, "list_nodes", lambda: described)
    return described


def make_crew(**options: Any) -> Crew:
    lease: Any = None  # Nobody is hired.
    return Crew("out", options=JobOptions(**options), engine="", lease=lease, memory_bytes=GIB)


def find_parent(pid: int) -> int:
    """Of a worker: its node's own process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_auto_fills_what_has_room(nodes: list[dict[str, Any]]) -> None:
    """CPUs and memory both count, node by node; --min-workers and --max-workers are asked for whatever there is."""
    assert make_crew().count_wanted() == 4 + 4 + 3
    assert make_crew(cpus_per_worker=2).count_wanted() == 2 + 2 + 2
    assert make_crew(cpus_per_worker=8).count_wanted() == 1
    assert make_crew(min_workers=5).count_wanted() == 11
    assert make_crew(min_workers=50).count_wanted() == 50
    assert make_crew(max_workers=3).count_wanted() == 3
    assert make_crew(max_workers=100).count_wanted() == 100
    assert make_crew(workers=7).count_wanted() == 7


def test_workers_ask_for_the_memory_that_others_were_seen_to_need(nodes: list[dict[str, Any]]) -> None:
    """With a margin, never less than before, and never more than the largest node has, on which one was seen to live."""
    crew = make_crew()
    crew.learn_memory(2 * GIB)
    assert crew.count_wanted() == 3 + 3 + 1
    crew.learn_memory(GIB // 2)
    crew._count_at_s = 0
    assert crew.count_wanted() == 3 + 3 + 1
    crew.learn_memory(int(7.5 * GIB))
    crew._count_at_s = 0
    assert crew.count_wanted() == 1 + 1


def test_deaths_while_loading_are_counted_by_node(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loads its model elsewhere says nothing about a node; a machine that is gone is no death."""
    crew = make_crew(retries=1)
    monkeypatch.setattr(jobs.crew, "find_node", lambda actor: actor)

    def bury(node: str, **how: Any) -> None:
        worker = Worker(node, loading=None)
        crew._workers += [worker, Worker("node2", loading=None)]
        crew.bury(worker, then=lambda: None, **{"is_machine_gone": False, **how})

    for node in ("node1", "node3", "node2"):
        bury(node)
    bury("node1", is_machine_gone=True)
    assert crew.count_wanted() == 4 + 4 + 3
    bury("node1")
    assert crew.count_wanted() == 4 + 3


@pytest.mark.parametrize("num_workers", [2, 3])
def test_where_every_node_is_left_out_nobody_waits(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """One worker can't load, the others die later: where could new ones be? A node that comes is another matter."""
    del nodes[2:]
    monkeypatch.setattr(jobs.crew, "find_node", lambda actor: "node1")
    monkeypatch.setattr(jobs.crew.ray, "kill", lambda actor: None)
    crew = make_crew(workers=num_workers)
    crew._actor_class = Mock()
    crew.hire(num_shards=9)
    first, *others = crew._workers
    for worker in others:
        crew.welcome(worker, WorkerInfo("host", ProcessName("elsewhere", 1, "1"), 1, node="node1"))
    crew.leave_out(first, StorageError("this node does not see the input"))
    for worker in others:
        crew.hire(num_shards=9)
        crew.bury(worker, is_machine_gone=False, then=lambda: None)
    with pytest.raises(StorageError, match="does not see the input"):
        crew.hire(num_shards=9)
    nodes.append({**nodes[1], "NodeID": "node4"})
    crew.hire(num_shards=9)
    assert len(crew._workers) == num_workers - 1


def test_a_worker_that_does_not_answer_is_not_taken_for_hung() -> None:
    """Its machine may be gone: first Ray has to find out."""
    crew = make_crew(image_timeout=1)
    task = Task(Assignment(0), events=None, in_work=[1])
    assert task.is_overdue(1)
    crew._workers.append(Worker(actor=None, loading=None, task=task, missing=object()))
    crew.kill_hung_workers()
    assert task.hung_image is None


def test_max_workers_is_not_passed(cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """One worker, where two have room."""
    slow = make_slow(tmp_path / "slow", count=4)
    common = label_arguments(slow, tmp_path / "out", model_folder, "--images-per-shard", 1)
    answer = run_jobs(*common, "--max-workers", 1)
    assert answer.returncode == 0, answer.stderr
    assert len(set(re.findall(r"by pid (\d+)", answer.stderr))) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_work_is_spread_over_nodes(cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    """Two workers, two nodes that both have room for both: one on each, and both have work."""
    slow = make_slow(tmp_path / "slow", count=8)
    common = label_arguments(slow, tmp_path / "out", model_folder)
    for _node in range(2):
        cluster.order("add 8")
    # Workers of three CPUs (the last option): the head is too small.
    driver = start_jobs(*common[:-1], 3, "--workers", 2, "--images-per-shard", 1, cwd=tmp_path)
    try:
        workers = wait_until(lambda: len(found := find_workers(cluster.process.pid)) == 2 and found)
        assert len({find_parent(worker) for worker in workers}) == 2
        _, err = driver.communicate(timeout=60)
    finally:
        for _node in range(2):
            cluster.order("kill")
    assert driver.returncode == 0, err
    assert len(set(re.findall(r"by pid (\d+)", err))) == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
def test_a_node_that_can_not_load_the_model_is_left_out(growing_cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    """That is said, the others do its work, and a worker that dies is not replaced by one there."""
    growing_cluster.order("bad")
    slow = make_slow(tmp_path / "slow", count=12)
    driver = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, "--images-per-shard", 2), cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out" / "images" / "part-0000001.parquet").exists())
    for worker in wait_until(lambda: find_workers(growing_cluster.process.pid)):  # Between two shards there is none.
        os.kill(worker, signal.SIGKILL)
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert len(re.findall(r"node \S+ is left out: this machine can't compute that", err)) == 1
    assert "a worker died" in err
    assert pd.read_parquet(tmp_path / "out" / "images")["status"].eq("ok").all()


def test_a_node_on_which_loading_kills_the_worker_is_left_out(
    growing_cluster: Cluster, model_folder: Path, tmp_path: Path
) -> None:
    """By name; elsewhere the work goes on with as many workers as there is room for."""
    growing_cluster.order("deadly")
    slow = make_slow(tmp_path / "slow", count=14)
    more = ("--images-per-shard", 2, "--retries", 0)
    driver = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, *more), cwd=tmp_path)
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert len(re.findall(r"node \S+ is left out: workers die while they load the model", err)) == 1
    assert "a worker is left out" not in err
    assert pd.read_parquet(tmp_path / "out" / "images")["status"].eq("ok").all()


def test_where_no_node_has_room_that_is_said(growing_cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    """What a worker takes, what the nodes have; the job goes on as soon as one comes that is large enough."""
    slow = make_slow(tmp_path / "slow", count=2)
    common = label_arguments(slow, tmp_path / "out", model_folder)
    driver = start_jobs(*common[:-1], 3, cwd=tmp_path)  # The last option is --cpus-per-worker.
    wait_until(lambda: (tmp_path / "out" / "run.json").exists())
    time.sleep(3)
    growing_cluster.order("add 4")
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert re.search(r"no node has room for a worker, which takes 3 CPUs and 0\.\d GiB; nodes: \S+ 1 CPUs and 8\.0 GiB;", err)
