"""Tar archives (WebDataset shards): which images are in them, and where. Must not know what the images are for.

An archive is gone through once, when the run is planned: each member's place in it stands in the plan, and workers read
just those bytes. Compressed archives have no such places and are refused.
"""

import functools
import tarfile
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from labeler.errors import OptionsError
from labeler.ranges import open_ranges

_SCHEME = "tar://"
_READ_AHEAD_BYTES = 256 * 1024  # Most images are larger: a longer read would be for nothing.


class Member(NamedTuple):
    """A file in an archive. Bytes of its name that are not UTF-8 are surrogates."""

    name: str
    offset: int
    length: int


def make_member_uri(archive: str, name: str) -> str:
    """``tar://member::archive``, as fsspec chains them; the member's name percent-encoded."""
    return f"{_SCHEME}{quote_from_bytes(name.encode('utf-8', 'surrogateescape'))}::{archive}"


def split_member_uri(uri: str) -> tuple[str, str] | None:
    """The archive's URI and the member's name, or None where the URI is none of a member."""
    if not uri.startswith(_SCHEME) or "::" not in uri:
        return None
    name, _, archive = uri.removeprefix(_SCHEME).partition("::")
    return archive, unquote_to_bytes(name).decode("utf-8", "surrogateescape")


def list_members(archive: str) -> Iterator[Member]:
    """Every file in an archive, in its order.

    Raises:
        OptionsError: it is compressed, damaged, or no tar archive.
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
    """
    try:
        with (
            open_ranges(archive, read_ahead_bytes=_READ_AHEAD_BYTES) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # It keeps all it has seen: much, in an archive of a million.
                if member.isreg() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise OptionsError(f"{archive} is no whole, uncompressed tar archive: {error}") from error


@functools.lru_cache(maxsize=4)
def _index_archive(archive: str) -> dict[str, Member]:
    return {member.name: member for member in list_members(archive)}


def find_member(archive: str, name: str) -> Member:
    """A member by its name, for a URI that somebody wrote into a list; the last of that name, as tar has it."""
    try:
        return _index_archive(archive)[name]
    except KeyError as error:
        raise FileNotFoundError(f"{archive} has no member {name}") from error
