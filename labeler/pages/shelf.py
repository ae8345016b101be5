"""The photos that a page may open: those of one folder, and those that somebody dropped on it.

Must not know models or pages. Nothing outside of the folder is ever read, whatever a name says and wherever links lead.
What is dropped stays in memory, within a bound, under a name that nobody can guess.
"""

import hashlib
import itertools
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labeler import storage
from labeler.errors import ImageError, OptionsError, StorageError
from labeler.images import IMAGE_EXTENSIONS, decode_image
from labeler.types import Image

MAX_LISTED = 5000
"""Photos of a folder that are offered; the rest of a larger one is not looked at, which the page says."""

MAX_DROPPED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo that may be opened.

    Attributes:
        key: its alone; another when the file changes.
        name: for a person.
        read: decodes it; raises ImageError.
    """

    key: str
    name: str
    read: Callable[[], Image]


class Shelf:
    """Photos by name.

    Args:
        folder: a local folder or a place in a store, searched with all below it; None: there are only dropped ones.
        max_pixels: larger photos are refused before anything is decoded.

    Raises:
        OptionsError: there is no such folder.
    """

    def __init__(self, folder: str | None, *, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._dropped: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._folder = None if folder is None else storage.path_to_uri(folder)
        path = None if self._folder is None else storage.uri_to_path(self._folder)
        self._root = None if path is None else path.resolve()
        if self._folder is not None and not storage.is_folder(self._folder):
            raise OptionsError(f"--images {folder} is not a folder")

    def list_names(self) -> list[str]:
        """The photos of the folder, by name, in the order of their names; hidden files are none.

        Raises:
            StorageError: the folder can't be read.
        """
        try:
            return sorted(map(storage.encode_name, itertools.islice(self._iterate_names(), MAX_LISTED)))
        except (FileNotFoundError, PermissionError) as error:
            raise StorageError(f"{self._folder} can't be read any more: {error.strerror or error}") from error

    def find(self, name: str) -> Photo:
        """A photo of the folder.

        Raises:
            ImageError: there is none of that name in the folder.
            StorageError: the folder can't be read.
        """
        missing = ImageError("missing", f"{name!r} is no photo of the folder")
        decoded = storage.decode_name(name)
        if self._folder is None or not _is_photo(decoded):
            raise missing
        if self._root is None:
            if name not in self.list_names():
                raise missing
            uri = storage.join(self._folder, decoded)
        else:
            path = _find_inside(self._root, decoded)
            if path is None:
                raise missing
            uri = storage.path_to_uri(path)
        try:
            etag = storage.stat_file(uri).etag
        except (FileNotFoundError, PermissionError) as error:
            raise missing from error
        key = hashlib.sha256(f"{uri}\0{etag}".encode()).hexdigest()
        return Photo(key, storage.printable_name(name), lambda: self._read(uri, name))

    def keep(self, data: bytes) -> str:
        """Remember what was dropped, until too much was dropped after it. Returns the word for ``find_dropped``."""
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._dropped[token] = data
            while len(self._dropped) > 1 and sum(map(len, self._dropped.values())) > MAX_DROPPED_BYTES:
                self._dropped.popitem(last=False)
        return token

    def find_dropped(self, token: str, *, name: str) -> Photo:
        """A photo that was dropped a while ago. Raises ImageError where it is forgotten."""
        self._get_dropped(token, name)
        return Photo(token, name, lambda: self._decode(self._get_dropped(token, name), name))

    def _get_dropped(self, token: str, name: str) -> bytes:
        """Of what was used last the most is kept: a photo that is open holds no bytes of its own."""
        with self._lock:
            data = self._dropped.get(token)
            if data is not None:
                self._dropped.move_to_end(token)
        if data is None:
            raise ImageError("missing", f"{name} was dropped too long ago; drop it again")
        return data

    def _read(self, uri: str, name: str) -> Image:
        try:
            data = storage.read_bytes(uri)
        except (FileNotFoundError, PermissionError) as error:
            raise ImageError("missing", f"{name} can't be read any more") from error
        except StorageError as error:
            raise ImageError("internal", str(error)) from error
        return self._decode(data, name)

    def _decode(self, data: bytes, name: str) -> Image:
        try:
            return decode_image(data, max_pixels=self._max_pixels)
        except ImageError as error:
            raise ImageError(error.kind, f"{name} can't be opened: {error.reason}") from error

    def _iterate_names(self) -> Iterator[str]:
        """Names of photos below the folder. Links to folders are not followed, links to files only where they stay inside."""
        if self._folder is None:
            return
        if self._root is None:
            yield from filter(_is_photo, storage.list_names(self._folder))
            return
        for folder, below, files in os.walk(self._root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for file in sorted(files):
                name = Path(folder, file).relative_to(self._root).as_posix()
                if _is_photo(name) and _find_inside(self._root, name) is not None:
                    yield name


def _is_photo(name: str) -> bool:
    """Whether a job would take it for one: by its extension, and nothing hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_EXTENSIONS and not any(part.startswith(".") for part in path.parts)


def _find_inside(root: Path, name: str) -> Path | None:
    """The file of that name, where all links have led; None where it is none, or lies outside of the folder."""
    try:
        path = (root / name).resolve(strict=True)
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # Not there; a null character; links in a circle.
        return None
