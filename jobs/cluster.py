"""The cluster: found or started, how much room it has, and the run's figures for its Prometheus. Part of the Ray seam.

Must not know shards or masks.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Collection, Iterator
from typing import Any

import ray
from ray._private.state import actors
from ray.exceptions import RayError
from ray.util.metrics import Counter

from jobs.options import JobOptions
from jobs.processes import add_own_path
from jobs.shards import Tally
from labeler.errors import ClusterError, OptionsError
from labeler.limits import count_usable_cpus, measure_free_memory
from labeler.tables import STAGES

_OBJECT_STORE_BYTES = 100 * 2**20  # Only events pass through it.
_NUM_NAMED_NODES = 5
_NO_NODE = ray.NodeID.nil().hex()
_MEMORY_SHARE = 0.8  # Of what is free: the rest is for Ray itself and for pages of files.


@contextlib.contextmanager
def connect_to_cluster(options: JobOptions, *, worker_memory_bytes: int) -> Iterator[None]:
    """The cluster this process was given by ``RAY_ADDRESS``, as ``ray job submit`` does; else one of this machine.

    Raises:
        KeyboardInterrupt: SIGTERM came while Ray started.
        OptionsError: RAY_ADDRESS is one that a job can't use.
        ClusterError: it can't be joined or started.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is not None and "://" in address:
        raise OptionsError(
            f"RAY_ADDRESS={address}: a job does not run through Ray's client; submit it (ray job submit --address "
            "http://HEAD:8265 ...), or set RAY_ADDRESS to HEAD:6379, or auto on a machine of the cluster"
        )
    try:
        with _keeping_sigterm():
            if address is not None:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                start_local_cluster(options, worker_memory_bytes=worker_memory_bytes)
    except SystemExit as error:  # Ray's own handler; by now ours is back.
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt from error
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address is None:
            raise ClusterError(f"Ray could not be started on this machine: {reason}") from error
        raise ClusterError(
            f"the Ray cluster at RAY_ADDRESS={address} can't be joined: {reason}; is it up, has it this version of Ray "
            f"({ray.__version__}), and does this process have its token (RAY_AUTH_MODE=token)?"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Ray puts its own handlers on SIGTERM; afterwards there is again what was there before."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_local_cluster(options: JobOptions, *, worker_memory_bytes: int) -> None:
    """A cluster of this machine's usable CPUs; who asks for more workers than fit gets them all the same."""
    os.environ["PYTHONPATH"] = add_own_path(os.environ.get("PYTHONPATH"))  # Workers inherit it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    num_workers = 1 if options.workers == "auto" else options.workers
    ray.init(
        address="local",
        num_cpus=max(count_usable_cpus(), num_workers * options.cpus_per_worker),
        num_gpus=0,
        _memory=max(int(measure_free_memory() * _MEMORY_SHARE), num_workers * worker_memory_bytes),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def count_places(*, cpus: int, memory_bytes: int, without: Collection[str] = ()) -> int:
    """How many workers of this size the nodes of the cluster, as it is now, have room for; some nodes not counted."""
    return sum(
        min(int(node["Resources"].get("CPU", 0) // cpus), int(node["Resources"].get("memory", 0) // memory_bytes))
        for node in list_nodes()
        if node["NodeID"] not in without
    )


def find_large_nodes(*, cpus: int) -> set[str]:
    """The living nodes that have so many CPUs, by the cluster's names."""
    return {node["NodeID"] for node in list_nodes() if node["Resources"].get("CPU", 0) >= cpus}


def measure_largest_node(*, cpus: int) -> int:
    """Bytes of memory that the largest of the nodes with so many CPUs offers to workers."""
    large = [node["Resources"] for node in list_nodes() if node["Resources"].get("CPU", 0) >= cpus]
    return max((int(resources.get("memory", 0)) for resources in large), default=0)


def describe_nodes() -> str:
    """What the nodes offer to workers, the largest first."""
    nodes = sorted(list_nodes(), key=lambda node: -node["Resources"].get("CPU", 0))
    texts = [
        f"{node['NodeManagerAddress']} {node['Resources'].get('CPU', 0):g} CPUs and "
        f"{node['Resources'].get('memory', 0) / 2**30:.1f} GiB"
        for node in nodes[:_NUM_NAMED_NODES]
    ]
    num_more = len(nodes) - len(texts)
    return ", ".join(texts) + (f" and {num_more} more nodes" if num_more else "")


def find_node(actor: Any) -> str | None:
    """The cluster's name of the machine that an actor is on, or was on when it died; None where it has never had one.

    Not to be asked while it waits for one: until then Ray names the machine that it was asked for on.
    """
    node_id = actors(actor._actor_id.hex()).get("Address", {}).get("NodeID")
    return None if node_id in (None, "", _NO_NODE) else str(node_id)


def is_waiting(actor: Any) -> bool:
    """Whether an actor has no machine yet, or is about to be started there."""
    return actors(actor._actor_id.hex()).get("State") in ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


def is_node_alive(node_id: str) -> bool:
    """Whether the cluster still has this machine."""
    return any(node["NodeID"] == node_id for node in list_nodes())


def name_node(node_id: str) -> str:
    """Its address, for people; the cluster's name for it where it is gone."""
    return next((str(node["NodeManagerAddress"]) for node in list_nodes() if node["NodeID"] == node_id), node_id)


def list_nodes() -> list[dict[str, Any]]:
    """Ray's description of each living node."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


class RunMetrics:
    """What is committed, on Ray's own Prometheus endpoint, on every node's metrics port."""

    def __init__(self) -> None:
        self._images = Counter("sam_labeler_images", description="Images with a committed row.")
        self._masks = Counter("sam_labeler_masks", description="Committed masks.")
        self._failures = Counter("sam_labeler_failures", description="Images committed as errors.", tag_keys=("kind",))
        self._seconds = Counter("sam_labeler_seconds", description="Seconds spent in a stage.", tag_keys=("stage",))

    def count(self, tally: Tally) -> None:
        """Add a shard."""
        for counter, value in ((self._images, tally.num_images), (self._masks, tally.num_masks)):
            if value > 0:
                counter.inc(value)
        for kind, number in tally.errors.items():
            self._failures.inc(number, tags={"kind": kind})
        for stage, seconds in zip(STAGES, tally.stage_seconds, strict=True):
            if seconds > 0:
                self._seconds.inc(seconds, tags={"stage": stage})
