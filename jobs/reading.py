"""The bytes of one image, wherever the plan says they are. Must not know what they show or what becomes of them."""

from jobs.archives import find_member, split_member_uri
from jobs.image_rows import read_row, split_row_uri
from jobs.refs import ImageRef
from labeler import storage
from labeler.errors import ImageError


def read_image(ref: ImageRef, *, image_column: str | None = None) -> bytes:
    """Read a file, a member of an archive (only its own bytes), or a row of a Parquet file (its row group).

    Args:
        ref: the image.
        image_column: which column of a Parquet file holds images, where it has several.

    Raises:
        ImageError: it has changed since it was listed.
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    member, row = split_member_uri(ref.uri), split_row_uri(ref.uri)
    if member is not None:
        return _read_member(ref, *member)
    # A file may be called so too; where the plan has the row's number there is no doubt.
    if row is not None and (ref.offset is not None or row[0].lower().endswith(".parquet")):
        _check_etag(ref, row[0])
        return read_row(*row, wanted=image_column)
    data = storage.read_bytes(ref.uri)
    if ref.size_bytes is not None and len(data) != ref.size_bytes:
        raise ImageError("changed", f"it has {len(data)} bytes, but had {ref.size_bytes} when the run was planned")
    _check_etag(ref, ref.uri)
    return data


def _read_member(ref: ImageRef, archive: str, name: str) -> bytes:
    offset, length = ref.offset, ref.length
    if offset is None or length is None:  # Somebody's list names it: where it is must be looked up.
        _, offset, length = find_member(archive, name)
    data = storage.read_bytes(archive, offset=offset, length=length)
    if len(data) != length:
        raise ImageError("changed", f"its archive ended after {len(data)} of its {length} bytes")
    _check_etag(ref, archive)
    return data


def _check_etag(ref: ImageRef, uri: str) -> None:
    if ref.etag is not None and storage.stat_file(uri).etag != ref.etag:
        raise ImageError("changed", "it was written again after the run was planned")
