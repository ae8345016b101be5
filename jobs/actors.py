"""One worker of a run as a Ray actor: what it is doing, what tells about it, and what is left of it when it is gone.

Must not know how many there are or which shard comes next. Part of the Ray seam.
"""

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError

from jobs.events import WorkerInfo
from jobs.lease import ProcessName, is_process_alive
from jobs.ledger import Assignment
from jobs.worker import ShardLabeler

logger = logging.getLogger(__name__)

READ_IS_LONG_S = 300.0
"""How long the bytes of an image may be awaited before that is said: a dead mount says nothing by itself."""

_MAX_REASON = 300  # Letters.


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
        awaited: the image whose bytes were not there yet when it last told, and when that is to be said.
        hung_image: the image for which the worker was killed.
        is_committed: what comes next is the end of the stream, or of the worker.
    """

    assignment: Assignment
    events: Any
    in_work: list[int] = field(default_factory=list)
    since_s: float = 0.0
    awaited: tuple[int, float] | None = None
    hung_image: int | None = None
    is_committed: bool = False

    def note_wait(self, image_id: int) -> bool:
        """The bytes of the first are still not there. Whether that has to be said: once an image, after minutes."""
        self.since_s = time.monotonic()
        if self.awaited is None or self.awaited[0] != image_id:
            self.awaited = (image_id, self.since_s + READ_IS_LONG_S)
        is_due = self.since_s >= self.awaited[1]
        if is_due:
            self.awaited = (image_id, math.inf)
        return is_due

    def is_overdue(self, limit_s: float) -> bool:
        """Whether, by what it has told, it is at one image for longer than this."""
        return bool(self.in_work) and self.hung_image is None and time.monotonic() > self.since_s + limit_s


@dataclass(slots=True, eq=False)
class Worker:
    """One actor: first it loads its model, then it has one task at a time.

    Attributes:
        without: the nodes on which it may not be.
        memory_bytes: what it asked for.
        missing: set where it does not answer and Ray does not know yet whether it is dead: what asks it for a sign of life.
    """

    actor: Any
    loading: Any
    without: frozenset[str] = frozenset()
    memory_bytes: int = 0
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


def describe_death(error: RayError) -> str:
    """Why a worker died, as far as Ray knows: a line."""
    text = str(error).strip()
    told = re.search(r"Worker exit detail: (.+?)(?: Some common causes include|$)", text, re.DOTALL)
    lines = (told[1] if told else text).strip().splitlines() or [type(error).__name__]
    return lines[0][:_MAX_REASON].rstrip(".")


@dataclass(slots=True, eq=False)
class Ghost:
    """A worker that is gone for Ray, but may still write: what waits for its end, or for its right to write to lapse.

    Attributes:
        attempt: what it has the right to write.
        patience_s: how long a write may go on once that right is taken from it.
        is_here: its end can be seen from here.
        lapses_s: where its end can't be seen: from when on another may have its shard; None before it was written off.
    """

    process: ProcessName
    attempt: int
    patience_s: float
    is_here: bool
    then: Callable[[], None]
    lapses_s: float | None = None

    def is_gone(self) -> bool:
        """Whether another may have its shard."""
        if self.is_here:
            return not is_process_alive(self.process)
        return self.lapses_s is not None and time.monotonic() >= self.lapses_s
