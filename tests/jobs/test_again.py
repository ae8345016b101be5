"""A shard labeled again in part, without Ray."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from fakes import load_worker, write_picture
from PIL import Image as PillowImage

from jobs.events import ImageDone, ShardCommitted
from jobs.plan import read_run
from jobs.shards import read_kept, read_parts
from jobs.verify import find_faults
from labeler import storage, tables

LabelHere = Callable[..., Path]


def test_what_is_kept_is_written_again_byte_for_byte(label_here: LabelHere) -> None:
    """Masks parts do not say how they came about; only images of the asked kinds are touched."""
    output = label_here(images_per_shard=12)
    before = {path: path.read_bytes() for path in (output / "masks").iterdir()}
    events = list(load_worker(output).label_shard(0, again={"corrupt", "timeout"}))
    assert [event.error_kind for event in events if isinstance(event, ImageDone)] == ["corrupt", "corrupt"]
    committed = events[-1]
    assert isinstance(committed, ShardCommitted)
    assert (committed.tally.num_images, committed.kept.num_images) == (12, 10)
    assert {path: path.read_bytes() for path in (output / "masks").iterdir()} == before


def test_an_image_that_was_mended_is_taken_as_it_is_now(label_here: LabelHere, photos: Path) -> None:
    """A good file in the place of a broken one has its masks, and its row its size; the run is whole with it."""
    output = label_here(images_per_shard=12)
    write_picture(photos / "a" / "empty.png", seed=3).replace(photos / "a" / "empty.jpg")
    events = list(load_worker(output).label_shard(0, again={"corrupt"}))
    assert [event.error_kind for event in events if isinstance(event, ImageDone)] == [None, "corrupt"]
    rows = {row["file_name"]: row for row in pq.read_table(output / "images").to_pylist()}
    mended = rows["a/empty.jpg"]
    assert (mended["status"], mended["size_bytes"]) == ("ok", (photos / "a" / "empty.jpg").stat().st_size)
    record = read_run(str(output))
    assert record is not None
    assert list(find_faults(str(output), record)) == []


def test_an_image_written_again_after_planning_is_changed_until_it_is_asked_for(label_here: LabelHere, photos: Path) -> None:
    """With masks of its new content then, also where only the time of its file tells; its neighbours stay as they are."""
    output = label_here(images_per_shard=12, shards=[])
    larger, touched = photos / "a" / "1 %.png", photos / "a" / "3 %.png"
    larger.write_bytes(write_picture(photos / "new.png", seed=11).read_bytes() + b"behind the end")
    (photos / "new.png").unlink()
    os.utime(touched, ns=(0, 0))
    labeler = load_worker(output)
    first = [event.error_kind for event in labeler.label_shard(0) if isinstance(event, ImageDone)]
    assert sorted(filter(None, first)) == ["changed", "changed", "corrupt", "corrupt"]
    before = {storage.decode_name(row["file_name"]): row for row in pq.read_table(output / "images").to_pylist()}
    assert {name for name, row in before.items() if row["error_kind"] == "changed"} == {"a/1 %.png", "a/3 %.png"}

    events = list(labeler.label_shard(0, again={"changed"}))
    assert [event.error_kind for event in events if isinstance(event, ImageDone)] == [None, None]
    after = {storage.decode_name(row["file_name"]): row for row in pq.read_table(output / "images").to_pylist()}
    for path in (larger, touched):
        row = after.pop(f"a/{path.name}")
        with PillowImage.open(path) as picture:
            assert (row["status"], row["width"], row["height"]) == ("ok", *picture.size)
        assert row["size_bytes"] == path.stat().st_size
        assert row["num_masks"] > 0
    assert after == {name: row for name, row in before.items() if name in after}
    record = read_run(str(output))
    assert record is not None
    assert list(find_faults(str(output), record)) == []


def test_parts_that_do_not_fit_each_other_are_not_kept(label_here: LabelHere) -> None:
    """Then the whole shard is labeled again, and is an undisturbed one's."""
    output = label_here(images_per_shard=12)
    part = output / "masks" / "part-0000000.parquet"
    whole = part.read_bytes()
    rows = pq.read_table(part)
    part.write_bytes(tables.encode_part(rows.slice(0, 3).to_batches(), table="masks", metadata=tables.read_metadata(rows)))
    assert read_parts(str(output), 0) is None
    assert read_kept(str(output), 0, kinds={"corrupt"}) == {}
    events = list(load_worker(output).label_shard(0, again={"corrupt"}))
    assert len([event for event in events if isinstance(event, ImageDone)]) == 12
    assert part.read_bytes() == whole
    part.unlink()
    assert read_parts(str(output), 0) is None
