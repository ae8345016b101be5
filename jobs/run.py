"""The run: workers on Ray, one shard each at a time, watched until every shard is committed. The Ray seam.

Must not know how an image becomes masks, nor where bytes live: workers read and write by themselves, and nothing but
events about images passes through here. Workers may die at any moment. A dead one is replaced and its shard is labeled
again, one image at a time, so that an image that kills its workers is found, named and set aside.
"""

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from jobs.events import ImageDone, ImageStarted, ShardCommitted, WorkerInfo
from jobs.ledger import Assignment, ShardLedger
from jobs.options import JobOptions
from jobs.report import Watch
from jobs.worker import ShardLabeler
from labeler.errors import ImageError, LabelerError, ModelError, StorageError

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_OBJECT_STORE_BYTES = 100 * 2**20  # Only events pass through it.


def label_shards(
    shards: Sequence[int],
    *,
    output: str,
    options: JobOptions,
    watch: Watch,
    engine: str,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Label these shards of the run in ``output``.

    Args:
        shards: their numbers in the plan, in the order in which they are begun.
        output: the run's folder, by a name that every machine understands.
        options: how many workers, how wide, how patient.
        watch: told about every image and shard.
        engine: ``module:name`` of what computes; see ``jobs.worker``.
        is_stopped: asked all the time whether to stop.

    Returns:
        The shards that were given up because their workers died too often; all others are committed.

    Raises:
        KeyboardInterrupt: it was stopped. Shards in work are dropped.
        StorageError: the store does not answer, after all tries of one worker.
        ModelError: no machine can run the model.
        WorkerStoppedError: one worker had nothing but internal errors.
    """
    ledger = ShardLedger(shards, retries=options.retries)
    with connect_to_cluster(options):
        crew = Crew(output, options=options, engine=engine)
        try:
            while len(ledger) or crew.is_busy():
                if is_stopped():
                    raise KeyboardInterrupt
                crew.hire(num_shards=len(ledger))
                crew.hand_out(ledger)
                for worker in crew.wait_for_news():
                    follow_worker(worker, crew=crew, ledger=ledger, watch=watch)
                crew.kill_hung_workers()
                watch.tick(num_workers=crew.count_ready())
        finally:
            crew.dismiss()
    return ledger.given_up


def follow_worker(worker: "Worker", *, crew: "Crew", ledger: ShardLedger, watch: Watch) -> None:
    """Take one piece of news: the worker is loaded, tells an event, has finished its shard, has failed, or is dead."""
    task = worker.task
    try:
        if task is None:
            worker.become_ready(ray.get(worker.loading))
        else:
            follow_event(ray.get(next(task.events)), task=task, watch=watch)
    except StopIteration:
        worker.task = None
    except RayTaskError as error:
        cause = error.cause
        is_machine_at_fault = isinstance(cause, ModelError) or (task is None and isinstance(cause, StorageError))
        if not is_machine_at_fault:
            raise cause from error
        if task is not None:
            watch.drop_shard(task.assignment.shard)
            ledger.put_back(task.assignment.shard)
        crew.leave_out(worker, cause)
    except RayError as error:
        logger.debug("a worker died: %s", error)
        if task is not None:
            watch.drop_shard(task.assignment.shard)
            charge_death(task, worker=worker, ledger=ledger)
        crew.bury(worker)


def follow_event(event: object, *, task: "Task", watch: Watch) -> None:
    """What a worker tells about its shard."""
    match event:
        case ImageStarted(image_id):
            if not task.in_work:
                task.since_s = time.monotonic()
            task.in_work.append(image_id)
        case ImageDone(image_id):
            task.in_work = [other for other in task.in_work if other != image_id]
            task.since_s = time.monotonic()
            watch.count_image(task.assignment.shard, event)
        case ShardCommitted():
            watch.count_shard(event)


def charge_death(task: "Task", *, worker: "Worker", ledger: ShardLedger) -> None:
    """Somebody answers for a worker's death: the image that hung, those that were in work, or the shard."""
    shard = task.assignment.shard
    if task.hung_image is not None:
        logger.warning("image %d hung on %s and becomes an error; shard %d is done again", task.hung_image, worker, shard)
        verdict = ImageError("timeout", "not done within --image-timeout")
        ledger.put_back_without(shard, image_id=task.hung_image, verdict=verdict)
        return
    names = ", ".join(map(str, task.in_work)) or "none"
    logger.warning("a worker died (%s); images in work: %s; shard %d is done again", worker, names, shard)
    ledger.put_back_after_death(shard, images_in_work=task.in_work)


@dataclass(slots=True)
class Task:
    """A shard in the hands of a worker.

    Attributes:
        assignment: which, and how.
        events: what the worker tells about it, a Ray generator.
        in_work: images announced and not done, oldest first: the first is labeled, the next is being read.
        since_s: when that became so, on the monotonic clock.
        hung_image: the image for which the worker was killed.
    """

    assignment: Assignment
    events: Any
    in_work: list[int] = field(default_factory=list)
    since_s: float = 0.0
    hung_image: int | None = None


@dataclass(slots=True, eq=False)
class Worker:
    """One actor: first it loads its model, then it has one task at a time."""

    actor: Any
    loading: Any
    info: WorkerInfo | None = None
    task: Task | None = None

    def become_ready(self, info: WorkerInfo) -> None:
        """Its model is loaded."""
        self.info = info
        logger.info("worker ready: %s", self)

    def is_idle(self) -> bool:
        """Whether it could take a shard now."""
        return self.info is not None and self.task is None

    def get_news_source(self) -> Any:
        """What tells about it next, for ``ray.wait``; None where it is idle."""
        if self.task is not None:
            return self.task.events
        return self.loading if self.info is None else None

    def __str__(self) -> str:
        return f"pid {self.info.pid} on {self.info.host}" if self.info else "still loading"


class Crew:
    """The workers of a run: hired, given shards, replaced when they die, dismissed."""

    def __init__(self, output: str, *, options: JobOptions, engine: str) -> None:
        self._output = output
        self._options = options
        self._engine = engine
        self._actor_class: Any = ray.remote(ShardLabeler).options(
            num_cpus=options.cpus_per_worker, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._workers: list[Worker] = []
        self._num_left_out = 0
        self._num_deaths_while_loading = 0

    def hire(self, *, num_shards: int) -> None:
        """Start the workers that are missing, but no more than there are shards for."""
        wanted = self._options.workers
        if wanted == "auto":
            wanted = count_places(self._options.cpus_per_worker)
        num_busy = sum(worker.task is not None for worker in self._workers)
        while len(self._workers) < min(wanted - self._num_left_out, num_busy + num_shards):
            actor = self._actor_class.remote(
                self._output, threads=self._options.cpus_per_worker, retries=self._options.retries, engine=self._engine
            )
            self._workers.append(Worker(actor, loading=actor.load.remote()))

    def hand_out(self, ledger: ShardLedger) -> None:
        """A shard for every idle worker. None is queued behind another: asking for the next takes milliseconds."""
        for worker in self._workers:
            if worker.is_idle() and (assignment := ledger.take()) is not None:
                # Careful means: it goes on only when its announcement has arrived here.
                method = worker.actor.label_shard.options(
                    num_returns="streaming", _generator_backpressure_num_objects=1 if assignment.careful else -1
                )
                events = method.remote(assignment.shard, verdicts=assignment.verdicts, careful=assignment.careful)
                worker.task = Task(assignment, events)

    def wait_for_news(self) -> list[Worker]:
        """The workers that have news, after a moment at most."""
        sources = {source: worker for worker in self._workers if (source := worker.get_news_source()) is not None}
        if not sources:
            return []
        ready, _ = ray.wait(list(sources), timeout=_POLL_S, fetch_local=False)
        if ready:
            ready, _ = ray.wait(list(sources), num_returns=len(sources), timeout=0, fetch_local=False)
        return [sources[source] for source in ready]

    def is_busy(self) -> bool:
        """Whether a shard is in work."""
        return any(worker.task is not None for worker in self._workers)

    def count_ready(self) -> int:
        """Workers whose model is loaded."""
        return sum(worker.info is not None for worker in self._workers)

    def bury(self, worker: Worker) -> None:
        """Forget a dead worker; ``hire`` replaces it, unless one after the other dies before it is ready."""
        if worker.info is None:
            self._num_deaths_while_loading += 1
        if self._num_deaths_while_loading > self._options.retries:
            self.leave_out(worker, ModelError("workers die while they load the model; is there enough memory?"))
        else:
            self._workers.remove(worker)

    def leave_out(self, worker: Worker, error: LabelerError) -> None:
        """Go on without this worker and without replacing it. Raises the error where no other is left."""
        logger.warning("a worker (%s) is left out: %s", worker, error)
        self._num_left_out += 1
        self._workers.remove(worker)
        ray.kill(worker.actor)
        if not self._workers:
            raise error

    def kill_hung_workers(self) -> None:
        """Those that are at one image for too long. Their death is noticed as any other's."""
        limit_s = self._options.image_timeout
        for worker in self._workers if limit_s is not None else []:
            task = worker.task
            if task and task.in_work and task.hung_image is None and time.monotonic() > task.since_s + (limit_s or 0):
                task.hung_image = task.in_work[0]
                ray.kill(worker.actor)

    def dismiss(self) -> None:
        """End all workers. What they have not committed does not count; the next run labels it again."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()


@contextlib.contextmanager
def connect_to_cluster(options: JobOptions) -> Iterator[None]:
    """The cluster this process was given by ``RAY_ADDRESS``, as ``ray job submit`` does; else one of this machine."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        start_local_cluster(options)
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there.
    try:
        yield
    finally:
        ray.shutdown()


def start_local_cluster(options: JobOptions) -> None:
    """A cluster of this machine's usable CPUs; who asks for more workers than fit gets them all the same."""
    checkout = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))  # Workers inherit it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    num_workers = 1 if options.workers == "auto" else options.workers
    ray.init(
        address="local",
        num_cpus=max(count_usable_cpus(), num_workers * options.cpus_per_worker),
        num_gpus=0,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def count_places(cpus_per_worker: int) -> int:
    """How many workers the nodes of the cluster, as it is now, have CPUs for; at least one, for more may come."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = (node["Resources"].get("CPU", 0) for node in nodes if node["Alive"])
    return max(1, sum(int(count // cpus_per_worker) for count in cpus))


def count_usable_cpus() -> int:
    """CPUs this process may use: those it is bound to, and no more than the container's quota pays for."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        usable = min(usable, math.ceil(int(quota) / int(period)))
    return max(1, usable)
