"""A run read part by part: the next ones ahead, all in order, what is damaged said by name."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from crowd import Crowd
from drawn_masks import draw_box

from labeler import tables
from labeler.errors import StorageError
from labeler.runs import Run, iterate_images, iterate_rows, read_run

HW = (40, 60)


@pytest.fixture
def run(make_run: Any) -> Run:
    """Twelve shards of an image, each with one mask more than the last."""
    images = [(f"{i}.png", HW, [draw_box(HW, 0, 0, j + 1, j + 1) for j in range(i)]) for i in range(12)]
    return read_run(str(make_run(images, per_shard=1)))


def test_parts_are_read_ahead_and_told_in_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small ones at once, few large ones; who stops early leaves the rest unread."""
    crowds = {"images": Crowd(), "masks": Crowd()}
    num_read, read_part = 0, tables.read_part

    def read(output: str, *, table: tables.TableName, **more: Any) -> Any:
        nonlocal num_read
        num_read += 1
        with crowds[table]:
            return read_part(output, table=table, **more)

    monkeypatch.setattr(tables, "read_part", read)
    assert [row["image_id"] for row in iterate_rows(run, table="images", columns=["image_id"])] == list(range(1, 13))
    assert crowds["images"].most > 4
    found = iterate_images(run, columns=["image_id"], mask_columns=["image_id"])
    assert [(row["image_id"], len(masks)) for row, masks in found] == [(i + 1, i) for i in range(12)]
    assert crowds["masks"].most == 2
    num_read = 0
    rows = iterate_rows(run, table="masks", columns=["image_id"])
    assert [row["image_id"] for row in islice(rows, 1)] == [2]
    assert num_read <= 5


def test_a_part_that_cannot_be_read_is_named(run: Run) -> None:
    """After all that came before it."""
    part = Path(run.output, tables.part_name("masks", 7))
    part.write_bytes(part.read_bytes()[:100])
    images = iterate_images(run, columns=["image_id"], mask_columns=["image_id"])
    assert [row["image_id"] for row, _ in islice(images, 7)] == list(range(1, 8))
    with pytest.raises(StorageError, match=r"masks/part-0000007\.parquet is damaged"):
        next(images)
    part.unlink()
    with pytest.raises(StorageError, match=r"masks/part-0000007\.parquet can't be read"):
        list(iterate_rows(run, table="masks", columns=["image_id"]))
