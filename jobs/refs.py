"""Where one image is: the row of a listing, and of the plan it becomes. Must not know how images are found or labeled."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

REFS_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("file_name", pa.string()),
        ("source_id", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("kept", pa.string()),
    ]
)
"""The fields of ``ImageRef`` as columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where the bytes of one image are, and how they looked when they were listed.

    Attributes:
        uri: opens again, percent-encoded; a tar's member is ``tar://member::archive``, a row ``part.parquet#row=N``.
        file_name: the name people see: for a folder the path relative to it; what is not UTF-8, and ``%``, encoded.
        source_id: the image's id in a list or COCO input.
        offset, length: the bytes inside the archive that ``uri`` names; for a Parquet row ``offset`` is its number.
        size_bytes, etag: as listed (the etag of what holds the image); one that differs when it is read is ``changed``.
        kept: the columns of a list that go into the images table, as a JSON object of texts and nulls.
    """

    uri: str
    file_name: str
    source_id: str | None = None
    offset: int | None = None
    length: int | None = None
    size_bytes: int | None = None
    etag: str | None = None
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What an input holds.

    Attributes:
        num_images: how many were chosen.
        skipped: how many files were left aside, by kind: ``dotfile``, an extension, or ``no extension``.
        num_not_selected: images that the selection left out.
        source: the chosen images as record batches of ``REFS_SCHEMA``, in byte order of their file names; iterable again.
    """

    num_images: int
    skipped: Mapping[str, int]
    num_not_selected: int
    source: Iterable[pa.RecordBatch]

    def read_refs(self) -> Iterator[ImageRef]:
        """The chosen images, one after the other."""
        for batch in self.source:
            yield from batch_to_refs(batch)


def batch_to_refs(batch: pa.RecordBatch) -> list[ImageRef]:
    """Rows that hold the columns of ``REFS_SCHEMA``, as refs."""
    columns = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in REFS_SCHEMA.names]
    return [ImageRef(**dict(zip(REFS_SCHEMA.names, row, strict=True))) for row in zip(*columns, strict=True)]
