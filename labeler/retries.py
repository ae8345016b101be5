"""Storage calls that are tried again while the store does not answer. Must not know what they ask, nor of which store.

How often is the affair of the process, as its store options are: a job says so once at its start, and every call of
``labeler.storage`` is that patient; a program that says nothing tries once. Tries never nest: a call within another that
would be repeated is tried once.
"""

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from labeler.errors import StorageError, StorageRefusedError

RETRIES_OF_A_MINUTE = 8
"""The pauses between so many add up to about a minute."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_MOST_DOUBLINGS = 32  # The longest pause is reached long before; of the thousandth doubling no float would be left.
_POLL_S = 0.2

P = ParamSpec("P")
T = TypeVar("T")


def _never() -> bool:
    return False


_retries = 0
_is_stopped: Callable[[], bool] = _never
_this_thread = threading.local()


def use_retries(retries: int, *, is_stopped: Callable[[], bool] = _never) -> None:
    """From now on this process tries a storage call that failed so many times more.

    Args:
        retries: how many times.
        is_stopped: asked during pauses; once it says yes they end with KeyboardInterrupt.
    """
    global _retries, _is_stopped
    _retries, _is_stopped = retries, is_stopped


def call_with_retries(call: Callable[[], T]) -> T:
    """The result of one or several storage calls, tried again as a whole after a pause while the store does not answer.

    Pauses double and are drawn at random, so that a thousand workers do not come back at the same moment.

    Raises:
        StorageError: that of the last try; StorageRefusedError: of the first. Anything else at once: only the store's own
            troubles pass by themselves.
    """
    num_retries = 0 if getattr(_this_thread, "is_trying", False) else _retries
    for attempt in range(num_retries):
        try:
            with trying_once():
                return call()
        except StorageRefusedError:
            raise
        except StorageError:
            _pause(random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(attempt, _MOST_DOUBLINGS)))
    with trying_once():
        return call()


def retried(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose calls are tried again as ``call_with_retries`` does it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return call_with_retries(functools.partial(function, *args, **kwargs))

    return call


@contextmanager
def trying_once() -> Iterator[None]:
    """Storage calls of this thread are tried once: the caller tries the whole again, or does not want to wait."""
    before = getattr(_this_thread, "is_trying", False)
    _this_thread.is_trying = True
    try:
        yield
    finally:
        _this_thread.is_trying = before


def _pause(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        if _is_stopped():
            raise KeyboardInterrupt
        time.sleep(min(left_s, _POLL_S))
