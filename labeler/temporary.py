"""Folders that are gone when their work is done, in the machine's temporary folder."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from labeler.errors import StorageError


def make_temporary_folder(prefix: str) -> str:
    """A new folder, which its caller removes.

    Raises:
        StorageError: none can be made, as in a container whose files are read-only.
    """
    try:
        return tempfile.mkdtemp(prefix=prefix)
    except OSError as error:
        raise StorageError(
            f"no temporary folder can be made: {error.strerror or error}; TMPDIR can name another place"
        ) from error


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """The same as long as this lasts."""
    folder = make_temporary_folder(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
