"""Lists that name images: .txt, .csv, .jsonl, .parquet with a column ``uri``, COCO's ``images``. Line by line, of any length.

Must not know where the images are: what a list says comes out as it is written. Nothing is looked up, so a list of
millions costs no request.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labeler.errors import ImageError, OptionsError
from labeler.image_rows import list_rows, open_parquet
from labeler.ranges import open_ranges

_URI = "uri"
_ID_COLUMNS = ("source_id", "id")
_COCO_ID_COLUMNS = ("id",)
_CHUNK_CHARACTERS = 1 << 20

csv.field_size_limit(2**31 - 1)  # A column of masks or of JSON has long cells.


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a list.

    Attributes:
        name: as it is written: a path, relative or not, or a URI.
        source_id: the list's own id, where it has one.
        kept: the columns to keep, in their order, as texts.
    """

    name: str
    source_id: str | None = None
    kept: Mapping[str, str | None] | None = None


def read_entries(uri: str, *, keep: Sequence[str]) -> Iterator[Entry]:
    """The entries of a list, in its order; by its extension which kind it is.

    Args:
        uri: the list.
        keep: columns to carry along.

    Raises:
        OptionsError: it is not what its extension says, or lacks a column.
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    extension = uri.rpartition(".")[2].lower()
    if extension == "txt":
        if keep:
            raise OptionsError(f"--keep-columns: {uri} has no columns")
        yield from (Entry(line) for line in _read_lines(uri) if line)
        return
    if extension == "json":
        rows = read_coco(uri, "images")
        yield from (_record_to_entry(row, _COCO_ID_COLUMNS, uri=uri, name_column="file_name", keep=keep) for row in rows)
        return
    rows = read_table(uri, columns=[_URI, *_ID_COLUMNS, *keep], needed=_URI)
    yield from (_record_to_entry(row, _ID_COLUMNS, uri=uri, name_column=_URI, keep=keep) for row in rows)


def read_table(uri: str, *, columns: Sequence[str], needed: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a .csv, .jsonl or .parquet file; of Parquet only these columns.

    Raises:
        OptionsError: it is not what its extension says, or (.csv, .parquet) lacks the column that is needed.
    """
    extension = uri.rpartition(".")[2].lower()
    return {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[extension](uri, columns, needed)


def to_text(value: Any) -> str | None:
    """A value as a table of texts holds it: what is no text becomes JSON, what is null stays so."""
    if value is None:
        return None
    return clean_text(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))


def id_to_text(value: Any) -> str | None:
    """An id as text; 7 and 7.0 are one, for tables make the one of the other."""
    return to_text(int(value) if isinstance(value, float) and value.is_integer() else value)


def clean_text(text: str) -> str:
    """JSON may escape halves of characters, which nothing else can hold: they stay escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def record_to_kept(row: Mapping[str, Any], *, keep: Sequence[str], uri: str) -> dict[str, str | None]:
    """The chosen columns of a row as texts; see ``to_text``."""
    missing = [name for name in keep if name not in row]
    if missing:
        raise OptionsError(f"--keep-columns: {uri} has no {missing[0]}; it has {', '.join(map(str, row))}")
    return {name: to_text(row[name]) for name in keep}


def read_coco(uri: str, name: str, *, is_needed: bool = True) -> Iterator[dict[str, Any]]:
    """The objects of one list of a COCO file, one by one: the annotations beside the images may be gigabytes.

    Args:
        uri: the file.
        name: ``images``, ``annotations`` or ``categories``.
        is_needed: a file without this list is no COCO file.

    Raises:
        OptionsError: it is none.
    """
    found = False
    with _open_text(uri) as file:
        reader = _JsonReader(file)
        try:
            reader.expect("{")
            while reader.peek() != "}":
                is_wanted = reader.read_value() == name
                reader.expect(":")
                found = found or is_wanted
                for value in reader.read_items():
                    if is_wanted:
                        yield value
                if reader.peek() == ",":
                    reader.expect(",")
        except ValueError as error:
            raise OptionsError(f"{uri} is no COCO file: {error}") from error
    if is_needed and not found:
        raise OptionsError(f"{uri} is no COCO file: it has no list of {name}")


def _read_lines(uri: str) -> Iterator[str]:
    with _open_text(uri) as file:
        try:
            yield from (line.rstrip("\r\n") for line in file)
        except UnicodeDecodeError as error:
            raise OptionsError(f"{uri} is not UTF-8: {error}") from error


def _read_csv(uri: str, _columns: Sequence[str], needed: str | None) -> Iterator[dict[str, Any]]:
    with _open_text(uri) as file:
        try:
            reader = csv.DictReader(file, strict=True)
            _check_columns(reader.fieldnames or (), uri=uri, needed=needed)
            yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise OptionsError(f"{uri} is no CSV file: {error}") from error


def _read_jsonl(uri: str, _columns: Sequence[str], _needed: str | None) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_read_lines(uri), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise OptionsError(f"{uri}, line {number}, is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise OptionsError(f"{uri}, line {number}, is no JSON object")
        yield row


def _read_parquet(uri: str, columns: Sequence[str], needed: str | None) -> Iterator[dict[str, Any]]:
    names = open_parquet(uri).schema_arrow.names
    _check_columns([*names], uri=uri, needed=needed)
    try:
        yield from list_rows(uri, columns=[name for name in dict.fromkeys(columns) if name in names])
    except ImageError as error:
        raise OptionsError(f"{uri} can't be read as a list: {error.reason}") from error


def _check_columns(names: Sequence[str], *, uri: str, needed: str | None) -> None:
    if needed is not None and needed not in names:
        raise OptionsError(f"{uri} has no column {needed}; it has {', '.join(names) or 'none'}")


def _record_to_entry(
    row: Mapping[str, Any], id_columns: Sequence[str], *, uri: str, name_column: str, keep: Sequence[str]
) -> Entry:
    name = row.get(name_column) if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        raise OptionsError(f"{uri} has a row without {name_column}: {str(row)[:80]}")
    source_id = next((row[column] for column in id_columns if row.get(column) is not None), None)
    try:  # A path may be of bytes that are no text, a URL and an id may not.
        name.encode(errors="strict" if "://" in name else "surrogateescape")
        str(source_id).encode()
    except UnicodeEncodeError as error:
        what = f"{name_column} {name!r}, id {source_id!r}"
        raise OptionsError(f"{uri} has an entry with half a character in its name or id: {what}") from error
    return Entry(name, id_to_text(source_id), record_to_kept(row, keep=keep, uri=uri) if keep else None)


def _open_text(uri: str) -> io.TextIOWrapper:
    """UTF-8, with or without a byte order mark. In a path, bytes that are not can't be written; see ``encode_name``."""
    return io.TextIOWrapper(open_ranges(uri), encoding="utf-8-sig", newline="")


class _JsonReader:
    """JSON from a stream, one value or list item at a time. Errors are ValueErrors."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def expect(self, mark: str) -> None:
        """Step over this character."""
        if self.peek() != mark:
            raise ValueError(f"{mark!r} expected, but found {self.peek()!r}")
        self._at += 1

    def read_value(self) -> Any:
        """A whole value. One that ends where the text read so far does may go on after it."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if not self._read_more():
                    raise
                continue
            if end < len(self._text) or not self._read_more():
                self._at = end
                return value

    def read_items(self) -> Iterator[Any]:
        """The items of a list; of anything else nothing, it is stepped over."""
        if self.peek() != "[":
            self.read_value()
            return
        self.expect("[")
        while self.peek() != "]":
            yield self.read_value()
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def _read_more(self) -> bool:
        # As much again as is held, so that one large value is not decoded a thousand times in vain.
        more = self._file.read(max(_CHUNK_CHARACTERS, len(self._text) - self._at))
        self._text = self._text[self._at :] + more
        self._at = 0
        return bool(more)
