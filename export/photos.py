"""A sample of a run's images with their masks and photos, for those who look. Must not know pictures or pages."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from export.runs import Row, Run, iterate_rows
from labeler.draw import shrink_to_fit
from labeler.errors import ImageError
from labeler.images import decode_image
from labeler.pictures import read_picture
from labeler.types import UInt8

_COLUMNS = ("image_id", "uri", "file_name", "width", "height", "status", "error_kind", "error_message")
_MASK_COLUMNS = ("image_id", "mask_id", "segmentation", "area", "predicted_iou", "stability_score", "bbox")

T = TypeVar("T")


def choose_images(run: Run, *, limit: int) -> list[tuple[int, Row]]:
    """(shard, image row) of a sample spread evenly over the committed images, in order; failed images among them."""
    shards = _spread(run.shards, limit)
    rows = [(s, row) for s in shards for row in iterate_rows(run, table="images", columns=_COLUMNS, shards=[s])]
    return _spread(rows, limit)


def join_masks(run: Run, chosen: Sequence[tuple[int, Row]]) -> Iterator[tuple[Row, list[Row]]]:
    """Each image row with the rows of its masks. Each masks part is read once."""
    for shard, group in groupby(chosen, key=lambda pair: pair[0]):
        rows = [row for _, row in group]
        masks: dict[int, list[Row]] = {row["image_id"]: [] for row in rows}
        for mask in iterate_rows(run, table="masks", columns=_MASK_COLUMNS, shards=[shard]):
            if mask["image_id"] in masks:
                masks[mask["image_id"]].append(mask)
        # Taken out one by one: an image's masks are gone when it is dealt with.
        yield from ((row, masks.pop(row["image_id"])) for row in rows)


def read_photo(row: Row, run: Run, *, max_side_px: int) -> UInt8:
    """The photo as it was labeled, at most so long. Raises ImageError where it is not that any more."""
    try:
        data = read_picture(row["uri"], image_column=run.image_column)
    except FileNotFoundError as error:
        raise ImageError("missing", "it is not there any more") from error
    except PermissionError as error:
        raise ImageError("forbidden", "permission denied") from error
    image = decode_image(data, exif=run.options.exif, max_pixels=run.options.max_pixels)
    if image.hw != (row["height"], row["width"]):
        raise ImageError("changed", "its size is not what it was when it was labeled")
    return shrink_to_fit(image.pixels, max_side_px=max_side_px)


def _spread(items: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` of the items, evenly spaced, the first one always among them."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
