"""Calls made ahead of who asks for their results, so that a store's latency is waited for once. Must not know what is read."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

READS_AT_ONCE = 16

T = TypeVar("T")


def map_ahead(pool: Executor, function: Callable[[int], T], numbers: Iterable[int], *, num_ahead: int) -> Iterator[T]:
    """Like ``pool.map``, in order, but no more than ``num_ahead`` calls are made before their result is asked for."""
    calls: deque[Future[T]] = deque()
    try:
        for number in numbers:
            if len(calls) == num_ahead:
                yield calls.popleft().result()
            calls.append(pool.submit(function, number))
        while calls:
            yield calls.popleft().result()
    finally:
        for call in calls:
            call.cancel()
