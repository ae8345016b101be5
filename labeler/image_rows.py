"""Parquet files whose rows hold the images themselves, as Hugging Face writes them. Must not know what the images are for.

The column is a struct of ``bytes`` and ``path``, or plain binary. Only the row group an image is in is read, and kept
until a row of another one is asked for: the rows of a shard lie close together.
"""

import bisect
import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from labeler.errors import ImageError, OptionsError
from labeler.ranges import StoredFile

_ROW = re.compile(r"^(?P<part>.*\.parquet)#row=(?P<row>\d+)$", re.DOTALL | re.IGNORECASE)
_USUAL_NAME = "image"


class Part(NamedTuple):
    """An open Parquet file; ``ends`` are the numbers of the rows after each row group."""

    file: Any
    column: str
    ends: list[int]


def make_row_uri(part: str, row: int) -> str:
    """``part.parquet#row=N``, from 0."""
    return f"{part}#row={row}"


def split_row_uri(uri: str) -> tuple[str, int] | None:
    """The Parquet file's URI and the row, or None where the URI names none: any other file may be called so."""
    match = _ROW.match(uri)
    return (match["part"], int(match["row"])) if match else None


def open_parquet(uri: str) -> Any:
    """A Parquet file, of which no more than its footer is read so far.

    Raises:
        OptionsError: it is none.
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    try:
        file = pq.ParquetFile(pa.PythonFile(StoredFile(uri), mode="r"))
        file.schema_arrow.names  # noqa: B018  # Reads the schema now, so that a bad one raises here.
    except (FileNotFoundError, PermissionError):
        raise  # The store's answer.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"{uri} is no Parquet file: {str(error).splitlines()[0]}") from error
    return file


def list_image_columns(schema: pa.Schema) -> list[str]:
    """The columns that may hold images: those of bytes."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def find_image_column(schema: pa.Schema, *, wanted: str | None) -> str | None:
    """The column that holds images' bytes: the wanted one, the only one, or else ``image``. None where there is none."""
    names = list_image_columns(schema)
    if wanted is not None:
        return wanted if wanted in names else None
    return names[0] if len(names) == 1 else (_USUAL_NAME if _USUAL_NAME in names else None)


def list_rows(uri: str, *, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One dictionary a row, with these columns (none of them: empty ones). Raises ImageError where they are damaged."""
    file = open_parquet(uri)
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    batches = file.iter_batches(columns=list(columns), batch_size=8192, use_threads=False)
    while True:
        with _damage_as_image_error():
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from rows


def read_row(uri: str, row: int, *, wanted: str | None = None) -> bytes:
    """The bytes of the image in a row.

    Raises:
        FileNotFoundError: there is no such row or it holds no bytes; also as ``labeler.storage``, like StorageError.
        ImageError: the file is damaged there, or no Parquet file any more.
    """
    part = _open_part(uri, wanted)
    group = bisect.bisect_right(part.ends, row)
    if group == len(part.ends):
        raise FileNotFoundError(f"{uri} has no row {row}")
    images = _read_group(uri, wanted, group)
    value = images[row - (part.ends[group - 1] if group else 0)].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        raise FileNotFoundError(f"row {row} of {uri} holds no bytes")
    return bytes(data)


@functools.lru_cache(maxsize=2)
def _open_part(uri: str, wanted: str | None) -> Part:
    try:
        file = open_parquet(uri)
    except OptionsError as error:
        raise ImageError("corrupt", str(error)) from error
    column = find_image_column(file.schema_arrow, wanted=wanted)
    if column is None:
        raise FileNotFoundError(f"{uri} has no column of image bytes")
    counts = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return Part(file, column, list(accumulate(counts)))


@functools.lru_cache(maxsize=1)
def _read_group(uri: str, wanted: str | None, group: int) -> Any:
    part = _open_part(uri, wanted)
    with _damage_as_image_error():
        return part.file.read_row_group(group, columns=[part.column], use_threads=False).column(0)


@contextlib.contextmanager
def _damage_as_image_error() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise  # The store's answer.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ImageError("corrupt", f"the Parquet file is damaged: {str(error).splitlines()[0]}") from error


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
