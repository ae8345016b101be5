"""Counting a run without reading every part of it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import jobs.tallies
from jobs.events import ImageDone, ShardCommitted
from jobs.plan import read_run
from jobs.report import Watch, read_report
from jobs.shards import Tally, tally_shard
from jobs.tallies import ShardSet, ShardTallies, find_failed_shards, read_tally, text_to_shards
from labeler import tables

LabelHere = Callable[..., Path]
OURS = tuple(str(Path(__file__).parents[2] / package) for package in ("jobs", "labeler"))


@pytest.mark.parametrize("shards", [set(), {0}, {9}, set(range(10)), {0, 1, 3, 7, 8, 9}])
def test_shards_as_text_and_back(shards: set[int]) -> None:
    """Ranges, so that millions of neighbours take a line."""
    text = ShardSet(10, shards).to_text()
    assert text_to_shards(text) == shards
    assert len(text) <= 10


def test_the_sum_of_some_shards_is_kept() -> None:
    """Whatever comes and goes; what is not there takes nothing away."""
    tallies = ShardTallies({1: Tally(64, 6400, {"timeout": 2})})
    tallies.add(2, Tally(1, 100))
    tallies.add(2, Tally(1, 0, {"corrupt": 1}))
    assert tallies.sum == Tally(66, 6500, {"timeout": 2, "corrupt": 1})
    assert tallies.pop(1) == Tally(64, 6400, {"timeout": 2})
    assert tallies.pop(1) == Tally()
    assert (1 in tallies, 2 in tallies) == (False, True)
    assert tallies.sum == Tally(2, 100, {"corrupt": 1})


def count_lines(call: Callable[[], object]) -> int:
    """How many lines of this project's code run in a call: those of a loop once for each of its rounds."""
    num_lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal num_lines
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        num_lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return num_lines


def test_saving_costs_the_same_however_much_is_in_work(label_here: LabelHere) -> None:
    """With thousands of workers, and tens of thousands of shards that are made again, in the loop that watches them."""
    output = str(label_here(shards=[]))
    record = read_run(output)
    assert record is not None
    costs = []
    for num_shards in (3000, 30_000):
        sizes = {"num_shards": 2 * num_shards, "num_images": 2 * num_shards * 64}
        redone = {shard: Tally(64, 6400, {"timeout": 1, "corrupt": 1}) for shard in range(num_shards)}
        before = sum(redone.values(), Tally())
        watch = Watch(output, record=record.model_copy(update=sizes), before=before, shards_before=redone, redone=redone)
        for shard in range(num_shards // 10):
            watch.count_image(num_shards + shard, ImageDone(1, num_masks=100, error_kind=None))
        costs.append(count_lines(lambda watch=watch: watch.save("running")))  # type: ignore[misc]
        progress = read_report(output, "progress.json")
        assert progress is not None
        assert (progress["num_images_in_work"], progress["num_done"]) == (num_shards // 10, num_shards * 64)
        assert progress["counted"]["num_images"] == 0
    assert 10 < costs[0] == costs[1] < 1000


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
