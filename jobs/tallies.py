"""The tally of a run without one request a shard: what ``progress.json`` has counted, and what is newer than it.

Must not know who labels. ``progress.json`` names the shards that its counts include, as ranges; parts of other
committed shards are read. A shard that is about to be made again is taken out of them first.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from jobs.shards import Tally, tally_shard
from labeler.ahead import READS_AT_ONCE, map_ahead
from labeler.errors import StorageError
from labeler.tables import STAGES


class ShardSet:
    """Shard numbers of a run; a byte each, so that a driver's memory stays flat."""

    def __init__(self, num_shards: int, shards: Collection[int] = ()) -> None:
        self._flags = np.zeros(num_shards, np.int8)
        self._flags[list(shards)] = 1

    def __contains__(self, shard: int) -> bool:
        return bool(self._flags[shard])

    def add(self, shard: int) -> None:
        """Now it is in the set."""
        self._flags[shard] = 1

    def discard(self, shard: int) -> None:
        """Now it is not."""
        self._flags[shard] = 0

    def to_text(self) -> str:
        """As ranges, both ends included: ``0-41,43``."""
        edges = np.flatnonzero(np.diff(self._flags, prepend=np.int8(0), append=np.int8(0))).reshape(-1, 2)
        return ",".join(str(begin) if end == begin + 1 else f"{begin}-{end - 1}" for begin, end in edges.tolist())


class ShardTallies:
    """Tallies of some shards of a run, and their sum, kept so that nobody goes through thousands of them.

    Attributes:
        sum: what they all amount to.
    """

    def __init__(self, tallies: Mapping[int, Tally] | None = None) -> None:
        self._tallies = dict(tallies or {})
        self.sum = sum(self._tallies.values(), Tally())

    def __contains__(self, shard: int) -> bool:
        return shard in self._tallies

    def add(self, shard: int, tally: Tally) -> None:
        """So much more of this shard."""
        self._tallies[shard] = self._tallies.get(shard, Tally()) + tally
        self.sum += tally

    def pop(self, shard: int) -> Tally:
        """Take a shard away; what it was, nothing where it is not among them."""
        tally = self._tallies.pop(shard, Tally())
        self.sum -= tally
        return tally


def text_to_shards(text: str) -> set[int]:
    """The numbers that ``ShardSet.to_text`` wrote. Raises ValueError on any other text."""
    shards: set[int] = set()
    for piece in filter(None, text.split(",")):
        begin, _, end = piece.partition("-")
        shards.update(range(int(begin), int(end or begin) + 1))
    return shards


def describe_counted(tally: Tally, shards: ShardSet) -> dict[str, Any]:
    """What ``read_tally`` reads back: exact, unlike the figures for people beside it."""
    return {
        "shards": shards.to_text(),
        "num_images": tally.num_images,
        "num_masks": tally.num_masks,
        "errors": dict(tally.errors),
        "prompts": dict(tally.prompts),
        "stage_seconds": dict(zip(STAGES, tally.stage_seconds, strict=True)),
    }


def read_tally(output: str, shards: Collection[int], *, progress: Mapping[str, Any] | None) -> Tally:
    """The tally of these committed shards.

    Args:
        output: the run's folder.
        shards: all that are committed.
        progress: the content of ``progress.json``, if there is one.

    Raises:
        StorageError: one can't be read, or is gone.
    """
    standing, tally = read_standing(output, shards, progress=progress)
    gone = set(shards) - set(standing)
    if gone:
        raise StorageError(f"a part of shard {min(gone)} of {output} was there and is gone; is another driver at work on it?")
    return tally


def read_standing(output: str, shards: Collection[int], *, progress: Mapping[str, Any] | None) -> tuple[list[int], Tally]:
    """As ``read_tally``, for `status`, which changes nothing: the shards that are still committed, in order, and their tally.

    Shards whose part vanished since they were listed are left out: they are made again just now. ``progress`` was read before
    the shards were listed: were it newer, it would count some that are not among them, and be of no use.
    """
    committed = set(shards)
    standing, tally = _read_counted(progress)
    if not standing <= committed:
        standing, tally = set(), Tally()  # Somebody took parts away since.

    def try_tally(shard: int) -> Tally | None:
        try:
            return tally_shard(output, shard)
        except FileNotFoundError:
            return None

    others = sorted(committed - standing)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for shard, found in zip(others, map_ahead(pool, try_tally, others, num_ahead=READS_AT_ONCE), strict=True):
            if found is not None:
                standing.add(shard)
                tally += found
    return sorted(standing), tally


def find_failed_shards(output: str, shards: Collection[int], *, kinds: Collection[str]) -> dict[int, Tally]:
    """Of these committed shards those with errors of these kinds, and their tallies. Reads every images part."""
    if not kinds:
        return {}
    ordered = sorted(shards)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        tallies = map_ahead(pool, partial(tally_shard, output), ordered, num_ahead=READS_AT_ONCE)
        return {s: tally for s, tally in zip(ordered, tallies, strict=True) if set(tally.errors) & set(kinds)}


def _read_counted(progress: Mapping[str, Any] | None) -> tuple[set[int], Tally]:
    """Shards and tally of a ``progress.json``; none where it lacks them or was written by another version."""
    try:
        counted = (progress or {})["counted"]
        tally = Tally(
            num_images=int(counted["num_images"]),
            num_masks=int(counted["num_masks"]),
            errors={str(kind): int(count) for kind, count in counted["errors"].items()},
            prompts={str(kind): int(count) for kind, count in counted["prompts"].items()},
            stage_seconds=tuple(float(counted["stage_seconds"][stage]) for stage in STAGES),
        )
        return text_to_shards(counted["shards"]), tally
    except (KeyError, TypeError, ValueError, AttributeError):
        return set(), Tally()
