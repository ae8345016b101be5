"""Write a shard and commit it, count what is committed, verify a run. Must not know who labels or when.

A shard is two files with names known beforehand. The masks part is written first, then the images part, which holds
the masks part's sha256: when it stands, the shard is committed. Making a shard again takes the images part away first.
"""

import errno
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jobs.lease import LeaseLostError, Permit, check_permit
from labeler import storage, tables
from labeler.errors import StorageError, StorageRefusedError
from labeler.tables import ImageRow

STAGES = ("read", "decode", "encode", "predict", "post")

_TABLES: tuple[tables.TableName, ...] = ("masks", "images")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

_MEMORY_BESIDE_WEIGHTS_BYTES = 500 * 2**20

_LASTING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What no pause mends: a disk that is full or may not be written."""

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

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(
            num_images=self.num_images - other.num_images,
            num_masks=self.num_masks - other.num_masks,
            errors=dict(Counter(self.errors) - Counter(other.errors)),
            stage_seconds=tuple(a - b for a, b in zip(self.stage_seconds, other.stage_seconds, strict=True)),
        )

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


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image of a committed shard that is not labeled again: its row and its masks as they stand."""

    row: ImageRow
    batches: Sequence[Any]


def read_parts(output: str, shard: int) -> tuple[Any, Any] | None:
    """The masks and images of a committed shard as tables; None where a part is missing, damaged or not the other's."""
    try:
        data = {table: storage.read_bytes(locate_part(output, table, shard)) for table in _TABLES}
        masks, images = (tables.decode_part(data[table], name=tables.part_name(table, shard)) for table in _TABLES)
    except FileNotFoundError:
        return None
    except StorageError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, OSError):
            return None  # It was read, but is no table.
        raise
    wanted = tables.read_metadata(images).get(tables.MASKS_SHA256)
    return (masks, images) if wanted == hashlib.sha256(data["masks"]).hexdigest() else None


def read_kept(output: str, shard: int, *, kinds: Collection[str]) -> dict[int, KeptImage]:
    """What stays of a shard, by image_id, when its errors of these kinds are labeled again.

    Nothing where the shard's parts do not fit each other: all of it has to be made again.
    """
    parts = read_parts(output, shard)
    if parts is None:
        return {}
    masks, images = parts
    # Parquet names what is in a list otherwise than Arrow does; the bytes of a part must not tell that it was read.
    masks = masks.cast(tables.SCHEMAS["masks"])
    kept, begin = {}, 0
    for row in images.to_pylist():
        end = begin + row["num_masks"]
        if row["error_kind"] not in kinds:
            image = tables.values_to_image(row)
            kept[image.image_id] = KeptImage(image, masks.slice(begin, end - begin).to_batches())
        begin = end
    return kept


def commit_shard(
    output: str,
    shard: int,
    *,
    masks: Sequence[Any],
    rows: Sequence[ImageRow],
    metadata: Mapping[str, str],
    retries: int,
    permit: Permit | None = None,
) -> None:
    """Write both parts of a shard; when this returns, it counts.

    Args:
        masks: record batches of the masks table, in order of image_id.
        rows: one for each image of the shard, in order of image_id.
        metadata: the run's.
        retries: how often a write that failed is tried again.
        permit: looked at again before each write, and each new try of one.

    Raises:
        StorageError: the store does not take them; LeaseLostError: it may not be asked to any more.
    """
    masks_part = tables.encode_part(masks, table="masks", metadata=metadata)
    images_part = tables.encode_part(
        [tables.images_to_batch(rows)],
        table="images",
        metadata={**metadata, tables.MASKS_SHA256: hashlib.sha256(masks_part).hexdigest()},
    )
    masks_uri, images_uri = (locate_part(output, table, shard) for table in _TABLES)

    def write(step: Callable[[], None]) -> None:
        def try_once() -> None:
            check_permit(output, permit)
            step()

        call_with_retries(try_once, retries=retries)

    try:
        write(lambda: storage.delete(images_uri))
        write(lambda: storage.write_bytes(masks_uri, masks_part))
        write(lambda: storage.write_bytes(images_uri, images_part))
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"can't write to {output}: {error}") from error


def estimate_worker_memory(output: str) -> int:
    """Bytes a worker of this run will need, guessed from its model's weights, until one has been seen at work.

    Measured on small models a worker takes half a GiB beside its weights; those are held twice while they are compiled,
    and again in f32 where they are stored in 16 bits.
    """
    files = storage.list_files(storage.join(output, "model"))
    weights_bytes = sum(file.size_bytes or 0 for file in files if file.path.endswith(".bin"))
    return _MEMORY_BESIDE_WEIGHTS_BYTES + 4 * weights_bytes


def locate_part(output: str, table: tables.TableName, number: int) -> str:
    """Where a part is, or will be."""
    return storage.join(output, tables.part_name(table, number))


def call_with_retries(call: Callable[[], T], *, retries: int) -> T:
    """The result of a storage call, tried again after a pause while the store does not answer.

    Pauses double and are drawn at random, so that a thousand workers do not come back at the same moment.

    Raises:
        StorageError: that of the last try, or of the first that no pause can mend, such as a full disk. Anything else at
            once: only the store's own troubles pass by themselves.
    """
    for attempt in range(retries):
        try:
            return call()
        except StorageError as error:
            if isinstance(error, LeaseLostError | StorageRefusedError) or getattr(error.__cause__, "errno", None) in _LASTING:
                raise
            time.sleep(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt))
    return call()
