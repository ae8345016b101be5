"""The bytes of one image, wherever the plan says they are. Must not know what they show or what becomes of them."""

from dataclasses import replace

from jobs.refs import ImageRef
from labeler import storage
from labeler.archives import find_damage, find_member, split_member_uri
from labeler.errors import ImageError
from labeler.image_rows import read_row, split_row_uri

LARGEST_FILE_BYTES = 2 << 30
"""A larger one is a slip, and would take a worker's memory: 200 million pixels of 16 bits have 1.6 GB, uncompressed."""


def read_image(ref: ImageRef, *, image_column: str | None = None) -> bytes:
    """Read a file, a member of an archive (only its own bytes), or a row of a Parquet file (its row group).

    Args:
        ref: the image.
        image_column: which column of a Parquet file holds images, where it has several.

    Raises:
        ImageError: it has changed since it was listed, or what holds it is damaged.
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    if ref.is_holder:
        raise _explain_holder(ref)
    member, row = split_member_uri(ref.uri), split_row_uri(ref.uri)
    if member is not None:
        return _read_member(ref, *member)
    if row is not None:
        _check_etag(ref, row[0])
        return read_row(*row, wanted=image_column)
    if ref.size_bytes is not None and ref.size_bytes > LARGEST_FILE_BYTES:
        raise ImageError("too_large", f"the file has {ref.size_bytes} bytes, more than the {LARGEST_FILE_BYTES} of any image")
    data = storage.read_bytes(ref.uri)
    if ref.size_bytes is not None and len(data) != ref.size_bytes:
        raise ImageError("changed", f"it has {len(data)} bytes, but had {ref.size_bytes} when the run was planned")
    _check_etag(ref, ref.uri)
    return data


def find_holder(ref: ImageRef) -> str:
    """The file that an image's bytes are in: an archive or a table, or the image itself."""
    member, row = split_member_uri(ref.uri), split_row_uri(ref.uri)
    return member[0] if member is not None else row[0] if row is not None else ref.uri


def may_be_looked_at_again(ref: ImageRef) -> bool:
    """Whether it is a file by itself of which the plan says how it looked.

    What lies in archives and tables stays as it was planned, for it may be at another place in them by now.
    """
    return ref.etag is not None and ref.offset is None and find_holder(ref) == ref.uri


def look_again(ref: ImageRef) -> ImageRef:
    """The same image as its file is now: one that was mended since the run was planned is not ``changed`` for ever."""
    if not may_be_looked_at_again(ref):
        return ref
    try:
        file = storage.stat_file(ref.uri)
    except (FileNotFoundError, PermissionError):
        return ref
    return replace(ref, size_bytes=file.size_bytes, etag=file.etag)


def _read_member(ref: ImageRef, archive: str, name: str) -> bytes:
    offset, length = ref.offset, ref.length
    if offset is None or length is None:  # Somebody's list names it: where it is must be looked up.
        _, offset, length = find_member(archive, name)
    data = storage.read_bytes(archive, offset=offset, length=length)
    _check_etag(ref, archive)
    if len(data) != length:
        raise ImageError("truncated", f"its archive ends after {len(data)} of its {length} bytes")
    return data


def _explain_holder(ref: ImageRef) -> ImageError:
    """Why an archive or a Parquet file is a row by itself: looked at again, for the plan says only from where on."""
    _check_etag(ref, ref.uri)
    if ref.uri.lower().endswith(".parquet"):
        return ImageError("corrupt", f"the Parquet file can't be read from row {ref.offset} on; its images are lost")
    damage = find_damage(ref.uri, offset=ref.offset or 0)
    if damage is not None:
        return ImageError(damage.kind, damage.reason)
    return ImageError("changed", "it could not be read when the run was planned, and now it can: --extend adds what is in it")


def _check_etag(ref: ImageRef, uri: str) -> None:
    if ref.etag is not None and storage.stat_file(uri).etag != ref.etag:
        raise ImageError("changed", "it was written again after the run was planned")
