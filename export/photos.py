"""A sample of a run's images with their masks and photos, for those who look. Must not know pictures or pages."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from labeler.draw import shrink_to_fit
from labeler.runs import Row, Run, iterate_images, iterate_parts, read_photo
from labeler.types import UInt8

_COLUMNS = ("image_id", "uri", "file_name", "width", "height", "status", "error_kind", "error_message")
_MASK_COLUMNS = ("image_id", "mask_id", "segmentation", "area", "predicted_iou", "stability_score", "bbox")

T = TypeVar("T")


def choose_images(run: Run, *, limit: int) -> list[tuple[int, Row]]:
    """(shard, image row) of a sample spread evenly over the committed images, in order; failed images among them."""
    shards = spread(run.shards, limit)
    parts = iterate_parts(run, table="images", columns=_COLUMNS, shards=shards)
    return spread([(shard, row) for shard, rows in parts for row in rows], limit)


def join_masks(run: Run, chosen: Sequence[tuple[int, Row]]) -> Iterator[tuple[Row, list[Row]]]:
    """Each image row with the rows of its masks. Each masks part is read once."""
    wanted = {row["image_id"] for _, row in chosen}
    shards = sorted({shard for shard, _ in chosen})
    images = iterate_images(run, columns=_COLUMNS, mask_columns=_MASK_COLUMNS, shards=shards)
    return ((row, masks) for row, masks in images if row["image_id"] in wanted)


def read_small_photo(row: Row, run: Run, *, max_side_px: int) -> UInt8:
    """The photo as it was labeled, at most so long. Raises ImageError where it is not that any more."""
    return shrink_to_fit(read_photo(row, run).pixels, max_side_px=max_side_px)


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` of the items, evenly spaced, the first one always among them."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
