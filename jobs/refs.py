"""Where one image is: the row of a listing, and of the plan it becomes. Must not know how images are found or labeled."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from labeler import storage
from labeler.storage import FileInfo
from labeler.tables import PLAN_SCHEMA

REFS_SCHEMA = pa.schema([field for field in PLAN_SCHEMA if field.name not in ("image_id", "shard")])
"""The fields of ``ImageRef`` as columns: the plan's, without what the plan itself gives."""


_LENGTH_OF_HOLDERS = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where the bytes of one image are, and how they looked when they were listed.

    Attributes:
        uri: opens again, percent-encoded; a tar's member is ``tar://member::archive``, a row ``part.parquet#row=N``.
        file_name: the name people see: for a folder the path relative to it; what is not UTF-8, and ``%``, encoded.
        source_id: the image's id in a list or COCO input.
        offset, length: the bytes inside the archive that ``uri`` names; for a Parquet row ``offset`` is its number; see
            also ``is_holder``.
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

    @property
    def is_holder(self) -> bool:
        """Whether this is no image, but an archive or Parquet file that could not be read from ``offset`` on."""
        return self.length == _LENGTH_OF_HOLDERS


def holder_to_ref(file: FileInfo, *, damaged_at: int) -> ImageRef:
    """The row for an archive or Parquet file, of which nothing could be read from this byte, or row, on."""
    name = storage.encode_name(file.path)
    return ImageRef(uri=file.uri, file_name=name, offset=damaged_at, length=_LENGTH_OF_HOLDERS, etag=file.etag)


@dataclass(frozen=True, slots=True)
class Listing:
    """What an input holds.

    Attributes:
        num_images: how many were chosen.
        skipped: how many files were left aside, by kind: ``dotfile``, an extension, or ``no extension``.
        num_not_selected: images that the selection left out.
        num_known: images that are left out because the run that is extended has them.
        num_damaged: of the images, how many stand for an archive or a Parquet file that can't be read (to its end).
        source: the chosen images as record batches of ``REFS_SCHEMA``, in byte order of their file names; iterable again.
    """

    num_images: int
    skipped: Mapping[str, int]
    num_not_selected: int
    source: Iterable[pa.RecordBatch]
    num_known: int = 0
    num_damaged: int = 0

    def read_refs(self) -> Iterator[ImageRef]:
        """The chosen images, one after the other."""
        for batch in self.source:
            yield from batch_to_refs(batch)


def batch_to_refs(batch: pa.RecordBatch) -> list[ImageRef]:
    """Rows that hold the columns of ``REFS_SCHEMA``, as refs."""
    columns = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in REFS_SCHEMA.names]
    return [ImageRef(**dict(zip(REFS_SCHEMA.names, row, strict=True))) for row in zip(*columns, strict=True)]
