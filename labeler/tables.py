"""The tables on disk: schemas, part names, what is committed, ``MaskSet`` <-> Arrow. The Arrow seam.

Must not know who makes or reads them: no Ray, no plan of work, no training format. A run's folder holds three tables
(``plan``, ``masks``, ``images``), each cut into parts with names known beforehand; README.md explains the columns. A run with
prompts has two more: ``prompts_plan``, what was asked, as many parts as the plan and one row group a shard, and
``prompts``, what became of it, one part a shard.
Boxes in files are ``[x, y, width, height]`` as pycocotools measures them, one pixel wider than SAM's inclusive corners.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from labeler import rle, storage
from labeler.errors import ErrorKind, OptionsError, PartDamagedError
from labeler.options import MaskOptions
from labeler.types import Float64, MaskSet

SCHEMA_VERSION = 1

TableName = Literal["plan", "masks", "images", "prompts_plan", "prompts"]

STAGES = ("read", "decode", "encode", "predict", "post")
"""What an image's time is spent in, in this order; of each the images table has a column ``seconds_``."""

_BOX = pa.list_(pa.float64(), 4)
BOX_OR_NULL = pa.list_(pa.float64())
"""Four numbers, too: before Arrow 26 no reader takes a null among lists of fixed size."""

MASKS_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("mask_id", pa.int32()),
        ("file_name", pa.string()),
        ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("bbox", _BOX),
        ("area", pa.int64()),
        ("predicted_iou", pa.float32()),
        ("stability_score", pa.float32()),
        ("point_coords", pa.list_(pa.list_(pa.float64()))),
        ("crop_box", _BOX),
    ]
)

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("uri", pa.string()),
        ("file_name", pa.string()),
        ("source_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("stored_width", pa.int32()),
        ("stored_height", pa.int32()),
        ("exif_orientation", pa.int8()),
        ("num_frames", pa.int32()),
        ("status", pa.string()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("warnings", pa.list_(pa.string())),
        ("num_masks", pa.int32()),
        *((f"seconds_{stage}", pa.float32()) for stage in STAGES),
    ]
)

PLAN_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("uri", pa.string()),
        ("file_name", pa.string()),
        ("source_id", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("shard", pa.int64()),
        ("kept", pa.string()),
    ]
)

_PROMPT_FIELDS = [
    ("prompt_id", pa.int64()),
    ("source_prompt_id", pa.string()),
    ("image", pa.string()),  # As the prompts' file names it.
    ("image_id", pa.int64()),  # Null where the run has no such image.
    ("category_id", pa.int64()),
    ("box_xyxy", BOX_OR_NULL),
    ("points_xy", pa.list_(pa.list_(pa.float64()))),
    ("point_labels", pa.list_(pa.int32())),
]

# Sorted by shard, then image_id, then prompt_id; the frame is the size of the image that the prompt was made for.
PROMPTS_PLAN_SCHEMA = pa.schema(
    [
        *_PROMPT_FIELDS,
        ("frame_width", pa.int32()),
        ("frame_height", pa.int32()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("shard", pa.int64()),
    ]
)

# Box and points in the frame of the masks where the status is ok, as they were given where it is error.
PROMPTS_SCHEMA = pa.schema(
    [
        *_PROMPT_FIELDS,
        ("status", pa.string()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("mask_id", pa.int32()),  # With image_id the row of the masks table; null where the status is error.
    ]
)

SCHEMAS: Mapping[TableName, pa.Schema] = {
    "plan": PLAN_SCHEMA,
    "masks": MASKS_SCHEMA,
    "images": IMAGES_SCHEMA,
    "prompts_plan": PROMPTS_PLAN_SCHEMA,
    "prompts": PROMPTS_SCHEMA,
}

_PROMPT_COLUMNS = (pa.field("prompt_id", pa.int64()), pa.field("category_id", pa.int64()))
"""What the masks table has more in a run with prompts."""


def make_schema(table: TableName, *, kept: Sequence[str] = (), prompted: bool = False) -> pa.Schema:
    """The columns of a table; the images table also has those that were kept of a list, as texts, and the masks table of
    a run with prompts those that say who asked.
    """
    more = [pa.field(name, pa.string()) for name in dict.fromkeys(kept)] if table == "images" else []
    more += _PROMPT_COLUMNS if table == "masks" and prompted else []
    return pa.schema([*SCHEMAS[table], *more])


# Columns whose values repeat. A dictionary for the counts, all different, would only cost time and space.
_DICTIONARY_COLUMNS: Mapping[TableName, list[str]] = {
    "plan": [],
    "masks": ["file_name"],
    "images": ["status", "error_kind"],
    "prompts_plan": ["image", "error_kind"],
    "prompts": ["image", "status", "error_kind"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """One row of the images table: what became of one image. Sizes and seconds are None where it was not got so far.

    ``kept`` are the columns of a list that were carried along: more columns of the table, all of them texts.
    """

    image_id: int
    uri: str
    file_name: str
    source_id: str | None = None
    size_bytes: int | None = None
    etag: str | None = None
    width: int | None = None
    height: int | None = None
    stored_width: int | None = None
    stored_height: int | None = None
    exif_orientation: int | None = None
    num_frames: int | None = None
    status: Literal["ok", "error"] = "ok"
    error_kind: ErrorKind | None = None
    error_message: str | None = None
    warnings: tuple[str, ...] = ()
    num_masks: int = 0
    seconds_read: float | None = None
    seconds_decode: float | None = None
    seconds_encode: float | None = None
    seconds_predict: float | None = None
    seconds_post: float | None = None
    kept: Mapping[str, str | None] = field(default_factory=dict)


def check_schema_version(version: int, *, uri: str) -> None:
    """Raises OptionsError where a record of a run is of another version than this program's."""
    if version != SCHEMA_VERSION:
        raise OptionsError(f"{uri} has schema version {version}; this version reads {SCHEMA_VERSION}")


def part_name(table: TableName, number: int) -> str:
    """The name of a part, relative to the run's folder: ``masks/part-0000012.parquet``."""
    return f"{table}/part-{number:07d}.parquet"


def locate_part(output: str, table: TableName, number: int) -> str:
    """Where a part of a run is, or will be."""
    return storage.join(output, part_name(table, number))


def parse_part_name(name: str) -> int | None:
    """The number in a part's file name (without folder), or None where ``part_name`` never wrote such a name."""
    match = re.fullmatch(r"part-(\d{7,})\.parquet", name)
    return int(match[1]) if match and name == part_name("plan", int(match[1])).removeprefix("plan/") else None


def list_parts(output: str, *, table: TableName) -> set[int]:
    """The numbers of the parts that stand. Foreign files are not parts and not counted here."""
    try:
        numbers = [parse_part_name(name) for name in storage.list_names(storage.join(output, table))]
    except FileNotFoundError:
        return set()
    return {number for number in numbers if number is not None}


def list_committed_shards(output: str) -> set[int]:
    """The shards that are done: their images part stands, which is written after their masks part.

    Trusts the order of writing and reads no part; ``jobs verify`` hashes them.
    """
    return list_parts(output, table="images") & list_parts(output, table="masks")


def make_metadata(options: MaskOptions, *, model_sha256: str, prompts: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What every part of a run says about how it was made. No clock, host or worker: parts must be equal bytes."""
    metadata = {
        "labeler.schema_version": str(SCHEMA_VERSION),
        "labeler.options": json.dumps(options.model_dump(mode="json"), sort_keys=True, separators=(",", ":")),
        "labeler.model_sha256": model_sha256,
    }
    if prompts is not None:
        metadata["labeler.prompts"] = json.dumps(prompts, sort_keys=True, separators=(",", ":"))
    return metadata


MASKS_SHA256 = "labeler.masks_sha256"
"""Metadata key of an images part: the sha256 (hex) of the bytes of the masks part it belongs to."""

PROMPTS_SHA256 = "labeler.prompts_part_sha256"
"""The same of its prompts part, in a run with prompts."""


def masks_to_batch(masks: MaskSet, *, image_id: int, file_name: str) -> pa.RecordBatch:
    """The rows of one image in the masks table. Empty masks are left out; ``mask_id`` counts what remains."""
    masks = masks.take(masks.areas > 0)
    n = len(masks)
    counts = [rle.runs_to_counts(masks.runs(i), image_hw=masks.image_hw) for i in range(n)]
    size = pa.array([list(masks.image_hw)] * n, pa.list_(pa.int32()))
    crops = masks.crop_boxes_xyxy.astype(np.float64)
    crops_xywh = np.concatenate([crops[:, :2], crops[:, 2:] - crops[:, :2]], axis=1)
    columns = {
        "image_id": pa.array(np.full(n, image_id, np.int64)),
        "mask_id": pa.array(np.arange(n, dtype=np.int32)),
        "file_name": pa.array([file_name] * n, pa.string()),
        "segmentation": pa.StructArray.from_arrays(
            [size, pa.array(counts, pa.string())], fields=list(MASKS_SCHEMA.field("segmentation").type)
        ),
        "bbox": _boxes_to_array(rle.measure_boxes_xywh(counts, image_hw=masks.image_hw)),
        "area": pa.array(rle.measure_areas(counts, image_hw=masks.image_hw)),
        "predicted_iou": pa.array(masks.predicted_iou),
        "stability_score": pa.array(masks.stability_score),
        "point_coords": pa.array(
            [[] if np.isnan(point[0]) else [point] for point in masks.points_xy.tolist()], pa.list_(pa.list_(pa.float64()))
        ),
        "crop_box": _boxes_to_array(crops_xywh),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=MASKS_SCHEMA)


def images_to_batch(rows: Sequence[ImageRow]) -> pa.RecordBatch:
    """Rows of the images table as Arrow columns; those that were kept come last, null in the rows that lack them."""
    values = [{**asdict(row), **row.kept} for row in rows]
    return pa.RecordBatch.from_pylist(values, schema=make_schema("images", kept=[name for row in rows for name in row.kept]))


def values_to_image(values: Mapping[str, Any]) -> ImageRow:
    """A row of the images table as a dictionary, back as it was: the inverse of ``images_to_batch``."""
    known = {name: values[name] for name in IMAGES_SCHEMA.names}
    kept = {name: value for name, value in values.items() if name not in known}
    return ImageRow(**{**known, "warnings": tuple(known["warnings"] or ())}, kept=kept)


def encode_part(
    batches: Iterable[pa.RecordBatch], *, table: TableName, metadata: Mapping[str, str], schema: pa.Schema | None = None
) -> bytes:
    """The bytes of a Parquet file, zstd. The same rows and metadata give the same bytes (with one version of Arrow).

    ``schema`` are the columns where there may be no batch that tells: those of ``make_schema``.
    """
    batches = list(batches)
    schema = schema or (batches[0].schema if batches else SCHEMAS[table])  # There may be columns more than the usual.
    if [*schema][: len(SCHEMAS[table])] != [*SCHEMAS[table]]:
        raise ValueError(f"these are no rows of the table {table}: {schema}")
    schema = schema.with_metadata(dict(metadata))
    rows = pa.Table.from_batches(batches, schema=schema.remove_metadata()).combine_chunks()
    rows = rows.replace_schema_metadata(schema.metadata)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=_DICTIONARY_COLUMNS[table]) as writer:
        if rows.num_rows:  # A row group of no rows is one that Hugging Face's datasets refuses.
            writer.write_table(rows)
    return bytes(sink.getvalue())


def decode_part(data: bytes, *, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows and metadata (``table.schema.metadata``) of a part's bytes.

    Raises:
        PartDamagedError: these bytes are no whole Parquet file; says ``name``.
    """
    chosen = None if columns is None else list(columns)
    try:
        # Parts are small, and a worker's CPUs are for the model: no threads.
        table = pq.read_table(pa.BufferReader(data), columns=chosen, use_threads=False, pre_buffer=False)
        table.validate(full=True)  # Also that texts are UTF-8: else the first to_pylist() would find out.
        read_metadata(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartDamagedError(f"{name} is damaged: {str(error).splitlines()[0]}") from error
    return table


def read_part(output: str, *, table: TableName, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One part of a run. Raises StorageError where it can't be read, PartDamagedError where it is damaged, and
    FileNotFoundError where it is not.
    """
    uri = locate_part(output, table, number)
    return decode_part(storage.read_bytes(uri), name=uri, columns=columns)


def has_columns(table: pa.Table, schema: pa.Schema) -> bool:
    """Whether a part has these columns; also one of when boxes that may be null were lists of fixed size."""
    before = [field.with_type(_BOX) if field.type == BOX_OR_NULL else field for field in schema]
    return any(table.schema.equals(expected) for expected in (schema, pa.schema(before)))


def read_metadata(table: pa.Table) -> dict[str, str]:
    """The ``labeler.`` entries of a part's metadata, as text."""
    metadata: Mapping[bytes, Any] = table.schema.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"labeler.")}


def _boxes_to_array(boxes: Float64) -> pa.Array:
    """(N, 4) -> N fixed lists of 4 doubles."""
    return pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1)), type=_BOX)
