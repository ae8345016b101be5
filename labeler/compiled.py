"""Loops compiled for this CPU. The numba seam.

Their machine code is kept between processes, where numba finds a place for it. It looks whether a loop's own file has changed,
and at no other: so no compiled loop may call one of another file.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compiled when it is called first; runs without Python's lock."""
    return _compile(function)


def inlined(function: F) -> F:
    """The same, put in place wherever a compiled loop calls it."""
    return _compile(function, inline="always")


def _compile(function: F, **how: Any) -> F:
    try:
        made: F = njit(cache=True, nogil=True, **how)(function)
    except RuntimeError:  # Neither beside the source nor in the user's home may be written: each process compiles anew.
        made = njit(nogil=True, **how)(function)
    return made
