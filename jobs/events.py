"""What a worker tells while it labels a shard. Must not know who tells or who listens: these travel between processes."""

from dataclasses import dataclass

from jobs.shards import Tally


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """The next thing that is touched is this image."""

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
    """A shard counts from now on."""

    shard: int
    tally: Tally
    peak_memory_bytes: int


Event = ImageStarted | ImageDone | ShardCommitted


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a worker runs."""

    host: str
    pid: int
