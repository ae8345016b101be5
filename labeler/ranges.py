"""A stored file as one that Python can seek in, read by ranges. Must not know what is in it or how stores are opened."""

import io
from typing import Any

from labeler import storage

_READ_AHEAD_BYTES = 1 << 20


class StoredFile(io.RawIOBase):
    """Reads a file by ``storage.read_bytes``, a piece for each read: for libraries that want a file object."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._position = 0
        self.size_bytes = storage.measure_file(uri)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go there; nothing is read for it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, with less at the end of the file."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self.size_bytes - self._position))
        data = storage.read_bytes(self._uri, offset=self._position, length=length)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_ranges(uri: str, *, read_ahead_bytes: int = _READ_AHEAD_BYTES) -> io.BufferedReader:
    """The file, open for reading from any place on; a small read brings the bytes after it along.

    Raises:
        FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``; also while it is read.
    """
    return io.BufferedReader(StoredFile(uri), buffer_size=read_ahead_bytes)
