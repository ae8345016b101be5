"""Files that one process of a machine may hold at a time. The kernel releases them when it dies.

Windows has no ``flock``: there nothing is locked.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


@contextmanager
def open_alone(path: Path) -> Iterator[BinaryIO]:
    """A file, open for appending, once no other process has it."""
    with path.open("ab") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """A folder, as long as this lasts. Raises BlockingIOError where another process has it."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
