"""A run's folder, read shard by shard: what was frozen, which shards are committed, the rows of a table, the photos.

Must not know any format: rows leave as plain dictionaries. Holds few parts in memory: those that are read ahead. What people
decided about the masks (``labeler.reviews``) is applied here, where images meet their masks, for all who read a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from labeler import storage, tables
from labeler.ahead import READS_AT_ONCE, map_ahead
from labeler.errors import ImageError, OptionsError, StorageError
from labeler.images import decode_image
from labeler.options import MaskOptions
from labeler.pictures import read_picture
from labeler.reviews import PROMPTED, Reviews, read_reviews
from labeler.types import Image

Row = dict[str, Any]
"""One row of a table, by column."""

_ROWS_AT_A_TIME = 1024
"""Rows that are Python objects at once; a part's others stay Arrow's columns, ten times smaller."""

_MASKS_PARTS_AHEAD = 2
"""A part of masks takes some ten megabytes, those of other tables a tenth."""


class _ModelRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str
    sha256: str


class _SelectionRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    image_column: str | None = None


class PromptsRecord(BaseModel):
    """What a run with prompts was given: its categories, and whether images have the ids of the prompts' COCO file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    categories: tuple[dict[str, Any], ...]
    num_without_category: int
    has_image_ids: bool


class _RunRecord(BaseModel):
    """What an export needs of ``run.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int
    input: str = ""
    selection: _SelectionRecord = _SelectionRecord()
    num_images: int
    num_shards: int
    options: MaskOptions
    model: _ModelRecord
    plan_sha256: str = ""
    fingerprint: str = ""
    prompts_plan: PromptsRecord | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it stands now.

    Attributes:
        output: the run's folder.
        input: where its images were listed.
        image_column: the column of Parquet files that holds the images, where it was said.
        options: the mask options it was frozen with.
        model_type, model_sha256: the model it was frozen with.
        plan_sha256: the hash of the images that were planned.
        fingerprint: the hash of all that decides masks but the images: model, options, prompts.
        num_images, num_shards: what was planned.
        shards: the committed shards, in order; only these count.
        prompts: what it was given, where its masks are those of prompts.
        about: which masks these are, as decisions about them say: the same images, and all of this, have equal mask_ids.
        reviews: what people decided about its masks since.
    """

    output: str
    input: str
    image_column: str | None
    options: MaskOptions
    model_type: str
    model_sha256: str
    plan_sha256: str
    fingerprint: str
    num_images: int
    num_shards: int
    shards: tuple[int, ...]
    prompts: PromptsRecord | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    reviews: Reviews = field(default_factory=Reviews)

    @property
    def num_missing_shards(self) -> int:
        """Shards that are planned, but not committed yet. 0: the run is finished."""
        return self.num_shards - len(self.shards)


def read_run(output: str, *, ignore_review: bool = False) -> Run:
    """What stands in a run's folder, with its review unless that is to be ignored.

    Raises:
        OptionsError: no run was frozen there, or another version of this program wrote it; the review is another run's.
        StorageError: it can't be read.
    """
    uri = storage.join(output, "run.json")
    try:
        record = _RunRecord.model_validate_json(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise OptionsError(f"{output} is not the output of a run: it has no run.json") from error
    except PermissionError as error:
        raise StorageError(f"{uri} may not be read: permission denied") from error
    except ValidationError as error:
        raise OptionsError(f"{uri} is not a run this version can read: {str(error).splitlines()[0]}") from error
    tables.check_schema_version(record.schema_version, uri=uri)
    about = tables.make_metadata(record.options, model_sha256=record.model.sha256)
    if record.prompts_plan is not None:
        about[PROMPTED] = record.fingerprint  # It hangs on the prompts, too.
    reviews = Reviews() if ignore_review else read_reviews(output, about=about)
    return Run(
        output=output,
        input=record.input,
        image_column=record.selection.image_column,
        options=record.options,
        model_type=record.model.model_type,
        model_sha256=record.model.sha256,
        plan_sha256=record.plan_sha256,
        fingerprint=record.fingerprint,
        num_images=record.num_images,
        num_shards=record.num_shards,
        shards=tuple(sorted(tables.list_committed_shards(output))),
        prompts=record.prompts_plan,
        about=about,
        reviews=reviews,
    )


def describe_missing(run: Run) -> str:
    """One sentence on how much of an unfinished run is there."""
    return f"{run.output} is not finished: {run.num_missing_shards} of its {run.num_shards} shards are missing"


def iterate_rows(
    run: Run, *, table: tables.TableName, columns: Sequence[str], shards: Sequence[int] | None = None
) -> Iterator[Row]:
    """The rows of a table, in order of image_id (then mask_id), of all committed shards or of these.

    Raises:
        StorageError: a part can't be read, is damaged or vanished while it was to be read.
    """
    for _, rows in iterate_parts(run, table=table, columns=columns, shards=shards):
        yield from rows


def iterate_parts(
    run: Run, *, table: tables.TableName, columns: Sequence[str], shards: Sequence[int] | None = None
) -> Iterator[tuple[int, Iterator[Row]]]:
    """The committed shards or these, in order, each with the rows of its part. Meanwhile the next parts are read.

    Raises:
        StorageError: as ``iterate_rows``.
    """
    shards = run.shards if shards is None else shards

    def read(shard: int) -> Any:
        try:
            return tables.read_part(run.output, table=table, number=shard, columns=columns)
        except (FileNotFoundError, PermissionError) as error:
            raise StorageError(f"{run.output}/{tables.part_name(table, shard)} can't be read: {error}") from error

    num_ahead = _MASKS_PARTS_AHEAD if table == "masks" else READS_AT_ONCE
    with ThreadPoolExecutor(num_ahead) as pool:
        for shard, part in zip(shards, map_ahead(pool, read, shards, num_ahead=num_ahead), strict=True):
            yield shard, (row for batch in part.to_batches(max_chunksize=_ROWS_AT_A_TIME) for row in batch.to_pylist())


def iterate_images(
    run: Run, *, columns: Sequence[str], mask_columns: Sequence[str], shards: Sequence[int] | None = None
) -> Iterator[tuple[Row, list[Row]]]:
    """Every image with its masks as they stand after the review, in order of image_id, of all committed shards or of these.

    Both lists of columns hold ``image_id``. One image's masks are rows at a time.

    Raises:
        OptionsError: the review is about other images.
        StorageError: as ``iterate_rows``; also two parts contradict each other.
    """
    read = list(dict.fromkeys([*mask_columns, "mask_id"]))
    columns = list(dict.fromkeys([*columns, "file_name"]))
    images_parts = iterate_parts(run, table="images", columns=columns, shards=shards)
    masks_parts = iterate_parts(run, table="masks", columns=read, shards=shards)
    for (shard, images), (_, masks_of_all) in zip(images_parts, masks_parts, strict=True):
        masks = groupby(masks_of_all, lambda row: row["image_id"])
        image_id, group = next(masks, (None, iter(())))
        for row in images:
            rows: list[Row] = []
            if row["image_id"] == image_id:
                rows = list(group)
                image_id, group = next(masks, (None, iter(())))
            run.reviews.check_image(row["image_id"], file_name=row["file_name"])
            yield row, run.reviews.apply(rows, image_id=row["image_id"])
        if image_id is not None:
            part = tables.part_name("masks", shard)
            raise StorageError(f"{run.output}/{part} has masks of image {image_id}, which its images part does not")


def read_photo(row: Row, run: Run) -> Image:
    """The photo of a row of the images table (uri, width, height), decoded as it was labeled.

    Raises:
        ImageError: it is not there any more, or not what it was.
    """
    try:
        data = read_picture(row["uri"], image_column=run.image_column)
    except FileNotFoundError as error:
        raise ImageError("missing", "it is not there any more") from error
    except PermissionError as error:
        raise ImageError("forbidden", "permission denied") from error
    image = decode_image(data, exif=run.options.exif, max_pixels=run.options.max_pixels)
    if image.hw != (row["height"], row["width"]):
        raise ImageError("changed", "its size is not what it was when it was labeled")
    return image
