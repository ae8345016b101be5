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
from typing import Any

import ray

from jobs.actors import Ghost, NodeLabeler, Task, Worker
from jobs.cluster import count_places, describe_nodes, find_large_nodes, find_node, is_waiting, name_node
from jobs.events import WorkerInfo
from jobs.lease import LeaseHolder, LeaseLostError, Permit, is_process_alive
from jobs.ledger import ShardLedger
from jobs.options import JobOptions
from jobs.worker_memory import WorkerMemory
from labeler.errors import LabelerError, ModelError, StorageError
from labeler.stores import get_store_options

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_SECONDS_BETWEEN_COUNTS = 2.0

LATE_WRITE_S = 20.0
"""How long a write may take that a worker began while it still had the right to. By then Ray also knows whether the worker
died with its machine."""

LOSS_KNOWN_S = 65.0
"""How long Ray may take to notice that a silent machine is gone: five health checks of 13 s. Until then its images seem to
hang."""

NODES_COME_WITHIN_S = 900.0
"""How long a job that asked for more workers than there is room for waits for a better machine than those that came."""

_WAIT_IS_LONG_S = 60.0
_MUCH_MORE_MEMORY = 1.1
_NODE_LABEL = "ray.io/node-id"


class Crew:
    """The workers of a run.

    Args:
        output: the run's folder.
        options: how many workers, how wide, how patient.
        engine: see ``jobs.worker``.
        lease: the right to write to the folder, of which each worker gets a part.
        memory_bytes: what a worker is expected to need, until the first ones were seen to need more.

    Attributes:
        memory: what it is now.
    """

    def __init__(self, output: str, *, options: JobOptions, engine: str, lease: LeaseHolder, memory_bytes: int) -> None:
        self._output = output
        self._options = options
        self._engine = engine
        self._lease = lease
        self.memory = WorkerMemory(memory_bytes, cpus=options.cpus_per_worker)
        self._actor_class: Any = ray.remote(NodeLabeler)
        self._workers: list[Worker] = []
        self._ghosts: list[Ghost] = []
        self._left_out: Counter[str | None] = Counter()  # Workers, by node.
        self._left_out_for: LabelerError | None = None
        self._patient_until_s = 0.0
        self._faulty_nodes: set[str] = set()  # By which the store was blamed since a shard was committed.
        self._node_of_fault: dict[int, str] = {}  # The first that blamed it with this shard in hand.
        self._deaths_while_loading: Counter[str | None] = Counter()
        self._said = ""
        self._is_memory_said = False
        self._num_places = 0
        self._num_places_guessed = 0
        self._count_at_s = 0.0
        self._none_ready_since_s = time.monotonic()

    def count_wanted(self) -> int:
        """How many workers there should be, were there shards for all of them. On a node that is left out there are none."""
        self._look_around()
        options = self._options
        if options.workers != "auto":
            return options.workers - self._left_out.total()
        if options.max_workers is not None:
            return options.max_workers - self._left_out.total()
        return max(1, self._num_places, options.min_workers or 0)

    def _look_around(self) -> None:
        """Now and then: how many workers the nodes have room for. A node that was left out and is gone is forgotten."""
        if time.monotonic() < self._count_at_s:
            return
        if self._left_out:
            living = find_large_nodes(cpus=0)
            self._left_out = Counter({node: n for node, n in self._left_out.items() if node is None or node in living})
        cpus, without = self._options.cpus_per_worker, self._nodes_left_out
        self._num_places = self._num_places_guessed = count_places(cpus=cpus, memory_bytes=self.memory.bytes, without=without)
        if self.memory.bytes > self.memory.guess_bytes:
            self._num_places_guessed = count_places(cpus=cpus, memory_bytes=self.memory.guess_bytes, without=without)
        self._let_go_of_stale()
        self._count_at_s = time.monotonic() + _SECONDS_BETWEEN_COUNTS

    def _let_go_of_stale(self) -> bool:
        """End workers that wait for a machine and were asked for before a node was left out, or with too little memory.

        Whether there were any; ``hire`` asks for others. Else one after the other would go to that node, or more of them to one
        than it has memory for.
        """

        def is_stale(worker: Worker) -> bool:
            return not left_out <= worker.without or _MUCH_MORE_MEMORY * worker.memory_bytes < self.memory.bytes

        left_out = self._nodes_left_out
        stale = [w for w in self._workers if w.info is None and is_stale(w) and is_waiting(w.actor)]
        for worker in stale:
            ray.kill(worker.actor)
            self._workers.remove(worker)
        return bool(stale)

    @property
    def _nodes_left_out(self) -> set[str]:
        return {node for node in self._left_out if node is not None}

    def hire(self, *, num_shards: int) -> None:
        """Start the workers that are missing, but no more than there are shards for.

        Raises:
            LabelerError: that for which the last worker, or the last node, was left out.
        """
        num_busy = sum(worker.task is not None for worker in self._workers)
        num_wanted = self.count_wanted()
        if (
            self._left_out_for is not None
            and time.monotonic() >= self._patient_until_s
            and (self._has_no_node() or (num_wanted < 1 and not self._workers))
        ):
            raise self._left_out_for
        while len(self._workers) < min(num_wanted, num_busy + num_shards):
            without = ",".join(sorted(self._nodes_left_out))
            actor_class = self._actor_class.options(
                num_cpus=self._options.cpus_per_worker,
                memory=self.memory.bytes,
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
            self._workers.append(
                Worker(
                    actor,
                    loading=actor.load.remote(),
                    without=frozenset(self._nodes_left_out),
                    memory_bytes=self.memory.bytes,
                )
            )

    def _has_no_node(self) -> bool:
        """Whether no worker is ready, and on no node that is large enough one may be: they would wait forever."""
        if self.count_ready():
            return False
        large = find_large_nodes(cpus=self._options.cpus_per_worker)
        may_not = [self._nodes_left_out, *(worker.without for worker in self._workers)]
        return bool(large) and all(large <= without for without in may_not)

    def say_if_no_room(self, say: Callable[[str], None]) -> None:
        """Say it, once, where no worker finds a place: an autoscaler may add one, else nothing will happen."""
        now_s = time.monotonic()
        if self.count_ready() or not self._workers:
            self._none_ready_since_s = now_s
            return
        self._look_around()
        size = f"{self._options.cpus_per_worker} CPUs and {self.memory.bytes / 2**30:.1f} GiB"
        if not self._num_places:
            text = f"no node has room for a worker, which takes {size}; nodes: {describe_nodes()}; waiting for a larger one"
        elif now_s >= self._none_ready_since_s + _WAIT_IS_LONG_S and all(is_waiting(worker.actor) for worker in self._workers):
            self._none_ready_since_s = now_s
            text = f"others hold what a worker takes, {size}; nodes: {describe_nodes()}; waiting until it is free"
        else:
            return
        if text != self._said:
            say(text)
        self._said = text

    def say_if_memory_is_short(self, say: Callable[[str], None]) -> None:
        """Say it, once, where fewer workers are wanted because they were seen to need more memory than was guessed."""
        if self._is_memory_said or self._options.workers != "auto" or self._options.max_workers is not None:
            return
        if self.count_wanted() < self._num_places_guessed:
            say(
                f"workers were seen to need {self.memory.bytes / 2**30:.1f} GiB each, so the nodes have room for "
                f"{self._num_places}, not {self._num_places_guessed}; a larger --cpus-per-worker uses the CPUs that are left"
            )
            self._is_memory_said = True

    def welcome(self, worker: Worker, info: WorkerInfo) -> None:
        """A worker is ready. Those hired from now on declare at least the memory that this one was seen to need."""
        worker.become_ready(info)
        for node in (info.node, None):
            del self._deaths_while_loading[node]
        self.memory.learn_loaded(info.peak_memory_bytes)

    def count_commit(self, peak_bytes: int) -> None:
        """A shard is committed, so the store works; its worker was seen to need so much memory so far."""
        self._faulty_nodes.clear()
        self.memory.learn(peak_bytes)

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

    def bury(self, worker: Worker, *, is_machine_gone: bool, then: Callable[[], None], reason: str = "") -> None:
        """Forget a dead worker; ``hire`` replaces it. A node on which one after the other dies before it is ready is left out.

        It may be gone, which Ray knows only later: that is waited for before the job ends for want of nodes.

        Args:
            worker: dead, as far as Ray knows.
            is_machine_gone: its node died with it.
            then: done when it can write no more.
            reason: why it died, where that is known.
        """
        self._workers.remove(worker)
        if worker.info is None and not is_machine_gone:
            node = find_node(worker.actor)
            self._deaths_while_loading[node] += 1
            if self._deaths_while_loading[node] > self._options.retries:
                known = f": {reason}" if reason else ""
                error = ModelError(f"workers die while they load the model{known}; is there enough memory?")
                self._do_without(error, node=node, patience_s=0.0 if node is None else LATE_WRITE_S)
        if worker.info is None or worker.task is None:
            then()
            return
        process = worker.info.process
        is_alive = is_process_alive(process)
        if is_alive:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)  # Ray's own kill does not reach a process that is stopped.
        patience_s = LATE_WRITE_S if worker.task.hung_image is None else LOSS_KNOWN_S
        attempt = worker.task.assignment.attempt
        self._ghosts.append(Ghost(process, attempt, patience_s, is_here=is_alive is not None, then=then))

    def release_ghosts(self) -> None:
        """Write off those whose end can't be seen, all at once, and do what waited for workers that can write no more."""
        unseen = [ghost for ghost in self._ghosts if not ghost.is_here and ghost.lapses_s is None]
        if unseen:
            attempts = [ghost.attempt for ghost in unseen]
            in_work = [worker.task.assignment.attempt for worker in self._workers if worker.task is not None]
            self._lease.write_off(*attempts, floor=min(in_work, default=max(attempts) + 1))
            for ghost in unseen:
                ghost.lapses_s = time.monotonic() + ghost.patience_s
        gone = [ghost for ghost in self._ghosts if ghost.is_gone()]
        self._ghosts = [ghost for ghost in self._ghosts if ghost not in gone]
        for ghost in gone:
            ghost.then()

    def is_machine_at_fault(self, worker: Worker, error: BaseException) -> bool:
        """Whether the error that a worker told is its machine's alone, which is then left out, or the whole job's.

        Of a store's fault with a shard in hand: another machine is at work, none has told of one since a shard was last
        committed, and none had one with the same shard.
        """
        if worker.info is None or worker.task is None:
            return isinstance(error, ModelError | StorageError)
        if not isinstance(error, StorageError) or isinstance(error, LeaseLostError):
            return isinstance(error, ModelError)
        node = worker.info.node
        at_work = {other.info.node for other in self._workers if other.info is not None} - {node, *self._left_out}
        self._faulty_nodes.add(node)
        first = self._node_of_fault.setdefault(worker.task.assignment.shard, node)
        return bool(at_work) and self._faulty_nodes == {node} == {first}

    def leave_out(self, worker: Worker, error: LabelerError) -> None:
        """Go on without this worker, and without its node. Raises the error where no other worker is left."""
        node = find_node(worker.actor)
        self._workers.remove(worker)
        try:
            self._do_without(error, node=node)
        finally:
            ray.kill(worker.actor)  # Last: else Ray would give its place to one that waits.

    def _do_without(self, error: LabelerError, *, node: str | None, patience_s: float = 0.0) -> None:
        if node is None or node not in self._left_out:
            logger.warning("%s is left out: %s", "a worker" if node is None else f"node {name_node(node)}", error)
        self._left_out[node] += 1
        self._left_out_for = error
        self._count_at_s = 0.0
        is_last = not self._workers
        if self._let_go_of_stale() and self._asks_for_more():
            patience_s = max(patience_s, NODES_COME_WITHIN_S)
        self._patient_until_s = max(self._patient_until_s, time.monotonic() + patience_s)
        if is_last and time.monotonic() >= self._patient_until_s:
            raise error

    def _asks_for_more(self) -> bool:
        """Whether the job asks for workers before there is room for them, so that a cluster that can grow does."""
        return self._options.max_workers is not None or self._options.min_workers is not None

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

    def dismiss_spare(self, *, num_shards: int) -> None:
        """Where no shard waits: end idle workers beyond one for each shard in work, whose worker may die.

        First those that have no machine yet, then those of machines on which nobody works: a cluster that can shrink does.
        """
        if num_shards:
            return
        busy = {worker.info.node for worker in self._workers if worker.info is not None and worker.task is not None}
        spare = [worker for worker in self._workers if worker.task is None]
        spare.sort(key=lambda worker: 0 if worker.info is None else 1 + (worker.info.node in busy))
        num_needed = len(self._workers) - len(spare) + len(self._ghosts)
        for worker in spare[: max(0, len(spare) - num_needed)]:
            ray.kill(worker.actor)
            self._workers.remove(worker)

    def dismiss(self) -> None:
        """End all workers. What they have not committed does not count; the next run labels it again."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
