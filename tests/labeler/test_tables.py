"""The tables as other programs read them."""

import hashlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_masks import table_to_masks
from pycocotools import mask as coco_mask

from labeler import rle, tables
from labeler.errors import PartDamagedError, StorageError
from labeler.options import MaskOptions
from labeler.reviews import REVIEW_SCHEMA
from labeler.types import MaskSet, join_runs


def make_masks(*, seed: int = 0, count: int = 4) -> tuple[MaskSet, list[np.ndarray]]:
    """Some random masks, and their pixels. The second is empty."""
    rng = np.random.default_rng(seed)
    pixels = [rng.random((7, 9)) < 0.4 for _ in range(count)]
    if count > 1:
        pixels[1][:] = False
    lengths, offsets = join_runs([rle.mask_to_runs(mask) for mask in pixels])
    boxes = []
    for mask in pixels:
        y, x = np.nonzero(mask)
        boxes.append((x.min(), y.min(), x.max(), y.max()) if len(x) else (0, 0, 0, 0))
    masks = MaskSet(
        image_hw=(7, 9),
        run_lengths=lengths,
        run_offsets=offsets,
        boxes_xyxy=np.array(boxes, np.int64).reshape(-1, 4),
        areas=np.array([mask.sum() for mask in pixels], np.int64),
        predicted_iou=rng.random(count).astype(np.float32),
        stability_score=rng.random(count).astype(np.float32),
        points_xy=rng.random((count, 2)) * 7,
        crop_boxes_xyxy=np.tile(np.array([0, 1, 9, 7], np.int64), (count, 1)),
    )
    return masks, pixels


def encode(masks: MaskSet) -> bytes:
    batch = tables.masks_to_batch(masks, image_id=3, file_name="é.jpg")
    return tables.encode_part([batch], table="masks", metadata=tables.make_metadata(MaskOptions(), model_sha256="00"))


def test_columns_and_types_are_the_contract() -> None:
    """Written out, because people's queries depend on each of them."""
    assert [f"{field.name}: {field.type}" for field in tables.MASKS_SCHEMA] == [
        "image_id: int64",
        "mask_id: int32",
        "file_name: string",
        "segmentation: struct<size: list<item: int32>, counts: string>",
        "bbox: fixed_size_list<item: double>[4]",
        "area: int64",
        "predicted_iou: float",
        "stability_score: float",
        "point_coords: list<item: list<item: double>>",
        "crop_box: fixed_size_list<item: double>[4]",
    ]
    assert " ".join(f"{field.name}:{field.type}" for field in tables.IMAGES_SCHEMA) == (
        "image_id:int64 uri:string file_name:string source_id:string size_bytes:int64 etag:string width:int32 height:int32 "
        "stored_width:int32 stored_height:int32 exif_orientation:int8 num_frames:int32 status:string error_kind:string "
        "error_message:string warnings:list<item: string> num_masks:int32 seconds_read:float seconds_decode:float "
        "seconds_encode:float seconds_predict:float seconds_post:float"
    )
    assert " ".join(f"{field.name}:{field.type}" for field in tables.PLAN_SCHEMA) == (
        "image_id:int64 uri:string file_name:string source_id:string offset:int64 length:int64 size_bytes:int64 etag:string "
        "shard:int64 kept:string"
    )


def test_parts_of_before_boxes_could_be_null_still_count() -> None:
    """Their boxes are lists of fixed size, and a run of them is whole."""
    before = pa.schema(
        [field.with_type(pa.list_(pa.float64(), 4)) if field.name == "box_xyxy" else field for field in tables.PROMPTS_SCHEMA]
    )
    for schema in (before, tables.PROMPTS_SCHEMA):
        assert tables.has_columns(schema.empty_table(), tables.PROMPTS_SCHEMA)
    assert not tables.has_columns(before.remove(0).empty_table(), tables.PROMPTS_SCHEMA)
    assert not tables.has_columns(tables.MASKS_SCHEMA.empty_table(), tables.PROMPTS_SCHEMA)


@pytest.mark.parametrize("schema", [tables.PROMPTS_SCHEMA, tables.PROMPTS_PLAN_SCHEMA, REVIEW_SCHEMA])
def test_what_may_be_null_is_no_list_of_fixed_size(schema: pa.Schema) -> None:
    """Arrow before 26 can't read a null among them, and most who read these files have such a one."""
    assert not [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]


def test_pandas_and_pycocotools_read_the_masks(tmp_path: Path) -> None:
    """Each row's segmentation goes into pycocotools unchanged; box and area are what it finds; empty masks are not there."""
    masks, pixels = make_masks()
    (tmp_path / "part-0000000.parquet").write_bytes(encode(masks))
    frame = pd.read_parquet(tmp_path)
    filled = [mask for mask in pixels if mask.any()]
    assert frame["mask_id"].tolist() == list(range(len(filled)))
    assert set(frame["image_id"]) == {3}
    assert set(frame["file_name"]) == {"é.jpg"}
    for row, mask in zip(frame.itertuples(), filled, strict=True):
        segmentation = {"size": list(row.segmentation["size"]), "counts": row.segmentation["counts"]}
        np.testing.assert_array_equal(coco_mask.decode(segmentation), mask)
        np.testing.assert_array_equal(row.bbox, coco_mask.toBbox(segmentation))
        assert row.area == coco_mask.area(segmentation) == mask.sum()
        assert row.crop_box.tolist() == [0, 1, 9, 6]


def test_masks_come_back_as_they_were() -> None:
    """Arrow and Parquet there and back, column by column."""
    masks, _ = make_masks()
    back = table_to_masks(tables.decode_part(encode(masks), name="part"), image_hw=(7, 9))
    expected = masks.take(masks.areas > 0)
    for name in MaskSet.__slots__:
        np.testing.assert_array_equal(getattr(back, name), getattr(expected, name))


def test_no_masks_is_a_part_of_no_rows() -> None:
    """Of one image without masks, and of no image at all: the columns are there."""
    empty = encode(MaskSet.empty((7, 9)))
    for data in (empty, tables.encode_part([], table="masks", metadata={})):
        table = tables.decode_part(data, name="part")
        assert table.num_rows == 0
        assert pq.ParquetFile(BytesIO(data)).num_row_groups == 0  # Hugging Face's datasets refuses one of no rows.
        assert table.schema.equals(tables.MASKS_SCHEMA)
    assert len(table_to_masks(tables.decode_part(empty, name="part"), image_hw=(7, 9))) == 0


def test_equal_rows_are_equal_bytes() -> None:
    """Whatever batches they came in, for a retry must not change a file."""
    masks, _ = make_masks()
    batch = tables.masks_to_batch(masks, image_id=1, file_name="a.jpg")
    whole = tables.encode_part([batch], table="masks", metadata={"labeler.x": "1"})
    pieces = [batch.slice(start, 1) for start in range(batch.num_rows)]
    again = tables.encode_part(pieces, table="masks", metadata={"labeler.x": "1"})
    assert hashlib.sha256(whole).hexdigest() == hashlib.sha256(again).hexdigest()


def test_parts_say_how_they_were_made() -> None:
    """Schema version, options and model in the file's metadata, and zstd inside."""
    data = encode(make_masks()[0])
    metadata = tables.read_metadata(tables.decode_part(data, name="part"))
    assert metadata.keys() == {"labeler.schema_version", "labeler.options", "labeler.model_sha256"}
    assert MaskOptions.model_validate_json(metadata["labeler.options"]) == MaskOptions()
    import pyarrow as pa

    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}


def test_a_damaged_part_is_said_to_be() -> None:
    """Cut short, empty, no Parquet at all, or with a text or metadata that is none."""
    data = encode(make_masks()[0])
    for damaged in (data[:-10], data[: len(data) // 2], b"", b"no parquet"):
        with pytest.raises(StorageError, match="masks/part-0000007"):
            tables.decode_part(damaged, name="masks/part-0000007.parquet")
    latin = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 4], np.int32)), pa.py_buffer(b"caf\xe9"))
    for table in (pa.table({"file_name": latin}), pa.table({"x": [1]}).replace_schema_metadata({b"labeler.x": b"\xe9"})):
        pq.write_table(table, sink := pa.BufferOutputStream())
        with pytest.raises(PartDamagedError, match="masks/part-0000007"):
            tables.decode_part(sink.getvalue().to_pybytes(), name="masks/part-0000007.parquet")


def test_image_rows_come_back(tmp_path: Path) -> None:
    """What is not known is null, not 0; so is a column that was kept of another row."""
    rows = [
        tables.ImageRow(image_id=1, uri="file:///a", file_name="a", width=4, height=3, warnings=("odd",), num_masks=2),
        tables.ImageRow(image_id=2, uri="file:///b", file_name="b", status="error", error_kind="corrupt", error_message="m"),
    ]
    assert tables.images_to_batch([*rows, replace(rows[0], kept={"x": "1"})])["x"].to_pylist() == [None, None, "1"]
    data = tables.encode_part([tables.images_to_batch(rows)], table="images", metadata={})
    first, second = tables.decode_part(data, name="part").to_pylist()
    assert (first["width"], first["warnings"], first["error_kind"]) == (4, ["odd"], None)
    assert (second["width"], second["error_kind"], second["num_masks"], second["seconds_read"]) == (None, "corrupt", 0, None)


def test_only_names_that_are_parts_count(tmp_path: Path) -> None:
    """A shard is committed when both its parts stand; foreign files, copies and temporary files are none."""
    for name in ("masks/part-0000000", "masks/part-0000001", "images/part-0000001", "images/part-0000002"):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    for name in ("images/part-0.parquet", "images/part-0000000.parquet.tmp", "images/copy of part-0000000.parquet"):
        (tmp_path / name).write_bytes(b"")
    assert tables.list_parts(str(tmp_path), table="images") == {1, 2}
    assert tables.list_committed_shards(str(tmp_path)) == {1}
    assert tables.list_committed_shards(str(tmp_path / "none")) == set()
    assert tables.parse_part_name("part-12345678.parquet") == 12345678
