"""Counting a run without reading every part of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs.tallies
from jobs.events import ShardCommitted
from jobs.plan import read_run
from jobs.report import Watch, read_report
from jobs.shards import Tally, tally_shard
from jobs.tallies import ShardSet, find_failed_shards, read_tally, text_to_shards
from labeler import tables

LabelHere = Callable[..., Path]


@pytest.mark.parametrize("shards", [set(), {0}, {9}, set(range(10)), {0, 1, 3, 7, 8, 9}])
def test_shards_as_text_and_back(shards: set[int]) -> None:
    """Ranges, so that millions of neighbours take a line."""
    text = ShardSet(10, shards).to_text()
    assert text_to_shards(text) == shards
    assert len(text) <= 10


def test_only_what_is_newer_is_read(label_here: LabelHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tally as from all parts; without progress.json, or where a counted part is gone, all are read."""
    output = str(label_here(images_per_shard=3))
    record = read_run(output)
    assert record is not None
    watch = Watch(output, record=record, before=Tally())
    for shard in (0, 2):
        watch.count_shard(ShardCommitted(shard, tally_shard(output, shard), 0))
    watch.save("running")
    read: list[int] = []

    def count(output: str, shard: int) -> Tally:
        read.append(shard)
        return tally_shard(output, shard)

    monkeypatch.setattr(jobs.tallies, "tally_shard", count)
    committed = tables.list_committed_shards(output)
    progress = read_report(output, "progress.json")
    whole = read_tally(output, committed, progress=None)
    assert (whole.num_images, sorted(read)) == (12, [0, 1, 2, 3])
    read.clear()
    found: Any = read_tally(output, committed, progress=progress)
    assert (found.num_images, found.num_masks, found.errors) == (whole.num_images, whole.num_masks, whole.errors)
    assert sorted(read) == [1, 3]
    read.clear()
    assert read_tally(output, committed - {2}, progress=progress).num_images == 9
    assert sorted(read) == [0, 1, 3]
    assert set(find_failed_shards(output, committed, kinds={"corrupt"})) == {
        shard for shard in committed if tally_shard(output, shard).errors
    }
    assert find_failed_shards(output, committed, kinds={"timeout"}) == {}


def test_shards_made_again_count_until_they_are(label_here: LabelHere) -> None:
    """People see all rows; progress.json counts for others only what does not change."""
    output = str(label_here(images_per_shard=6))
    record = read_run(output)
    assert record is not None
    tallies = {shard: tally_shard(output, shard) for shard in range(2)}
    before = sum(tallies.values(), Tally())
    watch = Watch(output, record=record, before=before, shards_before=tallies, redone={0: tallies[0]})
    watch.save("running")
    progress = read_report(output, "progress.json")
    assert progress is not None
    assert (progress["num_done"], progress["counted"]["shards"]) == (12, "1")
    assert progress["counted"]["num_images"] == tallies[1].num_images
    watch.count_shard(ShardCommitted(0, tallies[0], 0))
    assert watch.tally.num_images == 12


def test_a_shard_counts_once(label_here: LabelHere) -> None:
    """Whoever tells of it again; one that two workers wrote does not count while it is made again."""
    output = str(label_here(images_per_shard=6))
    record = read_run(output)
    assert record is not None
    watch = Watch(output, record=record, before=Tally())
    for shard in (0, 1, 0):
        watch.drop_shard(shard)
        watch.count_shard(ShardCommitted(shard, tally_shard(output, shard), 0))
    assert watch.tally.num_images == 12
    watch.forget_shard(1)
    assert watch.tally.num_images == 6
    watch.count_shard(ShardCommitted(1, tally_shard(output, 1), 0))
    assert watch.tally.num_images == 12
