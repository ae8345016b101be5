"""Loops compiled for this CPU. The numba seam.

Their machine code is kept between processes, where numba finds a place for it. It looks whether a loop's own file has changed,
and at no other: so no compiled loop may call one of another file.
"""

import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numba
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

_SHA256_BYTES = 32


def compiled(function: F) -> F:
    """Compiled when it is called first; runs without Python's lock."""
    return _compile(function)


def inlined(function: F) -> F:
    """The same, put in place wherever a compiled loop calls it."""
    return _compile(function, inline="always")


def _compile(function: F, **how: Any) -> F:
    made: Any = njit(nogil=True, **how)(function)
    try:
        made._cache = _KeptCode(function)  # What ``cache=True`` does, with numba's own class.
    except RuntimeError:  # Neither beside the source nor in the user's home may be written: each process compiles anew.
        logger.debug("no place to keep the machine code of %s", function)
    loop: F = made
    return loop


class _KeptCode(FunctionCache):
    """Machine code of one loop on disk. What can't be read or written costs a compilation, nothing more."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        base = Path(self._cache_path, self._impl.filename_base)
        self._cache_file: Any = _CodeFiles(base, stamp=self._impl.locator.get_source_stamp())

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature, if the disk lets us."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except OSError as error:
            logger.debug("the machine code of %s isn't kept: %s", self._name, error)


class _CodeFiles:
    """A file for each signature, CPU and version of numba.

    numba has an index for all of them, which workers that start at once, on unlike CPUs of one shared disk, write over each
    other: then one may be given the other's code.
    """

    def __init__(self, base: Path, *, stamp: object) -> None:
        self._base, self._stamp = base, stamp

    def _path(self, key: tuple[Any, ...]) -> Path:
        signature, cpu, _ = key
        name = hashlib.sha256(repr((numba.__version__, signature, cpu)).encode()).hexdigest()[:16]
        return self._base.with_name(f"{self._base.name}.{name}.nbc")

    def load(self, key: tuple[Any, ...]) -> Any:
        """What was kept, None where there is nothing, or nothing that is whole and of this source."""
        try:
            written = self._path(key).read_bytes()
        except OSError as error:
            logger.debug("no machine code in %s: %s", self._path(key), error)
            return None
        sha256, content = written[:_SHA256_BYTES], written[_SHA256_BYTES:]
        if hashlib.sha256(content).digest() != sha256:  # One with a hole in it would end this process, and all others after it.
            return None
        try:
            stamp, its_key, data = pickle.loads(content)
        except Exception as error:  # Of classes that are no more: pickle may raise anything.
            logger.debug("the machine code in %s is of other packages: %s", self._path(key), error)
            return None
        return data if (stamp, its_key) == (self._stamp, key) else None

    def flush(self) -> None:
        """Forget nothing: what is stale is written over. numba asks for it before it compiles all anew."""

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        """Keep it, whole or not at all.

        Raises:
            OSError: the disk is full or may not be written.
        """
        path = self._path(key)
        part = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
        try:
            content = dumps((self._stamp, key, data))  # type: ignore[no-untyped-call]
            part.write_bytes(hashlib.sha256(content).digest() + content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
