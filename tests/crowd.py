"""Threads side by side, counted. Must not know what they do."""

import threading
import time


class Crowd:
    """How many threads were in ``with crowd`` at once: ``most``. Each stays a fiftieth of a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self._now, self.most)
        time.sleep(0.02)

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._now -= 1
