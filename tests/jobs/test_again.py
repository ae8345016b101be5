"""A shard labeled again in part, without Ray."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from jobs.events import ImageDone, ShardCommitted
from jobs.shards import read_kept, read_parts
from jobs.worker import ShardLabeler
from labeler import tables

LabelHere = Callable[..., Path]


def load(output: Path) -> ShardLabeler:
    labeler = ShardLabeler(str(output), threads=1, retries=0, engine="fake_engine:DiscEngine")
    labeler.load()
    return labeler


def test_what_is_kept_is_written_again_byte_for_byte(label_here: LabelHere) -> None:
    """Masks parts do not say how they came about; only images of the asked kinds are touched."""
    output = label_here(images_per_shard=12)
    before = {path: path.read_bytes() for path in (output / "masks").iterdir()}
    events = list(load(output).label_shard(0, again={"corrupt", "timeout"}))
    assert [event.error_kind for event in events if isinstance(event, ImageDone)] == ["corrupt", "corrupt"]
    committed = events[-1]
    assert isinstance(committed, ShardCommitted)
    assert (committed.tally.num_images, committed.kept.num_images) == (12, 10)
    assert {path: path.read_bytes() for path in (output / "masks").iterdir()} == before


def test_parts_that_do_not_fit_each_other_are_not_kept(label_here: LabelHere) -> None:
    """Then the whole shard is labeled again, and is an undisturbed one's."""
    output = label_here(images_per_shard=12)
    part = output / "masks" / "part-0000000.parquet"
    whole = part.read_bytes()
    rows = pq.read_table(part)
    part.write_bytes(tables.encode_part(rows.slice(0, 3).to_batches(), table="masks", metadata=tables.read_metadata(rows)))
    assert read_parts(str(output), 0) is None
    assert read_kept(str(output), 0, kinds={"corrupt"}) == {}
    events = list(load(output).label_shard(0, again={"corrupt"}))
    assert len([event for event in events if isinstance(event, ImageDone)]) == 12
    assert part.read_bytes() == whole
    part.unlink()
    assert read_parts(str(output), 0) is None
