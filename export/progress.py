"""How far an export is, for the person who waits: a bar on a terminal, else a line every few seconds.

Must not know formats: it is told what is done, image by image.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from export.selection import Report, Watch

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPDATES = 0.2


@contextmanager
def show_progress(num_images: int) -> Iterator[Watch]:
    """Something to tell of every image, while this lasts. ``num_images``: what the run holds."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("images, {task.fields[rate]:.0f} masks/s"), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    start_s = time.monotonic()
    pause_s = _SECONDS_BETWEEN_UPDATES if console.is_terminal else _SECONDS_BETWEEN_LINES
    due_s = start_s + pause_s
    with bar:
        task = bar.add_task("export", total=num_images, rate=0.0)

        def watch(report: Report) -> None:
            nonlocal due_s
            now_s = time.monotonic()
            if now_s < due_s:
                return
            due_s = now_s + pause_s
            rate = report.num_masks / (now_s - start_s)
            bar.update(task, completed=report.num_seen, rate=rate)
            if not console.is_terminal:
                print(f"{report.num_seen}/{num_images} images, {rate:.0f} masks/s", file=sys.stderr, flush=True)

        yield watch
