"""Write a shard and commit it, read and count what is committed. Must not know who labels or when.

A shard is two files with names known beforehand, three in a run with prompts. The masks part is written first, then that of
the prompts, then the images part, which holds the others' sha256: when it stands, the shard is committed. Making a shard
again takes the images part away first.
"""

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from jobs.lease import Permit, check_permit
from labeler import storage, tables
from labeler.errors import PartDamagedError, StorageError
from labeler.prompt_rows import PromptRow, prompts_to_batch, values_to_row
from labeler.retries import call_with_retries
from labeler.tables import STAGES, ImageRow


@dataclass(frozen=True, slots=True)
class Tally:
    """What some images amount to. Tallies of different images add up.

    Attributes:
        errors: how many failed, by ``error_kind``.
        prompts: in a run with prompts, how many have their mask (``ok``) or else which ``error_kind``.
        stage_seconds: seconds spent in each of ``STAGES``, summed over images.
    """

    num_images: int = 0
    num_masks: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)
    stage_seconds: tuple[float, ...] = (0.0,) * len(STAGES)

    @property
    def num_failed(self) -> int:
        """Images without masks for a reason."""
        return sum(self.errors.values())

    def count_errors(self, kinds: Collection[str]) -> int:
        """How many failed with an error of one of these kinds."""
        return sum(self.errors.get(kind, 0) for kind in kinds)

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(
            num_images=self.num_images - other.num_images,
            num_masks=self.num_masks - other.num_masks,
            errors=dict(Counter(self.errors) - Counter(other.errors)),
            prompts=dict(Counter(self.prompts) - Counter(other.prompts)),
            stage_seconds=tuple(a - b for a, b in zip(self.stage_seconds, other.stage_seconds, strict=True)),
        )

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            num_images=self.num_images + other.num_images,
            num_masks=self.num_masks + other.num_masks,
            errors=dict(Counter(self.errors) + Counter(other.errors)),
            prompts=dict(Counter(self.prompts) + Counter(other.prompts)),
            stage_seconds=tuple(a + b for a, b in zip(self.stage_seconds, other.stage_seconds, strict=True)),
        )


def tally_rows(rows: Sequence[ImageRow], prompts: Sequence[PromptRow] = ()) -> Tally:
    """The tally of some rows of the images table, and of the prompts table."""
    return _tally([asdict(row) for row in rows], [row.error_kind for row in prompts])


def tally_shard(output: str, shard: int) -> Tally:
    """The tally of a committed shard, read from its images part and, where it has one, its prompts part."""
    columns = ["num_masks", "error_kind", *(f"seconds_{stage}" for stage in STAGES)]
    images, prompt_kinds = tables.read_part(output, table="images", number=shard, columns=columns), []
    if tables.PROMPTS_SHA256 in tables.read_metadata(images):
        prompts = tables.read_part(output, table="prompts", number=shard, columns=["error_kind"])
        prompt_kinds = prompts["error_kind"].to_pylist()
    return _tally(images.to_pylist(), prompt_kinds)


def _tally(rows: Sequence[Mapping[str, Any]], prompt_kinds: Sequence[str | None]) -> Tally:
    return Tally(
        num_images=len(rows),
        num_masks=sum(row["num_masks"] for row in rows),
        errors=dict(Counter(row["error_kind"] for row in rows if row["error_kind"] is not None)),
        prompts=dict(Counter(kind or "ok" for kind in prompt_kinds)),
        stage_seconds=tuple(sum(row[f"seconds_{stage}"] or 0.0 for row in rows) for stage in STAGES),
    )


class LabeledImage(NamedTuple):
    """One image's row, its masks as record batches and its prompts' rows (none where it failed), and a traceback where the
    fault is ours.
    """

    row: ImageRow
    batches: Sequence[Any] = ()
    prompts: Sequence[PromptRow] = ()
    log: str | None = None


class ShardParts(NamedTuple):
    """The parts of a committed shard as tables; of prompts there is one in a run that has them."""

    masks: Any
    images: Any
    prompts: Any | None = None


def read_parts(output: str, shard: int) -> ShardParts | None:
    """The parts of a committed shard; None where one is missing, damaged or not the others'.

    Raises:
        StorageError: they can't be read, which says nothing about them.
    """
    try:
        images, _ = _read_part(output, "images", shard)
        known = tables.read_metadata(images)
        masks, sha256 = _read_part(output, "masks", shard)
        is_whole, prompts = sha256 == known.get(tables.MASKS_SHA256), None
        if tables.PROMPTS_SHA256 in known:
            prompts, sha256 = _read_part(output, "prompts", shard)
            is_whole = is_whole and sha256 == known[tables.PROMPTS_SHA256]
    except (FileNotFoundError, PartDamagedError):
        return None
    except PermissionError as error:
        raise StorageError(f"a part of shard {shard} of {output} may not be read: {error}") from error
    return ShardParts(masks, images, prompts) if is_whole else None


def _read_part(output: str, table: tables.TableName, shard: int) -> tuple[Any, str]:
    """A part as a table, and the sha256 of its bytes."""
    data = storage.read_bytes(tables.locate_part(output, table, shard))
    return tables.decode_part(data, name=tables.part_name(table, shard)), hashlib.sha256(data).hexdigest()


def read_kept(output: str, shard: int, *, kinds: Collection[str]) -> dict[int, LabeledImage]:
    """What stays of a shard, by image_id, when its errors of these kinds are labeled again.

    Nothing where the shard's parts do not fit each other: all of it has to be made again.
    """
    parts = read_parts(output, shard)
    if parts is None:
        return {}
    # Parquet names what is in a list otherwise than Arrow does; the bytes of a part must not tell that it was read.
    masks = parts.masks.cast(tables.make_schema("masks", prompted=parts.prompts is not None))
    prompts: dict[int | None, list[PromptRow]] = defaultdict(list)
    for values in parts.prompts.to_pylist() if parts.prompts is not None else ():
        prompts[values["image_id"]].append(values_to_row(values))
    kept, begin = {}, 0
    for row in parts.images.to_pylist():
        end = begin + row["num_masks"]
        if row["error_kind"] not in kinds:
            image = tables.values_to_image(row)
            batches = masks.slice(begin, end - begin).to_batches()
            kept[image.image_id] = LabeledImage(image, batches, prompts[image.image_id])
        begin = end
    return kept


def commit_shard(
    output: str,
    shard: int,
    *,
    masks: Sequence[Any],
    rows: Sequence[ImageRow],
    prompts: Sequence[PromptRow] | None = None,
    metadata: Mapping[str, str],
    permit: Permit | None = None,
) -> None:
    """Write the parts of a shard; when this returns, it counts.

    Args:
        masks: record batches of the masks table, in order of image_id.
        rows: one for each image of the shard, in order of image_id.
        prompts: in a run that has them, one for each prompt of the shard, in the order of their plan.
        metadata: the run's.
        permit: looked at again before each write, and each new try of one.

    Raises:
        StorageError: the store does not take them; LeaseLostError: it may not be asked to any more.
    """
    schema = tables.make_schema("masks", prompted=prompts is not None)
    parts: dict[tables.TableName, bytes] = {}
    parts["masks"] = tables.encode_part(masks, table="masks", metadata=metadata, schema=schema)
    hashes = {tables.MASKS_SHA256: hashlib.sha256(parts["masks"]).hexdigest()}
    if prompts is not None:
        parts["prompts"] = tables.encode_part([prompts_to_batch(prompts)], table="prompts", metadata=metadata)
        hashes[tables.PROMPTS_SHA256] = hashlib.sha256(parts["prompts"]).hexdigest()
    parts["images"] = tables.encode_part([tables.images_to_batch(rows)], table="images", metadata={**metadata, **hashes})

    def write(step: Callable[[], None]) -> None:
        def try_once() -> None:
            check_permit(output, permit)
            step()

        call_with_retries(try_once)

    write(functools.partial(storage.delete, tables.locate_part(output, "images", shard)))
    for table, data in parts.items():  # In this order: the images part is the commit mark.
        write(functools.partial(storage.write_bytes, tables.locate_part(output, table, shard), data))
