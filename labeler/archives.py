"""Tar archives (WebDataset shards): which images are in them, and where. Must not know what the images are for.

An archive is gone through once, when the run is planned: each member's place in it stands in the plan, and workers read
just those bytes. Compressed archives have no such places and count as damaged from their first byte on.
"""

import functools
import io
import tarfile
from collections.abc import Iterator
from typing import Literal, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from labeler import storage
from labeler.ranges import open_ranges

_SCHEME = "tar://"
_READ_AHEAD_BYTES = 256 * 1024  # Most images are larger: a longer read would be for nothing.


_LONGEST_MARK_BYTES = 1 << 20  # Zeros behind the last member; usually they fill it up to ten thousand bytes.

_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError)  # A header may declare any size of another.

_WITHOUT_DATA = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
)


class Member(NamedTuple):
    """A file in an archive. Bytes of its name that are not UTF-8 are surrogates.

    ``offset`` is None where its bytes do not stand there as they are: a link to another member, or a sparse file.
    """

    name: str
    offset: int | None
    length: int


class Damage(NamedTuple):
    """Why an archive can't be read from this byte on."""

    offset: int
    kind: Literal["truncated", "corrupt"]
    reason: str


def make_member_uri(archive: str, name: str) -> str:
    """``tar://member::archive``, as fsspec chains them; the member's name percent-encoded."""
    return f"{_SCHEME}{quote_from_bytes(name.encode('utf-8', 'surrogateescape'))}::{archive}"


def split_member_uri(uri: str) -> tuple[str, str] | None:
    """The archive's URI and the member's name, or None where the URI is none of a member."""
    if not uri.startswith(_SCHEME) or "::" not in uri:
        return None
    name, _, archive = uri.removeprefix(_SCHEME).partition("::")
    return archive, unquote_to_bytes(name).decode("utf-8", "surrogateescape")


def list_members(archive: str) -> Iterator[Member | Damage]:
    """Every file in an archive, in its order; where it can't be read to its end, the damage is the last thing given.

    Raises:
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    with open_ranges(archive, read_ahead_bytes=_READ_AHEAD_BYTES) as file:
        begin: int | None = 0
        while begin is not None:  # Archives may have been put one behind the other.
            end = begin
            try:
                with _open_tar(file, begin) as tar:
                    while (member := tar.next()) is not None and member.size >= 0:  # Less would lead back, over and over.
                        end = tar.offset
                        tar.members = []  # type: ignore[attr-defined]  # It keeps all: much, in an archive of a million.
                        if member.isreg() or member.islnk() or member.issym():
                            is_plain = member.isreg() and not member.issparse()
                            yield Member(member.name, member.offset_data if is_plain else None, member.size)
            except _TAR_ERRORS:
                pass  # What is wrong is seen by what stands there; tarfile stops at some damage without a word.
            damage = _find_damage(file, end)
            if damage is not None:
                yield damage
            begin = _find_next_begin(file, end) if damage is None else None


def find_damage(archive: str, *, offset: int) -> Damage | None:
    """What is wrong at a byte where another member should begin; None where one begins, or the archive ends, as it should.

    Raises:
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    with open_ranges(archive, read_ahead_bytes=_READ_AHEAD_BYTES) as file:
        return _find_damage(file, offset)


def _find_damage(file: io.BufferedReader, offset: int) -> Damage | None:
    size = file.seek(0, io.SEEK_END)
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if offset > size or 0 < len(block) < tarfile.BLOCKSIZE or not size:
        return Damage(offset, "truncated", f"the archive ends after {size} bytes, in the middle of something")
    if not block.strip(b"\0"):
        return None  # The end, with its mark or, as some tools write it, without.
    header = _read_header(block)
    if header is None or header.size < 0:
        what = "no tar archive" if offset == 0 else f"damaged at byte {offset}"
        return Damage(offset, "corrupt", f"it is {what}: images that may stand behind it can't be found")
    blocks = -(-header.size // tarfile.BLOCKSIZE) if header.type not in _WITHOUT_DATA else 0
    is_cut = offset + (1 + blocks) * tarfile.BLOCKSIZE > size
    if is_cut:
        name = storage.encode_name(header.name)
        return Damage(offset, "truncated", f"the archive ends after {size} bytes, in the middle of {name}")
    try:
        _open_tar(file, offset).close()
    except _TAR_ERRORS:  # A header may announce another.
        return Damage(offset, "corrupt", f"it is damaged behind byte {offset}: images that may stand there can't be found")
    return None


def _open_tar(file: io.BufferedReader, offset: int) -> tarfile.TarFile:
    file.seek(offset)
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")


def _read_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None


def _find_next_begin(file: io.BufferedReader, end: int) -> int | None:
    """Where an archive begins that was appended behind this one's closing zeros; None where there is none."""
    file.seek(end)
    data = file.read(_LONGEST_MARK_BYTES)
    behind = len(data) - len(data.lstrip(b"\0"))
    offset = behind - behind % tarfile.BLOCKSIZE
    block = data[offset : offset + tarfile.BLOCKSIZE]
    return end + offset if offset and len(block) == tarfile.BLOCKSIZE and _read_header(block) else None


@functools.lru_cache(maxsize=4)
def _index_archive(archive: str) -> dict[str, Member]:
    members = (member for member in list_members(archive) if isinstance(member, Member))
    return {member.name: member for member in members if member.offset is not None}


def find_member(archive: str, name: str) -> Member:
    """A member by its name, for a URI that somebody wrote into a list; the last of that name, as tar has it."""
    try:
        return _index_archive(archive)[name]
    except KeyError as error:
        raise FileNotFoundError(f"{archive} has no member {name}") from error
