"""SIGINT and SIGTERM while a command works. Must not know what is interrupted."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Signals:
    """SIGINT and SIGTERM, in the order in which they came. They raise KeyboardInterrupt, unless they are only noted."""

    received: list[signal.Signals] = field(default_factory=list)
    only_noted: bool = False


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Catch SIGINT and SIGTERM while this lasts. A second one ends the process at once."""
    signals = Signals()

    def interrupt(number: int, _frame: object) -> None:
        signals.received.append(signal.Signals(number))
        signal.signal(number, signal.SIG_DFL)
        if not signals.only_noted:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
