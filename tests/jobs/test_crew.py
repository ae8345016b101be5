"""How many workers are wanted, how large and where: on described nodes, and on real ones that come, go and fail."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
from fakes import Cluster, find_workers, label_arguments, make_slow, start_jobs, wait_until
from ray.exceptions import RayTaskError

import jobs.cluster
import jobs.crew
import jobs.lease
from jobs.actors import Task, Worker
from jobs.crew import Crew
from jobs.events import ImageAwaited, ImageDone, ShardCommitted, WorkerInfo
from jobs.lease import LeaseHolder, LeaseLostError, Permit, ProcessName, check_permit, read_lease
from jobs.ledger import Assignment, ShardLedger
from jobs.options import JobOptions
from jobs.run import follow_event, follow_worker
from jobs.shards import Tally
from jobs.worker import WorkerStoppedError
from labeler.errors import ModelError, StorageError, StorageRefusedError

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
    monkeypatch.setattr(jobs.crew, "is_waiting", lambda actor: False)
    return described


def make_crew(**options: Any) -> Crew:
    lease: Any = None  # Nobody is hired.
    return Crew("out", options=JobOptions(**options), engine="", lease=lease, memory_bytes=GIB)


def add_worker(crew: Crew, node: str, *, attempt: int | None = None) -> Worker:
    """One that is ready, on another machine than this; with a shard in hand where an attempt is told."""
    worker = Worker(node, loading=None)
    crew.welcome(worker, WorkerInfo("host", ProcessName("elsewhere", 1, "1"), 1, node=node))
    if attempt is not None:
        worker.task = Task(Assignment(attempt, attempt=attempt), events=iter([None]))
    crew._workers.append(worker)
    return worker


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Actors are the names of their nodes; here is which of them were killed."""
    names: list[str] = []
    monkeypatch.setattr(jobs.crew, "find_node", lambda actor: actor)
    monkeypatch.setattr(jobs.crew.ray, "kill", names.append)
    return names


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
    nodes[0]["Resources"]["memory"] = 64 * GIB  # The head's: no worker can be there.
    crew = make_crew()
    crew.memory.learn(2 * GIB)
    assert crew.count_wanted() == 3 + 3 + 1
    crew.memory.learn(GIB // 2)
    crew._count_at_s = 0
    assert crew.count_wanted() == 3 + 3 + 1
    crew.memory.learn(int(7.5 * GIB))
    crew._count_at_s = 0
    assert crew.count_wanted() == 1 + 1


def test_one_odd_image_costs_no_worker_its_place(nodes: list[dict[str, Any]]) -> None:
    """One worker in twenty needed far more. Where many do, fewer are wanted, which is said once, until they do no longer."""
    crew, said = make_crew(), list[str]()

    def learn(*peaks: float) -> int:
        for peak in peaks:
            crew.memory.learn(int(peak * GIB))
        crew._count_at_s = 0
        crew.say_if_memory_is_short(said.append)
        return crew.count_wanted()

    assert learn(*[0.8] * 19, 6.0) == 4 + 4 + 3
    assert said == []
    assert learn(*[2.0] * 100) == 3 + 3 + 1
    assert learn(*[3.0] * 100) == 2 + 2
    assert [re.findall(r"[\d.]+ GiB each|\d+, not \d+", text) for text in said] == [["2.4 GiB each", "7, not 11"]]
    assert learn(*[0.8] * 100) == 4 + 4 + 3


def test_a_node_that_was_left_out_and_is_gone_costs_no_workers(nodes: list[dict[str, Any]], killed: list[str]) -> None:
    """Another may have come in its place; while it is there, what it had is not asked for elsewhere."""
    crew = make_crew(max_workers=8)
    workers = [add_worker(crew, node) for node in ("node1", "node1", "node2", "node2")]
    for worker in workers[:2]:
        crew.leave_out(worker, StorageError("this node does not see the input"))
    assert crew.count_wanted() == 8 - 2
    del nodes[1]
    crew._count_at_s = 0
    assert crew.count_wanted() == 8
    assert killed == ["node1"] * 2


@pytest.fixture
def waiting(nodes: list[dict[str, Any]], killed: list[str], monkeypatch: pytest.MonkeyPatch) -> Crew:
    """Four workers that wait for a machine, beside one that is on node1; all of them asked for at the same time."""
    crew = make_crew(max_workers=5)
    crew._actor_class = Mock()
    names = iter(["node1", *(f"waits{number}" for number in range(99))])
    crew._actor_class.options.return_value.remote.side_effect = lambda *_more, **_named: Actor(next(names))
    monkeypatch.setattr(jobs.crew, "is_waiting", lambda actor: actor.startswith("waits"))
    crew.hire(num_shards=99)
    return crew


class Actor(str):
    """The name of its node, or of one that has none."""

    load = Mock()


def test_a_bad_node_costs_no_worker_that_waits(waiting: Crew, nodes: list[dict[str, Any]], killed: list[str]) -> None:
    """Ray would put one after the other there. They are asked for anew, on any other node, before its place is free."""
    asked = waiting._actor_class.options
    waiting.leave_out(waiting._workers[0], StorageError("this node does not see the input"))
    assert killed == ["waits0", "waits1", "waits2", "waits3", "node1"]
    waiting.hire(num_shards=99)
    assert len(waiting._workers) == 5 - 1
    assert asked.call_args.kwargs["label_selector"] == {"ray.io/node-id": "!in(node1)"}
    waiting.hire(num_shards=99)
    assert len(killed) == 5  # Those that are asked for on today's terms stay.


@pytest.mark.parametrize("comes", [True, False])
def test_a_cluster_that_can_grow_is_given_time_after_a_bad_first_node(
    waiting: Crew, nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """It is all there is, but workers were asked for before there was room: others may be on their way, for a while."""
    others, nodes[:] = nodes[2:], nodes[:2]
    waiting.leave_out(waiting._workers[0], StorageError("this node does not see the input"))
    waiting.hire(num_shards=99)
    now_s = time.monotonic()
    monkeypatch.setattr(jobs.crew.time, "monotonic", lambda: now_s + jobs.crew.NODES_COME_WITHIN_S + 1)
    if comes:
        nodes += others
        waiting.hire(num_shards=99)
        return
    with pytest.raises(StorageError, match="does not see the input"):
        waiting.hire(num_shards=99)


def test_workers_that_wait_ask_for_the_memory_that_others_were_seen_to_need(waiting: Crew, killed: list[str]) -> None:
    """Else a machine that comes would get more of them than it has memory for."""
    waiting.memory.learn(int(0.9 * GIB))  # With its margin hardly more than the guess.
    waiting._count_at_s = 0
    waiting.hire(num_shards=99)
    assert killed == []
    waiting.memory.learn(2 * GIB)
    waiting._count_at_s = 0
    waiting.hire(num_shards=99)
    assert killed == ["waits0", "waits1", "waits2", "waits3"]
    assert waiting._actor_class.options.call_args.kwargs["memory"] == int(2.4 * GIB)
    assert len(waiting._workers) == 5


def test_where_others_hold_all_there_is_that_is_said(
    waiting: Crew, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]]
) -> None:
    """After a minute in which no worker got a place; once."""
    said: list[str] = []
    waiting._workers.pop(0)
    monkeypatch.setattr(jobs.crew, "describe_nodes", lambda: "...")
    start_s = waiting._none_ready_since_s
    for later_s in (1, 61, 261):
        monkeypatch.setattr(jobs.crew.time, "monotonic", lambda later_s=later_s: start_s + later_s)
        waiting.say_if_no_room(said.append)
        assert len(said) == (later_s > 1)
    assert said[0].startswith("others hold what a worker takes, 1 CPUs and 1.0 GiB;")


def test_a_read_that_hangs_is_said(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an image, and while it is awaited: one that came late and takes long to label is not meant."""
    crew, said = make_crew(), list[str]()
    worker = add_worker(crew, "node1", attempt=0)
    task = worker.task
    assert task is not None
    clock = {"s": time.monotonic()}
    monkeypatch.setattr(jobs.crew.time, "monotonic", lambda: clock["s"])

    def wait(image_id: int, seconds: float) -> int:
        clock["s"] += seconds
        follow_event(ImageAwaited(image_id), worker=worker, task=task, crew=crew, watch=Mock(say=said.append), metrics=Mock())
        return len(said)

    assert [wait(1, 1), wait(1, 200), wait(2, 200), wait(2, 200)] == [0, 0, 0, 0]
    assert [wait(2, 200), wait(2, 200)] == [1, 1]
    clock["s"] += 1000  # Its bytes came, and it takes long to label.
    follow_event(ImageDone(2, 0, None), worker=worker, task=task, crew=crew, watch=Mock(), metrics=Mock())
    assert [wait(3, 400), wait(3, 301)] == [1, 2]
    assert re.findall(r"5 minutes for the bytes of image (\d+)", "; ".join(said)) == ["2", "3"]


class Told:
    """Workers with a shard each, who tell of faults; and what the job does then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *where: str) -> None:
        self.monkeypatch = monkeypatch
        self.ledger = ShardLedger([], retries=0)
        self.crew = make_crew()
        self.workers = [add_worker(self.crew, node, attempt=number) for number, node in enumerate(where)]
        self.watch = Mock()

    def tell(self, number: int, error: Exception, *, shard: int | None = None) -> None:
        """This worker's error."""
        worker = self.workers[number]
        if shard is not None:
            worker.task = Task(Assignment(shard), events=iter([None]))

        def get(_ref: object) -> None:
            raise RayTaskError("label_shard", "", error)  # type: ignore[no-untyped-call]

        self.monkeypatch.setattr(jobs.crew.ray, "get", get)
        follow_worker(worker, crew=self.crew, ledger=self.ledger, watch=self.watch, metrics=Mock())

    def commit(self, number: int) -> None:
        """This worker's shard is committed."""
        task = self.workers[number].task
        assert task is not None
        event = ShardCommitted(task.assignment.shard, Tally(), 1)
        follow_event(event, worker=self.workers[number], task=task, crew=self.crew, watch=self.watch, metrics=Mock())


FAULTS = [StorageError("can't be read: Stale file handle"), StorageRefusedError("no usable credentials")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_s_fault_of_one_machine_is_not_the_job_s(
    nodes: list[dict[str, Any]], killed: list[str], monkeypatch: pytest.MonkeyPatch, fault: StorageError
) -> None:
    """It is left out, be it by several workers, and its shards are done elsewhere; so is the next one hours later."""
    told = Told(monkeypatch, "node1", "node1", "node2", "node3")
    told.tell(0, fault)
    told.tell(1, fault)
    assert (killed, told.crew._nodes_left_out) == (["node1"] * 2, {"node1"})
    assert [told.ledger.take(), told.ledger.take(), told.ledger.take()] == [Assignment(0), Assignment(1), None]
    assert [call.args for call in told.watch.drop_shard.call_args_list] == [(0,), (1,)]
    told.commit(2)
    told.tell(3, fault)
    assert told.crew.count_wanted() == 4
    with pytest.raises(type(fault)) as raised:  # No other machine is at work any more.
        told.tell(2, fault)
    assert raised.value is fault


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_s_fault_of_two_machines_is_the_job_s(
    nodes: list[dict[str, Any]], killed: list[str], monkeypatch: pytest.MonkeyPatch, fault: StorageError
) -> None:
    """With no commit between them; or with the same shard, whenever; or where no other machine is at work."""
    told = Told(monkeypatch, "node1", "node2", "node3")
    told.tell(0, fault)
    with pytest.raises(type(fault)):
        told.tell(1, fault)

    told = Told(monkeypatch, "node1", "node2", "node3")
    told.tell(0, fault)
    told.commit(2)
    with pytest.raises(type(fault)):
        told.tell(1, fault, shard=0)

    told = Told(monkeypatch, "node1", "node1")
    told.crew._workers.append(Worker("node2", loading=None))  # Who knows whether it will ever be ready?
    with pytest.raises(type(fault)):
        told.tell(0, fault)


@pytest.mark.parametrize("error", [LeaseLostError("gone"), WorkerStoppedError("20 in a row"), ZeroDivisionError("a bug")])
def test_what_no_machine_can_help_stops_the_job(
    nodes: list[dict[str, Any]], killed: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """However many are at work."""
    told = Told(monkeypatch, "node1", "node2", "node3")
    with pytest.raises(type(error)) as raised:
        told.tell(0, error)
    assert (raised.value, killed) == (error, [])


@pytest.fixture
def lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeaseHolder]:
    """Of the folder ``disk/run``, taken. Its beat counts what is written of it, for it is not kept alive meanwhile."""
    monkeypatch.setattr(jobs.lease, "BEAT_S", 3600.0)
    with LeaseHolder(str(tmp_path / "disk" / "run"), say=lambda text: None) as holder:
        holder.take()
        yield holder


def test_the_dead_of_a_moment_are_written_off_at_once(
    nodes: list[dict[str, Any]], killed: list[str], lease: LeaseHolder, tmp_path: Path
) -> None:
    """Before anybody may have their shards; and with them all attempts below those that are still in work."""
    output = str(tmp_path / "disk" / "run")

    def list_refused() -> list[int]:
        """Which attempts may write no more."""
        refused = []
        for attempt in range(10):
            try:
                check_permit(output, Permit(lease.driver, attempt))
            except LeaseLostError:
                refused.append(attempt)
        return refused

    def count_writes() -> int:
        standing = read_lease(output)
        assert standing is not None
        return standing.beat

    crew = make_crew()
    crew._lease = lease
    workers = [add_worker(crew, node, attempt=attempt) for attempt, node in enumerate(["node1", "node2", "node1", "node3"], 5)]
    charged: list[int] = []
    for number in (0, 2):
        crew.bury(workers[number], is_machine_gone=True, then=lambda number=number: charged.append(number))  # type: ignore[misc]
    assert crew.is_busy()
    (tmp_path / "disk").rename(tmp_path / "gone")
    with pytest.raises(StorageError, match="still mounted"):
        crew.release_ghosts()
    assert not (tmp_path / "disk").exists()
    (tmp_path / "gone").rename(tmp_path / "disk")
    assert list_refused() == []
    num_writes = count_writes()
    crew.release_ghosts()
    assert list_refused() == [0, 1, 2, 3, 4, 5, 7]
    crew.release_ghosts()
    assert count_writes() - num_writes == 1
    assert charged == []
    for ghost in crew._ghosts:
        ghost.lapses_s = 0.0
    crew.release_ghosts()
    assert charged == [0, 2]
    for number in (1, 3):
        crew.bury(workers[number], is_machine_gone=True, then=lambda: None)
    crew.release_ghosts()
    assert list_refused() == list(range(9))
    assert count_writes() - num_writes == 2


def test_idle_workers_go_where_no_shard_waits(nodes: list[dict[str, Any]], killed: list[str]) -> None:
    """But for one for each that is still at work and may die: first those without a machine, then those of idle machines."""
    crew = make_crew(workers=9)
    crew._actor_class = Mock()
    busy = [add_worker(crew, node, attempt=number) for number, node in enumerate(["node1", "node3"])]
    idle = [add_worker(crew, node) for node in ("node1", "node2", "node2", "node3")]
    crew._workers.append(Worker("nowhere", loading=None))
    crew.dismiss_spare(num_shards=1)
    assert killed == []
    crew.dismiss_spare(num_shards=0)
    assert killed == ["nowhere", "node2", "node2"]
    assert crew._workers == [*busy, idle[0], idle[3]]
    crew.hire(num_shards=0)
    assert len(crew._workers) == 4
    busy[0].task = busy[1].task = None
    crew.dismiss_spare(num_shards=0)
    assert crew._workers == []
    crew.hire(num_shards=2)
    assert len(crew._workers) == 2


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


@pytest.mark.parametrize("workers", ["auto", 2])
def test_a_machine_taken_back_while_workers_load_ends_no_job(
    nodes: list[dict[str, Any]], killed: list[str], monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    """They die before Ray knows it: it is given time to find out. Where the machine is still there then, it is to blame."""
    del nodes[2:]
    for is_gone in (True, False):
        crew = make_crew(workers=workers, retries=0)
        crew._actor_class = Mock()
        for worker in [Worker("node1", loading=None) for _ in range(2)]:
            crew._workers.append(worker)
            crew.bury(worker, is_machine_gone=False, then=lambda: None)
        crew.hire(num_shards=9)
        with monkeypatch.context() as later:
            now_s = time.monotonic()
            later.setattr(jobs.crew.time, "monotonic", lambda now_s=now_s: now_s + jobs.crew.LATE_WRITE_S + 1)
            if not is_gone:
                with pytest.raises(ModelError, match="workers die while they load"):
                    crew.hire(num_shards=9)
                continue
            node = nodes.pop()
            crew.hire(num_shards=9)
            nodes.append({**node, "NodeID": "node1"})
            assert crew._workers


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


def test_workers_that_wait_do_not_follow_others_to_a_bad_node(
    growing_cluster: Cluster, model_folder: Path, tmp_path: Path
) -> None:
    """One place on the head, one on a bad node: of three workers the third waits, and goes to the good one that comes."""
    growing_cluster.order("bad")
    slow = make_slow(tmp_path / "slow", count=60)
    common = label_arguments(slow, tmp_path / "out", model_folder, "--images-per-shard", 1, "--max-workers", 3)
    driver = start_jobs(*common, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out" / "images" / "part-0000009.parquet").exists())
    growing_cluster.order("add 1")
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert len(re.findall(r"left out: this machine can't compute that", err)) == 1
    assert len(set(re.findall(r"by pid (\d+)", err))) == 2


def test_a_node_that_loses_its_store_is_left_out(growing_cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    """By name and reason; the other does its shard."""
    slow = make_slow(tmp_path / "slow", count=60)
    common = label_arguments(slow, tmp_path / "out", model_folder, "--images-per-shard", 1)
    driver = start_jobs(*common, cwd=tmp_path, FAKE_TROUBLE="loses its store")
    wait_until(lambda: (tmp_path / "out" / "images" / "part-0000000.parquet").exists())
    growing_cluster.order("stale")
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert len(re.findall(r"node \S+ is left out: images can't be read: Stale file handle", err)) == 1
    assert pd.read_parquet(tmp_path / "out" / "images")["status"].tolist() == ["ok"] * 60


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
