"""SIGINT and SIGTERM while a command works. Must not know what is interrupted."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Signals:
    """SIGINT and SIGTERM, in the order in which they came. They raise KeyboardInterrupt, unless they are only noted."""

    received: list[signal.Signals] = field(default_factory=list)
    only_noted: bool = False


@contextmanager
def catch_signals(*numbers: signal.Signals) -> Iterator[Signals]:
    """Catch these signals while this lasts. A second one of a kind ends the process at once.

    Only the main thread can; in others this does nothing.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def interrupt(number: int, _frame: object) -> None:
        signals.received.append(signal.Signals(number))
        signal.signal(number, signal.SIG_DFL)
        if not signals.only_noted:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
