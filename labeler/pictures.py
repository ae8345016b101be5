"""The bytes of an image by its URI, of whichever kind: a file, a member of an archive, a row of a Parquet file.

Must not know what they show, nor how the image looked when a run was planned: that is ``jobs.reading``'s to judge.
"""

from pathlib import Path

from labeler import storage
from labeler.archives import find_member, split_member_uri
from labeler.image_rows import read_row, split_row_uri

_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)
_SIGNATURES_AT_8 = ((b"WEBP", ".webp"), (b"avif", ".avif"))


def read_picture(uri: str, *, image_column: str | None = None) -> bytes:
    """Read an image from where a run found it.

    Args:
        uri: of a place in a store, ``tar://member::archive`` or ``part.parquet#row=N``.
        image_column: which column of a Parquet file holds images, where it has several.

    Raises:
        ImageError: what should hold the image is damaged, or no Parquet file any more.
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    member, row = split_member_uri(uri), split_row_uri(uri)
    if member is not None:
        archive, name = member
        _, offset, length = find_member(archive, name)
        return storage.read_bytes(archive, offset=offset, length=length)
    if row is not None:
        return read_row(*row, wanted=image_column)
    return storage.read_bytes(uri)


def find_picture_file(uri: str) -> Path | None:
    """The local file that is the image; None where it lies in a store or inside of another file."""
    return None if split_row_uri(uri) is not None else storage.uri_to_path(uri)


def name_extension(data: bytes) -> str:
    """``.jpg``, ``.png`` ... by an image's first bytes; nothing where they are of no usual format."""
    named = [extension for signature, extension in _SIGNATURES if data.startswith(signature)]
    named += [extension for signature, extension in _SIGNATURES_AT_8 if data[8:12] == signature]
    return named[0] if named else ""
