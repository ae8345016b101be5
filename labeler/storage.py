"""Bytes by path or URI: read, write whole, list. Local files directly, everything else by ``labeler.stores``.

Must not know what the bytes mean. A place is a plain local path, taken literally whatever stands in it; a ``file://``
URI, percent-encoded, as ``path_to_uri`` writes it; or any URL of fsspec's (``s3://``, ``memory://``).

Errors: of what is read, ``FileNotFoundError`` (also: the name is a folder's, runs through a file, is too long, or is a link
that dangles or loops) and ``PermissionError`` leave as they are, for the caller knows whose fault that is. ``OptionsError``: no
such kind of store, or its package is not installed. All else is a ``StorageError``, raised after as many tries as
``labeler.retries`` was told; where trying again is no use (credentials, bucket, disk full, what may not be written), at once
a ``StorageRefusedError``.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from labeler.errors import StorageError, StorageRefusedError
from labeler.retries import retried
from labeler.store_errors import is_past_the_end, translate_local_errors, translate_store_errors
from labeler.store_pages import find_etag, list_keys, read_info
from labeler.stores import HTTP, OBJECT_STORES, S3, find_scheme, normalize_url, open_store, quote_key

_URL = re.compile(r"^(?:[a-z0-9]+::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a store.

    Attributes:
        uri: opens again with ``read_bytes``; ASCII for local files, whatever their name.
        path: below the listed root, with ``/``. Bytes of a name that are not UTF-8 are surrogates; see ``encode_name``.
        size_bytes: None for a link that dangles or loops, or a path too long to open: listed, so that it is missed by name.
        etag: changes when the content does; None where the store gives nothing of the kind.
    """

    uri: str
    path: str
    size_bytes: int | None
    etag: str | None


class Sink(Protocol):
    """What takes bytes, one piece after the other."""

    def write(self, data: bytes, /) -> int:
        """Add these bytes."""


def path_to_uri(path: str | os.PathLike[str]) -> str:
    """A local path as a ``file://`` URI: absolute, all but plain characters percent-encoded, links not resolved.

    Text that is a URI already stays as it is, so this may be said over whatever a person typed.
    """
    if isinstance(path, str) and _URL.match(path):
        return normalize_url(path) if uri_to_path(path) is None else path
    return "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))  # noqa: PTH100 (resolve() follows links)


def uri_to_path(uri: str) -> Path | None:
    """The local path that a place names, or None if it is not local."""
    if uri[:7].lower() == "file://":
        _host, slash, rest = uri[7:].partition("/")
        return Path(os.fsdecode(unquote_to_bytes(slash + rest)))
    return None if _URL.match(uri) else Path(uri)


def encode_name(name: str) -> str:
    """A file name as tables hold it: valid text; ``%`` and bytes that are not UTF-8 percent-encoded, and no more."""
    escaped = name.replace("%", "%25")
    return re.sub("[\udc80-\udcff]", lambda match: f"%{ord(match[0]) - 0xDC00:02X}", escaped)


def decode_name(text: str) -> str:
    """The file name that ``encode_name`` made this text of."""
    return os.fsdecode(unquote_to_bytes(text))


def printable_name(text: str) -> str:
    """The name that a table's text stands for, to be shown: "?" for each byte that is of no character."""
    return decode_name(text).encode("utf-8", "replace").decode()


@retried
def read_bytes(uri: str, *, offset: int | None = None, length: int | None = None) -> bytes:
    """The whole of a file, or ``length`` bytes of it from ``offset`` on: fewer where it ends before."""
    start = offset or 0
    path = uri_to_path(uri)
    if path is None:
        with translate_store_errors(uri):
            store, key = open_store(uri)
            if length == 0:
                return b""  # A range of nothing can't be said in HTTP.
            # Without bounds the whole comes in one request, and never in pieces of two versions.
            end = None if length is None else start + length
            whole = {"max_concurrency": 1} if find_scheme(uri) in S3 and end is None else {}
            try:
                data: bytes = store.cat_file(key, start=start if offset or length else None, end=end, **whole)
            except Exception as error:
                if (offset or length) and is_past_the_end(error):
                    return b""
                raise
            return data
    with translate_local_errors(path):
        # Not blocking, so that a pipe in a folder of images holds nobody up.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
            file.seek(start)
            return file.read(-1 if length is None else length)


@retried
def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole or not at all, with the folders it needs; a reader sees the old content or the new.

    Locally that is a hidden file beside it, synced to disk and renamed; one left by a killed process is harmless.
    """
    path = uri_to_path(uri)
    if path is None:
        with translate_store_errors(uri, writing=True):
            store, key = _open_for_writing(uri)
            store.pipe_file(key, data)
        return
    with open_whole(uri) as file:
        file.write(data)


@contextlib.contextmanager
def open_whole(uri: str) -> Iterator["Sink"]:
    """A file to write piece by piece, of any size: whole or not at all, as ``write_bytes`` promises it.

    It gets its name when the block ends well; otherwise nothing is left of it. In an object store that is one upload in
    parts. Errors of the store are translated; what the block itself raises leaves as it is. Nothing is tried again here.
    """
    path = uri_to_path(uri)
    if path is None:
        with translate_store_errors(uri, writing=True):
            store, key = _open_for_writing(uri)
            remote = store.open(key, "wb", autocommit=False)
        try:
            yield _Sink(remote, lambda: translate_store_errors(uri, writing=True))
            with translate_store_errors(uri, writing=True):
                remote.close()
                remote.commit()
        except BaseException:
            with contextlib.suppress(Exception):
                remote.discard()  # Else parts of it stay, and cost money.
            raise
        return
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    with translate_local_errors(path, writing=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        local = temporary.open("xb")
    try:
        yield _Sink(local, lambda: translate_local_errors(path, writing=True))
        with translate_local_errors(path, writing=True):
            local.flush()
            os.fsync(local.fileno())
            local.close()
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            local.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def list_files(root: str) -> Iterator[FileInfo]:
    """Every file below a folder, at any depth, in any order; names that begin with a dot too.

    Links are followed, to files and to folders (as ``find -L`` does), but never into a folder that holds them: a file
    reached by two ways is listed by both. Links that dangle or loop, and files whose path is too long to be opened, are
    listed without a size. Pipes and devices are not. Where a folder below the root may not be read, that is a
    ``PermissionError``, and where the disk fails a ``StorageError``: nothing is left out silently.
    """
    path = uri_to_path(root)
    if path is not None:
        yield from _list_folder(path, prefix="", above=_identify_folder(path))
        return

    @retried
    def ask(request: Callable[[], Any]) -> Any:
        with translate_store_errors(root):
            return request()

    store, key = ask(lambda: open_store(root))
    base = key.rstrip("/") + "/"
    is_empty = True
    for name, size_bytes, etag in list_keys(store, key, ask=ask):
        is_empty = False
        below = name.removeprefix(base)
        yield FileInfo(join(root, below), below, size_bytes, etag)
    if is_empty and not ask(lambda: store.isdir(key)):
        raise FileNotFoundError(errno.ENOENT, "no such folder", root)


def list_names(root: str) -> Iterator[str]:
    """The ``FileInfo.path`` of every file that ``list_files`` finds.

    Without looking at the files: on a network's disk each look is a request.
    """
    path = uri_to_path(root)
    if path is None:
        yield from (file.path for file in list_files(root))
        return
    above, entries = _identify_folder(path), _scan_folder(path)
    with translate_local_errors(path):
        plain = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    yield from plain
    for entry in entries:
        if entry.name not in plain:
            yield from (file.path for file in _list_entry(entry, prefix="", above=above))


@retried
def stat_file(uri: str) -> FileInfo:
    """What a listing would say of one file now; ``path`` is its name alone."""
    path = uri_to_path(uri)
    if path is not None:
        with translate_local_errors(path):
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
            return FileInfo(path_to_uri(path), path.name, about.st_size, _stat_etag(about))
    with translate_store_errors(uri):
        store, key = open_store(uri)
        found = read_info(store, key)
        if found.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "not a file", uri)
        return FileInfo(uri, key.rsplit("/", 1)[-1], found.get("size"), find_etag(found))


def measure_file(uri: str) -> int:
    """The bytes of a file that is to be read in pieces. Raises StorageError where its store does not say how many."""
    size_bytes = stat_file(uri).size_bytes
    if size_bytes is None:
        raise StorageError(f"{uri} can't be read in pieces: its server does not say how large it is")
    return size_bytes


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    return _is(uri, "exists")


@retried
def has_content(uri: str) -> bool:
    """Whether there is a file, or a folder with something in it: an empty one may be where a disk is not mounted.

    A folder that may be entered but not listed counts: what is in it may open by its name. A web server's are not asked for.
    """
    if find_scheme(uri) in HTTP:
        return True
    path = uri_to_path(uri)
    try:
        if path is None or not is_folder(uri):
            return exists(uri)
        with translate_local_errors(path), os.scandir(path) as entries:
            return next(entries, None) is not None
    except PermissionError:
        return path is None or os.access(path, os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def is_folder(uri: str) -> bool:
    """Whether there is a folder. Object stores have one where a file's name goes on below it."""
    return _is(uri, "isdir")


@retried
def delete(uri: str) -> None:
    """Remove a file; that there is none is no error."""
    path = uri_to_path(uri)
    if path is not None:
        with translate_local_errors(path, writing=True):
            path.unlink(missing_ok=True)
        return
    with translate_store_errors(uri, writing=True, may_be_gone=True):
        store, key = open_store(uri)
        store.rm_file(key)


def join(root: str, *parts: str) -> str:
    """The place of a file below a folder, named by ``FileInfo.path`` or pieces of it."""
    if root[:7].lower() == "file://":
        parts = tuple(quote_from_bytes(os.fsencode(part)) for part in parts)
    elif _URL.match(root):
        parts = tuple(quote_key(part) for part in parts)
    if not parts:
        return root
    return (root if root.endswith("/") or not root else root + "/") + "/".join(parts)


@dataclass(frozen=True, slots=True)
class _Sink:
    """A file whose own errors are translated, and nothing else's."""

    file: Any
    translate: Callable[[], contextlib.AbstractContextManager[None]]

    def write(self, data: bytes, /) -> int:
        with self.translate():
            return int(self.file.write(data))


def _list_folder(folder: Path, *, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    """Files below one folder; ``above`` are the device and inode of it and of the folders it was reached through."""
    for entry in _scan_folder(folder):
        yield from _list_entry(entry, prefix=prefix, above=above)


def _list_entry(entry: "os.DirEntry[str]", *, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    """The same for one thing in a folder."""
    path = prefix + entry.name
    uri = path_to_uri(entry.path)
    try:
        about = _stat_entry(entry)
    except FileNotFoundError as error:
        is_too_long = error.errno == errno.ENAMETOOLONG
        if is_too_long and entry.is_dir(follow_symlinks=False):
            raise StorageRefusedError(f"{entry.path} can't be listed: its path is too long") from error
        if is_too_long or entry.is_symlink():
            yield FileInfo(uri, path, None, None)
        return  # Otherwise it was there a moment ago and is gone.
    if stat.S_ISREG(about.st_mode):
        yield FileInfo(uri, path, about.st_size, _stat_etag(about))
    identity = (about.st_dev, about.st_ino)
    if stat.S_ISDIR(about.st_mode) and identity not in above:
        yield from _list_folder(Path(entry.path), prefix=path + "/", above=above | {identity})


def _identify_folder(folder: Path) -> frozenset[tuple[int, int]]:
    with translate_local_errors(folder):
        about = folder.stat()
    return frozenset({(about.st_dev, about.st_ino)})


@retried
def _stat_entry(entry: "os.DirEntry[str]") -> os.stat_result:
    with translate_local_errors(Path(entry.path)):
        return entry.stat()


@retried
def _scan_folder(folder: Path) -> list["os.DirEntry[str]"]:
    with translate_local_errors(folder):
        return list(os.scandir(folder))


@retried
def _is(uri: str, question: str) -> bool:
    path = uri_to_path(uri)
    if path is None:
        return _is_in_store(uri, question)
    try:
        with translate_local_errors(path):
            mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return question == "exists" or stat.S_ISDIR(mode)


def _is_in_store(uri: str, question: str) -> bool:
    """One request: a file system's own ``isdir`` may list a folder of millions, its ``exists`` take any error for no."""
    try:
        with translate_store_errors(uri):
            store, key = open_store(uri)
            if find_scheme(uri) not in OBJECT_STORES:
                return bool(getattr(store, question)(key))
            if question == "exists" and read_info(store, key):
                return True
            return next(list_keys(store, key), None) is not None
    except FileNotFoundError:
        return False


def _open_for_writing(uri: str) -> tuple[Any, str]:
    store, key = open_store(uri)
    if find_scheme(uri) not in OBJECT_STORES:  # Where making a folder would make a bucket that is gone.
        store.makedirs(store._parent(key), exist_ok=True)
    return store, key


def _sync_folder(folder: Path) -> None:
    """So that a renamed file keeps its name through a power cut; not every file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _stat_etag(about: os.stat_result) -> str:
    return f"{about.st_size:x}-{about.st_mtime_ns:x}"
