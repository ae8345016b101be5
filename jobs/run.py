"""The run: workers on Ray, one shard each at a time, watched until every shard is committed. The Ray seam.

Must not know how an image becomes masks, nor where bytes live: workers read and write by themselves, and nothing but
events about images passes through here. Workers may die at any moment. A dead one is replaced and its shard is labeled
again, one image at a time, so that an image that kills its workers is found, named and set aside.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from jobs.actors import READ_IS_LONG_S, Task, Worker, describe_death
from jobs.cluster import RunMetrics, connect_to_cluster, find_node, is_node_alive
from jobs.crew import Crew
from jobs.events import ImageAwaited, ImageDone, ImageStarted, ShardCommitted
from jobs.lease import LeaseHolder
from jobs.ledger import ShardLedger
from jobs.options import JobOptions
from jobs.report import Watch
from jobs.shards import read_parts
from jobs.worker_memory import estimate_worker_memory
from labeler.ahead import READS_AT_ONCE, map_ahead
from labeler.errors import ImageError
from labeler.limits import count_usable_cpus

logger = logging.getLogger(__name__)

BF16_HINT = (
    "the CPUs here have bf16: with --precision bf16, in a new --output, vit_b was 1.6 to 2 times as fast, but masks move "
    "(--help says how many; python -m benchmarks.precision, in the source tree, measures yours)"
)


def label_shards(
    shards: Sequence[int],
    *,
    output: str,
    options: JobOptions,
    watch: Watch,
    engine: str,
    lease: LeaseHolder,
    again: Mapping[int, frozenset[str]] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Label these shards of the run in ``output``.

    Args:
        shards: their numbers in the plan, in the order in which they are begun.
        output: the run's folder, by a name that every machine understands.
        options: how many workers, how wide, how patient.
        watch: told about every image and shard.
        engine: ``module:name`` of what computes; see ``jobs.worker``.
        lease: this process's claim on the folder, taken.
        again: for shards that stand already, the kinds of error that are labeled again.
        is_stopped: asked all the time whether to stop.

    Returns:
        The shards that were given up because their workers died too often; all others are committed.

    Raises:
        KeyboardInterrupt: it was stopped. Shards in work are dropped.
        StorageError: the store does not answer, after all tries, workers of more than one machine, or of the only one that
            is at work; or another driver has the folder.
        ModelError: no machine can run the model.
        WorkerStoppedError: one worker had nothing but internal errors.
    """
    ledger = ShardLedger(shards, retries=options.retries, again=again)
    memory_bytes = estimate_worker_memory(output)
    if "RAY_ADDRESS" not in os.environ:
        watch.say(
            f"Ray runs on this machine alone, {count_usable_cpus()} CPUs (RAY_ADDRESS=auto joins the cluster it is part of)"
        )
    with connect_to_cluster(options, worker_memory_bytes=memory_bytes):
        crew = Crew(output, options=options, engine=engine, lease=lease, memory_bytes=memory_bytes)
        metrics = RunMetrics()

        def stop_if_told() -> None:
            if is_stopped():
                raise KeyboardInterrupt
            if lease.is_lost():
                lease.check()

        def look_up() -> None:
            stop_if_told()
            watch.tick(num_workers=crew.count_ready())

        hint_at_idle_workers(len(ledger), num_workers=crew.count_wanted(), watch=watch)
        try:
            while len(ledger) or crew.is_busy() or put_back_misfits(ledger, output=output, watch=watch, look_up=look_up):
                stop_if_told()
                crew.hire(num_shards=len(ledger))
                crew.hand_out(ledger)
                for worker in crew.wait_for_news():
                    follow_worker(worker, crew=crew, ledger=ledger, watch=watch, metrics=metrics)
                crew.kill_hung_workers()
                crew.say_if_no_room(watch.say)
                crew.say_if_memory_is_short(watch.say)
                crew.release_ghosts()
                crew.dismiss_spare(num_shards=len(ledger))
                watch.tick(num_workers=crew.count_ready())
        finally:
            crew.dismiss()
    return ledger.given_up


def follow_worker(worker: Worker, *, crew: Crew, ledger: ShardLedger, watch: Watch, metrics: RunMetrics) -> None:
    """Take one piece of news: the worker is loaded, tells an event, has finished its shard, has failed, or is dead."""
    task = worker.task
    try:
        if worker.missing is not None:
            ray.get(worker.missing)
            ray.kill(worker.actor)  # It lives, but what it told is lost.
            worker.ask_again()
        elif task is None:
            info = ray.get(worker.loading)
            crew.welcome(worker, info)
            if info.is_slower:
                watch.say_once(BF16_HINT)
        else:
            event = ray.get(next(task.events))
            follow_event(event, worker=worker, task=task, crew=crew, watch=watch, metrics=metrics)
    except StopIteration:
        worker.task = None
    except RayTaskError as error:
        cause = error.cause
        if not crew.is_machine_at_fault(worker, cause):
            raise cause from error
        if task is not None:
            watch.drop_shard(task.assignment.shard)
            ledger.put_back(task.assignment.shard)
        crew.leave_out(worker, cause)
    except ActorUnavailableError:
        worker.ask_again()  # Its machine may be gone, which only Ray can find out.
    except RayError as error:
        follow_death(worker, error, crew=crew, ledger=ledger, watch=watch)


def follow_event(event: object, *, worker: Worker, task: Task, crew: Crew, watch: Watch, metrics: RunMetrics) -> None:
    """What a worker tells about its shard."""
    match event:
        case ImageStarted(image_id):
            if not task.in_work:
                task.since_s = time.monotonic()
            task.in_work.append(image_id)
        case ImageAwaited(image_id):
            if task.note_wait(image_id):
                watch.say(
                    f"{worker} has waited {READ_IS_LONG_S / 60:.0f} minutes for the bytes of image {image_id}, and still does"
                )
        case ImageDone(image_id):
            task.in_work = [other for other in task.in_work if other != image_id]
            task.since_s = time.monotonic()
            watch.count_image(task.assignment.shard, event)
        case ShardCommitted():
            task.is_committed = True
            crew.count_commit(event.peak_memory_bytes)
            watch.count_shard(event, worker=str(worker))
            metrics.count(event.tally - event.kept)


def follow_death(worker: Worker, error: RayError, *, crew: Crew, ledger: ShardLedger, watch: Watch) -> None:
    """A worker is dead: somebody answers for it, and its shard waits for another as soon as this one can write no more."""
    task, node, reason = worker.task, find_node(worker.actor), describe_death(error)
    is_preempted = bool(getattr(error, "preempted", False))

    def is_machine_gone() -> bool:
        return is_preempted or (node is not None and not is_node_alive(node))

    if task is None or task.is_committed:
        worker.task = None  # It has nothing more to write.
        crew.bury(worker, is_machine_gone=is_machine_gone(), then=lambda: None, reason=reason)
        return
    watch.drop_shard(task.assignment.shard)
    charge = functools.partial(
        charge_death, task, ledger=ledger, name=str(worker), reason=reason, is_machine_gone=is_machine_gone
    )
    crew.bury(worker, is_machine_gone=is_machine_gone(), then=charge)


def charge_death(task: Task, *, ledger: ShardLedger, name: str, reason: str, is_machine_gone: Callable[[], bool]) -> None:
    """Somebody answers for a worker's death: its machine, the image that hung, those that were in work, or the shard.

    Workers may die, or seem to hang, before the cluster knows that their machine is gone: it is asked only now.
    """
    shard = task.assignment.shard
    if is_machine_gone():
        logger.warning("the machine of a worker (%s) is gone; shard %d is done again", name, shard)
        ledger.put_back(shard)
        return
    if task.hung_image is not None:
        if task.hung_image not in task.in_work:  # It was done in the moment in which its worker was killed.
            ledger.put_back(shard)
            return
        logger.warning("image %d hung on %s and becomes an error; shard %d is done again", task.hung_image, name, shard)
        verdict = ImageError("timeout", "not done within --image-timeout")
        ledger.put_back_without(shard, image_id=task.hung_image, verdict=verdict)
        return
    names = ", ".join(map(str, task.in_work)) or "none"
    logger.warning("a worker died (%s): %s; images in work: %s; shard %d is done again", name, reason, names, shard)
    ledger.put_back_after_death(shard, images_in_work=task.in_work)


def put_back_misfits(ledger: ShardLedger, *, output: str, watch: Watch, look_up: Callable[[], None]) -> bool:
    """Hash again the shards that more than one worker had; those whose parts do not fit each other are labeled again.

    ``look_up`` is called after each, for there may be thousands.

    Returns:
        Whether there are any.
    """

    def is_whole(shard: int) -> bool:
        return read_parts(output, shard) is not None

    suspects = ledger.take_suspects()
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for shard, fits in zip(suspects, map_ahead(pool, is_whole, suspects, num_ahead=READS_AT_ONCE), strict=True):
            if not fits:
                logger.warning("two workers wrote shard %d and its parts do not fit each other; it is done again", shard)
                watch.forget_shard(shard)
                ledger.put_back(shard, anew=True)
            look_up()
    return len(ledger) > 0


def hint_at_idle_workers(num_shards: int, *, num_workers: int, watch: Watch) -> None:
    """Say it where some workers will have nothing to do."""
    if num_shards < num_workers:
        watch.say(
            f"{watch.num_todo} images make {num_shards} shard{'s' if num_shards > 1 else ''}: only {num_shards} of "
            f"{num_workers} workers {'have' if num_shards > 1 else 'has'} work; a smaller --images-per-shard spreads them"
        )
