"""Write a shard and commit it, count what is committed, verify a run. Must not know who labels or when.

A shard is two files with names known beforehand. The masks part is written first, then the images part, which holds
the masks part's sha256: when it stands, the shard is committed. Making a shard again takes the images part away first.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from labeler import storage, tables
from labeler.errors import StorageError
from labeler.tables import ImageRow

STAGES = ("read", "decode", "encode", "predict", "post")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tally:
    """What some images amount to. Tallies of different images add up.

    Attributes:
        errors: how many failed, by ``error_kind``.
        stage_seconds: seconds spent in each of ``STAGES``, summed over images.
    """

    num_images: int = 0
    num_masks: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    stage_seconds: tuple[float, ...] = (0.0,) * len(STAGES)

    @property
    def num_failed(self) -> int:
        """Images without masks for a reason."""
        return sum(self.errors.values())

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            num_images=self.num_images + other.num_images,
            num_masks=self.num_masks + other.num_masks,
            errors=dict(Counter(self.errors) + Counter(other.errors)),
            stage_seconds=tuple(a + b for a, b in zip(self.stage_seconds, other.stage_seconds, strict=True)),
        )


def tally_rows(rows: Sequence[ImageRow]) -> Tally:
    """The tally of some rows of the images table."""
    return Tally(
        num_images=len(rows),
        num_masks=sum(row.num_masks for row in rows),
        errors=dict(Counter(row.error_kind for row in rows if row.error_kind is not None)),
        stage_seconds=tuple(sum(getattr(row, f"seconds_{stage}") or 0.0 for row in rows) for stage in STAGES),
    )


def tally_shard(output: str, shard: int) -> Tally:
    """The tally of a committed shard, read from its images part alone."""
    columns = ["num_masks", "error_kind", *(f"seconds_{stage}" for stage in STAGES)]
    rows = tables.read_part(output, table="images", number=shard, columns=columns).to_pylist()
    return Tally(
        num_images=len(rows),
        num_masks=sum(row["num_masks"] for row in rows),
        errors=dict(Counter(row["error_kind"] for row in rows if row["error_kind"] is not None)),
        stage_seconds=tuple(sum(row[f"seconds_{stage}"] or 0.0 for row in rows) for stage in STAGES),
    )


def commit_shard(
    output: str,
    shard: int,
    *,
    masks: Sequence[Any],
    rows: Sequence[ImageRow],
    metadata: Mapping[str, str],
    retries: int,
) -> None:
    """Write both parts of a shard; when this returns, it counts.

    Args:
        masks: record batches of the masks table, in order of image_id.
        rows: one for each image of the shard, in order of image_id.
        metadata: the run's.
        retries: how often a write that failed is tried again.
    """
    masks_part = tables.encode_part(masks, table="masks", metadata=metadata)
    images_part = tables.encode_part(
        [tables.images_to_batch(rows)],
        table="images",
        metadata={**metadata, tables.MASKS_SHA256: hashlib.sha256(masks_part).hexdigest()},
    )
    masks_uri, images_uri = (locate_part(output, table, shard) for table in ("masks", "images"))
    try:
        call_with_retries(lambda: storage.delete(images_uri), retries=retries)
        call_with_retries(lambda: storage.write_bytes(masks_uri, masks_part), retries=retries)
        call_with_retries(lambda: storage.write_bytes(images_uri, images_part), retries=retries)
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"can't write to {output}: {error}") from error


def locate_part(output: str, table: tables.TableName, number: int) -> str:
    """Where a part is, or will be."""
    return storage.join(output, tables.part_name(table, number))


def call_with_retries(call: Callable[[], T], *, retries: int) -> T:
    """The result of a storage call, tried again after a pause while the store does not answer.

    Pauses double and are drawn at random, so that a thousand workers do not come back at the same moment.

    Raises:
        StorageError: that of the last try. Anything else at once: only the store's own troubles pass by themselves.
    """
    for attempt in range(retries):
        try:
            return call()
        except StorageError:
            time.sleep(random.uniform(0.1, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt))
    return call()
