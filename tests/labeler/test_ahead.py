"""Calls made ahead of who asks."""

import time
from concurrent.futures import ThreadPoolExecutor

from labeler.ahead import map_ahead


def test_calls_ahead_are_in_order_and_not_too_many() -> None:
    """However slow the first is; and who stops asking has no more of them made."""
    made: list[int] = []

    def call(number: int) -> int:
        made.append(number)
        time.sleep(0.02 * (number % 3 == 0))
        return number * 2

    with ThreadPoolExecutor(4) as pool:
        assert list(map_ahead(pool, call, range(10), num_ahead=4)) == list(range(0, 20, 2))
        made.clear()
        results = map_ahead(pool, call, range(1000), num_ahead=4)
        assert [next(results), next(results)] == [0, 2]
    assert max(made) <= 5
