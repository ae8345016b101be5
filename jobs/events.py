"""What a worker tells while it labels a shard. Must not know who tells or who listens: these travel between processes."""

from dataclasses import dataclass, field

from jobs.lease import ProcessName
from jobs.shards import Tally


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """The next thing that is touched is this image."""

    image_id: int


@dataclass(frozen=True, slots=True)
class ImageAwaited:
    """This image is next, but its bytes are still not there: for no fault of its own. Told every second until they are."""

    image_id: int


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image has its row, which is not committed yet. ``log`` holds the traceback of an ``internal`` error."""

    image_id: int
    num_masks: int
    error_kind: str | None
    log: str | None = None


@dataclass(frozen=True, slots=True)
class ShardCommitted:
    """A shard counts from now on. ``kept`` is the part of its tally that stood before and was not labeled again."""

    shard: int
    tally: Tally
    peak_memory_bytes: int
    kept: Tally = field(default_factory=Tally)


Event = ImageStarted | ImageAwaited | ImageDone | ShardCommitted


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a worker runs, and the most memory it has held by the time it could label.

    Attributes:
        is_slower: it computes in f32 where it could in bf16.
        node: the cluster's name of its machine.
    """

    host: str
    process: ProcessName
    peak_memory_bytes: int
    is_slower: bool = False
    node: str = ""

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid
