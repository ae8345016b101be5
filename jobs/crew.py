"""The workers of a run as Ray actors: hired, given shards, replaced when they die, dismissed. Part of the Ray seam.

Must not know what a death means for a shard or an image; ``jobs.run`` decides that. What it does promise: a shard goes
to another worker only when the one that had it is known to be dead, or has lost the right to write for long enough.
"""

import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from jobs.cluster import count_places, describe_nodes, find_large_nodes, find_node, measure_largest_node, name_node
from jobs.events import WorkerInfo
from jobs.lease import LeaseHolder, Permit, ProcessName, is_process_alive
from jobs.ledger import Assignment, ShardLedger
from jobs.options import JobOptions
from jobs.worker import ShardLabeler
from labeler.errors import LabelerError, ModelError
from labeler.stores import get_store_options

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_SECONDS_BETWEEN_COUNTS = 2.0

LATE_WRITE_S = 20.0
"""How long a write may take that a worker began while it still had the right to. By then Ray also knows that a machine is
gone whose end killed the worker."""

LOSS_KNOWN_S = 65.0
"""How long Ray may not notice that a machine is gone which has fallen silent: five health checks of 13 s. Its images seem
to hang."""

_MEMORY_MARGIN = 1.2
_NODE_LABEL = "ray.io/node-id"


class NodeLabeler(ShardLabeler):
    """A worker that also knows on which node of the cluster it is."""

    def find_node(self) -> str:
        """The cluster's name of this machine."""
        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> WorkerInfo:
        """See ``ShardLabeler``."""
        return replace(super().load(), node=self.find_node())


@dataclass(slots=True)
class Task:
    """A shard in the hands of a worker.

    Attributes:
        assignment: which, and how.
        events: what the worker tells about it, a Ray generator.
        in_work: images announced and not done, oldest first: the first is labeled, the next is being read.
        since_s: since when the first is labeled, not read, on the monotonic clock.
        hung_image: the image for which the worker was killed.
        is_committed: what comes next is the end of the stream, or of the worker.
    """

    assignment: Assignment
    events: Any
    in_work: list[int] = field(default_factory=list)
    since_s: float = 0.0
    hung_image: int | None = None
    is_committed: bool = False

    def is_overdue(self, limit_s: float) -> bool:
        """Whether, by what it has told, it is at one image for longer than this."""
        return bool(self.in_work) and self.hung_image is None and time.monotonic() > self.since_s + limit_s


@dataclass(slots=True, eq=False)
class Worker:
    """One actor: first it loads its model, then it has one task at a time.

    Attributes:
        without: the nodes on which it may not be.
        missing: set where it does not answer and Ray does not know yet whether it is dead: what asks it for a sign of life.
    """

    actor: Any
    loading: Any
    without: frozenset[str] = frozenset()
    info: WorkerInfo | None = None
    task: Task | None = None
    missing: Any = None
    ask_at_s: float = 0.0

    def become_ready(self, info: WorkerInfo) -> None:
        """Its model is loaded."""
        self.info = info
        logger.info("worker ready: %s, %d MiB", self, info.peak_memory_bytes >> 20)

    def is_idle(self) -> bool:
        """Whether it could take a shard now."""
        return self.info is not None and self.task is None and self.missing is None

    def ask_again(self) -> None:
        """It did not answer: ask for a sign of life, a second from now."""
        self.missing = self.actor.__ray_ready__.remote()
        self.ask_at_s = time.monotonic() + 1

    def get_news_source(self) -> Any:
        """What tells about it next, for ``ray.wait``; None where it is idle."""
        if self.missing is not None:
            return self.missing if time.monotonic() >= self.ask_at_s else None
        if self.task is not None:
            return self.task.events
        return self.loading if self.info is None else None

    def __str__(self) -> str:
        return f"pid {self.info.pid} on {self.info.host}" if self.info else "still loading"


@dataclass(frozen=True, slots=True)
class Ghost:
    """A worker that is gone for Ray, but may still write: what waits for its end, or for its right to write to lapse."""

    process: ProcessName
    lapses_s: float | None
    then: Callable[[], None]

    def is_gone(self) -> bool:
        """Whether another may have its shard."""
        if self.lapses_s is not None:
            return time.monotonic() >= self.lapses_s
        return not is_process_alive(self.process)


class Crew:
    """The workers of a run.

    Args:
        output: the run's folder.
        options: how many workers, how wide, how patient.
        engine: see ``jobs.worker``.
        lease: the right to write to the folder, of which each worker gets a part.
        memory_bytes: what a worker is expected to need; replaced by what the first ones were seen to need.
    """

    def __init__(self, output: str, *, options: JobOptions, engine: str, lease: LeaseHolder, memory_bytes: int) -> None:
        self._output = output
        self._options = options
        self._engine = engine
        self._lease = lease
        self._memory_bytes = memory_bytes
        self._actor_class: Any = ray.remote(NodeLabeler)
        self._workers: list[Worker] = []
        self._ghosts: list[Ghost] = []
        self._nodes_left_out: set[str] = set()
        self._num_left_out = 0
        self._left_out_for: LabelerError | None = None
        self._deaths_while_loading: Counter[str | None] = Counter()
        self._said = ""
        self._num_places = 0
        self._count_at_s = 0.0

    def count_wanted(self) -> int:
        """How many workers there should be, were there shards for all of them. On a node that is left out there are none."""
        options = self._options
        if options.workers != "auto":
            return options.workers - self._num_left_out
        if options.max_workers is not None:
            return options.max_workers - self._num_left_out
        return max(1, self._count_places(), options.min_workers or 0)

    def _count_places(self) -> int:
        if time.monotonic() >= self._count_at_s:
            cpus, without = self._options.cpus_per_worker, self._nodes_left_out
            self._num_places = count_places(cpus=cpus, memory_bytes=self._memory_bytes, without=without)
            self._count_at_s = time.monotonic() + _SECONDS_BETWEEN_COUNTS
        return self._num_places

    def hire(self, *, num_shards: int) -> None:
        """Start the workers that are missing, but no more than there are shards for.

        Raises:
            LabelerError: that for which the last worker, or the last node, was left out.
        """
        num_busy = sum(worker.task is not None for worker in self._workers)
        num_wanted = self.count_wanted()
        if self._left_out_for is not None and (self._has_no_node() or (num_wanted < 1 and not self._workers)):
            raise self._left_out_for
        while len(self._workers) < min(num_wanted, num_busy + num_shards):
            without = ",".join(sorted(self._nodes_left_out))
            actor_class = self._actor_class.options(
                num_cpus=self._options.cpus_per_worker,
                memory=self._memory_bytes,
                max_restarts=0,
                scheduling_strategy="SPREAD",
                label_selector={_NODE_LABEL: f"!in({without})"} if without else None,
            )
            actor = actor_class.remote(
                self._output,
                threads=self._options.cpus_per_worker,
                retries=self._options.storage_retries,
                engine=self._engine,
                store_options=get_store_options(),
            )
            self._workers.append(Worker(actor, loading=actor.load.remote(), without=frozenset(self._nodes_left_out)))

    def _has_no_node(self) -> bool:
        """Whether no worker is ready, and on no node that is large enough one may be: they would wait forever."""
        if self.count_ready():
            return False
        large = find_large_nodes(cpus=self._options.cpus_per_worker)
        may_not = [self._nodes_left_out, *(worker.without for worker in self._workers)]
        return bool(large) and all(large <= without for without in may_not)

    def say_if_no_room(self, say: Callable[[str], None]) -> None:
        """Say it, once, where no node is large enough for one worker: an autoscaler may add one, else nothing will happen."""
        if self.count_ready() or not self._workers or self._count_places():
            return
        text = (
            f"no node has room for a worker, which takes {self._options.cpus_per_worker} CPUs and "
            f"{self._memory_bytes / 2**30:.1f} GiB; nodes: {describe_nodes()}; waiting for a larger one"
        )
        if text != self._said:
            say(text)
        self._said = text

    def welcome(self, worker: Worker, info: WorkerInfo) -> None:
        """A worker is ready. Those hired from now on declare the memory that this one was seen to need."""
        worker.become_ready(info)
        for node in (info.node, None):
            del self._deaths_while_loading[node]
        self.learn_memory(info.peak_memory_bytes)

    def learn_memory(self, peak_bytes: int) -> None:
        """A worker was seen to need so much: those hired from now on ask for it, and for some more where a node has it."""
        needed_bytes = int(peak_bytes * _MEMORY_MARGIN)
        if needed_bytes > self._memory_bytes:
            self._memory_bytes = max(self._memory_bytes, min(needed_bytes, measure_largest_node()))

    def hand_out(self, ledger: ShardLedger) -> None:
        """A shard for every idle worker. None is queued behind another: asking for the next takes milliseconds."""
        for worker in self._workers:
            if worker.is_idle() and (assignment := ledger.take()) is not None:
                # Careful means: it goes on only when its announcement has arrived here.
                method = worker.actor.label_shard.options(
                    num_returns="streaming", _generator_backpressure_num_objects=1 if assignment.careful else -1
                )
                events = method.remote(
                    assignment.shard,
                    verdicts=assignment.verdicts,
                    careful=assignment.careful,
                    again=assignment.again,
                    permit=Permit(self._lease.driver, assignment.attempt),
                )
                worker.task = Task(assignment, events)

    def wait_for_news(self) -> list[Worker]:
        """The workers that have news, after a moment at most."""
        sources = {source: worker for worker in self._workers if (source := worker.get_news_source()) is not None}
        if not sources:
            if self._workers or self._ghosts:
                time.sleep(_POLL_S / 5)
            return []
        ready, _ = ray.wait(list(sources), timeout=_POLL_S, fetch_local=False)
        if ready:
            ready, _ = ray.wait(list(sources), num_returns=len(sources), timeout=0, fetch_local=False)
        return [sources[source] for source in ready]

    def is_busy(self) -> bool:
        """Whether a shard is in work, or in the hands of a worker that is not known to be dead."""
        return bool(self._ghosts) or any(worker.task is not None for worker in self._workers)

    def count_ready(self) -> int:
        """Workers whose model is loaded."""
        return sum(worker.info is not None for worker in self._workers)

    def bury(self, worker: Worker, *, is_machine_gone: bool, then: Callable[[], None]) -> None:
        """Forget a dead worker; ``hire`` replaces it. A node on which one after the other dies before it is ready is left out.

        Args:
            worker: dead, as far as Ray knows.
            is_machine_gone: its node died with it.
            then: done when it can write no more.
        """
        self._workers.remove(worker)
        if worker.info is None and not is_machine_gone:
            node = find_node(worker.actor)
            self._deaths_while_loading[node] += 1
            if self._deaths_while_loading[node] > self._options.retries:
                error = ModelError("workers die while they load the model; is there enough memory?")
                self._do_without(error, node=node)
        if worker.info is None or worker.task is None:
            then()
            return
        process = worker.info.process
        is_alive = is_process_alive(process)
        if is_alive is None:
            attempt = worker.task.assignment.attempt
            self._lease.write_off(attempt)
        elif is_alive:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)  # Ray's own kill does not reach a process that is stopped.
        patience_s = LATE_WRITE_S if worker.task.hung_image is None else LOSS_KNOWN_S
        self._ghosts.append(Ghost(process, time.monotonic() + patience_s if is_alive is None else None, then))
        self.release_ghosts()

    def release_ghosts(self) -> None:
        """Do what waited for workers that can write no more."""
        gone = [ghost for ghost in self._ghosts if ghost.is_gone()]
        self._ghosts = [ghost for ghost in self._ghosts if ghost not in gone]
        for ghost in gone:
            ghost.then()

    def leave_out(self, worker: Worker, error: LabelerError) -> None:
        """Go on without this worker, and without its node. Raises the error where no other worker is left."""
        node = find_node(worker.actor)
        self._workers.remove(worker)
        ray.kill(worker.actor)
        self._do_without(error, node=node)

    def _do_without(self, error: LabelerError, *, node: str | None = None) -> None:
        if node is None or node not in self._nodes_left_out:
            logger.warning("%s is left out: %s", "a worker" if node is None else f"node {name_node(node)}", error)
        if node is not None:
            self._nodes_left_out.add(node)
        self._num_left_out += 1
        self._left_out_for = error
        self._count_at_s = 0.0
        if not self._workers:
            raise error

    def kill_hung_workers(self) -> None:
        """Those that are at one image for too long, and have told nothing since. Their death is noticed as any other's."""
        limit_s = self._options.image_timeout
        if limit_s is None:
            return
        for worker in self._workers:
            task = worker.task
            if task is None or worker.missing is not None or not task.is_overdue(limit_s):
                continue
            unheard, _ = ray.wait([task.events], timeout=0, fetch_local=False)
            if not unheard:  # Else this process is the slow one.
                task.hung_image = task.in_work[0]
                ray.kill(worker.actor)

    def dismiss(self) -> None:
        """End all workers. What they have not committed does not count; the next run labels it again."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
