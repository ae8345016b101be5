"""What goes wrong in a job for no fault of an engine. ``fake_jobs`` is told by name which of it its driver meets."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jobs.crew
from jobs.actors import NodeLabeler
from jobs.events import Event, ImageDone, ShardCommitted
from jobs.labeling import ImageBytes, ImageLabeler
from jobs.refs import ImageRef
from jobs.report import Watch
from labeler.errors import StorageError


class DiesOnceCommitted(NodeLabeler):
    """After the news that the first shard is committed, and before the end of the news."""

    def label_shard(self, shard: int, **how: Any) -> Iterator[Event]:
        for event in super().label_shard(shard, **how):
            yield event
            if isinstance(event, ShardCommitted) and shard == 0:
                time.sleep(1)
                os._exit(1)


class DiesAtShardOne(NodeLabeler):
    """Always, before an image of it is announced."""

    def label_shard(self, shard: int, **how: Any) -> Iterator[Event]:
        if shard == 1:
            os._exit(1)
        yield from super().label_shard(shard, **how)


class LosesItsStore(NodeLabeler):
    """Where the node is of that kind; it loads its model before, and announces an image."""

    def label_shard(self, shard: int, **how: Any) -> Iterator[Event]:
        for event in super().label_shard(shard, **how):
            yield event
            if "FAKE_STORE_FAILS" in os.environ:
                raise StorageError("images can't be read: Stale file handle")


class ReadsSlowly(NodeLabeler):
    """Each image takes five seconds to come, as from a store that is gone for a while."""

    def label_shard(self, shard: int, **how: Any) -> Iterator[Event]:
        ImageLabeler.read = _read_slowly  # type: ignore[method-assign]
        yield from super().label_shard(shard, **how)


_read, _count = ImageLabeler.read, Watch.count_image


def _read_slowly(labeler: ImageLabeler, ref: ImageRef) -> ImageBytes:
    time.sleep(5)
    return _read(labeler, ref)


def _count_slowly(watch: Watch, shard: int, done: ImageDone) -> None:
    if done.image_id == 1:
        time.sleep(5)
    _count(watch, shard, done)


def hire(worker_class: type[NodeLabeler]) -> Callable[[], None]:
    """All workers are of this class."""
    return lambda: setattr(jobs.crew, "NodeLabeler", worker_class)


TROUBLES: dict[str, Callable[[], None]] = {
    "dies once committed": hire(DiesOnceCommitted),
    "dies at shard one": hire(DiesAtShardOne),
    "loses its store": hire(LosesItsStore),
    "reads slowly": hire(ReadsSlowly),
    "listens slowly": lambda: setattr(Watch, "count_image", _count_slowly),
}
