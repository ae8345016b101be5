"""What a person sees of a run: progress while it goes, ``progress.json``, ``report.json`` and the summary at its end.

Must not know Ray or how shards are labeled: it is told about images and shards as they are done.
"""

import csv
import io
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jobs.events import ImageDone, ShardCommitted
from jobs.plan import RunRecord
from jobs.shards import Tally
from jobs.tallies import ShardSet, ShardTallies, describe_counted
from labeler import storage, tables
from labeler.ahead import READS_AT_ONCE, map_ahead
from labeler.errors import StorageError
from labeler.retries import trying_once
from labeler.tables import STAGES

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_UPDATES = 0.25
_SECONDS_BETWEEN_FILES = 5.0
_SECONDS_BETWEEN_SAMPLES = 60.0
_NUM_SAMPLES = 31  # How it goes now is how it went in the last half hour: workers come and go, and runs take weeks.
_RATES = ("num_workers", "seconds", "images_per_s", "masks_per_s", "peak_memory_bytes")
_SILENT_S = 60.0  # A driver that lives is never silent for so long, nor are clocks so different.


class Watch:
    """Counts what is done and shows it: a bar on a terminal, else a line every few seconds.

    Args:
        output: the run's folder; ``progress.json`` is written there every few seconds.
        record: the run.
        before: the tally of the shards that were committed before this process started.
        shards_before: these shards.
        redone: of these the ones whose failed images are labeled again, and their tallies, which count until they are.
        num_again: how many images that are.
        earlier: the last report of the process before; its rates stand until an image is labeled here.

    Attributes:
        tally: all committed images of the run, earlier ones too.
        num_todo: images to label since this process started; again those of a shard that was dropped and is done anew.
    """

    def __init__(
        self,
        output: str,
        *,
        record: RunRecord,
        before: Tally,
        shards_before: Collection[int] = (),
        redone: Mapping[int, Tally] | None = None,
        num_again: int = 0,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        self.tally = before
        self.num_todo = record.num_images - before.num_images + num_again
        self._output = output
        self._record = record
        self._earlier = earlier or {}
        self._said: set[str] = set()
        self._start_s = time.monotonic()
        self._working_since_s: float | None = None
        self._samples: deque[tuple[float, Tally]] = deque(maxlen=_NUM_SAMPLES)
        self._sample_due_s = self._start_s
        self._labeled = Tally()
        self._redone = ShardTallies(redone)
        self._shards = ShardSet(record.num_shards, set(shards_before) - set(redone or ()))
        self._suspects: dict[int, Tally | None] = {}
        self._in_work = ShardTallies()
        self._num_workers = 0
        self._num_workers_now = 0
        self._peak_memory_bytes = 0
        self._line_due_s = self._start_s + _SECONDS_BETWEEN_LINES
        self._file_due_s = self._start_s
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """A line for people."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def say_once(self, text: str) -> None:
        """A line that is worth it the first time."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    @contextmanager
    def show(self) -> Iterator["Watch"]:
        """Show progress while this lasts."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield self
            return
        columns = (BarColumn(), TextColumn("{task.completed}/{task.total} images"), TextColumn("{task.fields[rates]}"))
        with Progress(*columns, console=console, refresh_per_second=4) as self._bar:
            self._bar.add_task("label", total=self._record.num_images, rates="")
            self._show()
            try:
                yield self
            finally:
                self._show()

    def count_image(self, shard: int, done: ImageDone) -> None:
        """An image of a shard in work has its row."""
        errors = {} if done.error_kind is None else {done.error_kind: 1}
        if shard not in self._redone:  # Else it counts already, until the shard is committed anew.
            self._in_work.add(shard, Tally(num_images=1, num_masks=done.num_masks, errors=errors))
        if done.log is not None:
            logger.error("image %d failed inside this program:\n%s", done.image_id, done.log)

    def count_shard(self, committed: ShardCommitted, *, worker: str = "") -> None:
        """A shard is committed. Told again it counts no second time, until ``forget_shard``."""
        self._in_work.pop(committed.shard)
        if committed.shard in self._shards:
            return
        tally = committed.tally
        self.tally = self.tally - self._redone.pop(committed.shard) + tally
        self._labeled += tally - committed.kept
        self._shards.add(committed.shard)
        if committed.shard in self._suspects:
            self._suspects[committed.shard] = tally
        self._peak_memory_bytes = max(self._peak_memory_bytes, committed.peak_memory_bytes)
        if self._bar is None:
            where = f", by {worker}" if worker else ""
            counts = f"{tally.num_images} images, {tally.num_failed} failed, {tally.num_masks} masks"
            self.say(f"shard {committed.shard} committed: {counts}{where}")

    def forget_shard(self, shard: int) -> None:
        """A shard that more than one worker had was counted, but does not count any more."""
        tally = self._suspects.get(shard)
        if tally is not None:
            self.tally -= tally
            self._shards.discard(shard)
            self.num_todo += tally.num_images

    def drop_shard(self, shard: int) -> None:
        """What was done of a shard in work is lost."""
        self._in_work.pop(shard)
        self._suspects.setdefault(shard, None)

    def tick(self, *, num_workers: int) -> None:
        """Show and save how it stands, where that is due."""
        self._num_workers_now = num_workers
        self._num_workers = max(num_workers, self._num_workers)
        now_s = time.monotonic()
        if num_workers and self._working_since_s is None:
            self._working_since_s = now_s
        if self._working_since_s is not None and now_s >= self._sample_due_s:
            self._sample_due_s = now_s + _SECONDS_BETWEEN_SAMPLES
            self._samples.append((now_s, self._count_here()))
        if now_s >= self._line_due_s:
            self._line_due_s = now_s + (_SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_UPDATES)
            self._show()
        if now_s >= self._file_due_s:
            self._file_due_s = now_s + _SECONDS_BETWEEN_FILES
            self.save("running")

    def describe_rates(self) -> str:
        """One line: speed, failures, time left."""
        work = self._measure_work()
        left_s = work["seconds_left"]
        return (
            f"{work['images_per_s']:.2f} images/s, {work['masks_per_s']:.1f} masks/s, "
            f"{self._count_seen().num_failed} failed, {_describe_left(left_s, has_begun=self._count_here().num_images > 0)}"
        )

    def save(self, state: str) -> None:
        """Write ``progress.json``."""
        with trying_once():  # Whoever watches the workers must not wait for it.
            _write_json(self._output, "progress.json", self._make_progress(state))

    def finish(self, state: str, *, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Write ``progress.json`` and ``report.json`` for the last time; gives the report.

        ``check`` is called before each, and raises where this process may not write to the folder any more.
        """
        report = self.make_report(state)
        # Who goes on with a run that stopped writes them anew; those of a finished one are worth a minute's patience.
        with nullcontext() if state == "finished" else trying_once():
            _write_json(self._output, "progress.json", self._make_progress(state), check=check)
            _write_json(self._output, "report.json", report, check=check)
        return report

    def make_report(self, state: str) -> dict[str, Any]:
        """The figures of the run as they stand.

        Counts and stages are the whole run's; rates are this process's own, from the moment a worker was ready, or those of
        the one before where nothing was labeled here.
        """
        work_s = self._measure_work_s()
        tally, here = self.tally, self._labeled
        labeled = max(1, tally.num_images - tally.num_failed)
        earlier = {} if here.num_images else {name: self._earlier[name] for name in _RATES if name in self._earlier}
        return {
            "schema_version": self._record.schema_version,
            "state": state,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "num_images": self._record.num_images,
            "num_done": tally.num_images,
            "num_failed": tally.num_failed,
            "errors": dict(sorted(tally.errors.items())),
            "prompts": dict(sorted(tally.prompts.items())),
            "num_masks": tally.num_masks,
            "num_workers": self._num_workers,
            "seconds": round(time.monotonic() - self._start_s, 3),
            "images_per_s": round(here.num_images / work_s, 4),
            "masks_per_s": round(here.num_masks / work_s, 4),
            "seconds_per_stage": {
                stage: round(total / labeled, 4) for stage, total in zip(STAGES, tally.stage_seconds, strict=True)
            },
            "peak_memory_bytes": self._peak_memory_bytes,
            "fingerprint": self._record.fingerprint,
            **earlier,
        }

    def _show(self) -> None:
        """How it stands, on the bar or as a line. The bar's thread, which draws it, is given nothing that changes."""
        num_seen = self._count_seen().num_images
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=num_seen, rates=self.describe_rates())
        else:
            self.say(f"{num_seen}/{self._record.num_images} images, {self.describe_rates()}")

    def _make_progress(self, state: str) -> dict[str, Any]:
        """The content of ``progress.json``. Of a run that has ended the rates are the report's."""
        report, work = self.make_report(state), self._measure_work()
        counted = {"counted": describe_counted(self.tally - self._redone.sum, self._shards)}
        return {**report, **work, **counted} if state == "running" else {**work, **report, **counted}

    def _measure_work(self) -> dict[str, Any]:
        """How it went of late, with the images of shards in work; no time left is known where there were none."""
        now_s, here = time.monotonic(), self._count_here()
        since_s, before = self._samples[0] if self._samples else (now_s, Tally())
        seconds = max(1e-9, now_s - since_s)
        num_images = max(0, here.num_images - before.num_images)  # What a dead worker had done is lost.
        left_s = (self.num_todo - here.num_images) * seconds / num_images if num_images else None
        return {
            "num_images_here": here.num_images,
            "num_images_in_work": self._in_work.sum.num_images,
            "num_workers_now": self._num_workers_now,
            "images_per_s": round(num_images / seconds, 4),
            "masks_per_s": round(max(0, here.num_masks - before.num_masks) / seconds, 4),
            "seconds_left": None if left_s is None else round(left_s, 1),
        }

    def _measure_work_s(self) -> float:
        """Seconds since the first worker was ready; never 0."""
        since_s = self._working_since_s
        return 1e-9 if since_s is None else max(1e-9, time.monotonic() - since_s)

    def _count_seen(self) -> Tally:
        """Committed images and those of shards in work."""
        return self.tally + self._in_work.sum

    def _count_here(self) -> Tally:
        """Of these the ones that were labeled by this process's workers."""
        return self._labeled + self._in_work.sum


def describe_report(report: Mapping[str, Any], *, output: str) -> str:
    """The summary at the end of a run, and what to do next."""
    stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in report["seconds_per_stage"].items())
    kinds = ", ".join(f"{count} {kind}" for kind, count in report["errors"].items())
    prompts = describe_prompt_counts(report.get("prompts") or {})
    lines = [
        f"{report['num_done']} of {report['num_images']} images done, {report['num_masks']} masks, "
        f"{report['num_failed']} failed{f' ({kinds})' if kinds else ''}",
        *([prompts] if prompts else []),
        f"{report['images_per_s']:.2f} images/s, {report['masks_per_s']:.1f} masks/s, "
        f"{describe_duration(report['seconds'])} with {report['num_workers']} workers",
        f"seconds an image: {stages}; peak memory of a worker {report['peak_memory_bytes'] / 2**20:.0f} MiB",
        f"output: {output}",
    ]
    if report["state"] == "finished":
        lines += ["next:", f"  python -m jobs verify {output}", f"  python -m export coco {output} coco.json"]
        lines += [f"  python -m export preview {output} preview"]
    return "\n".join(lines)


def describe_progress(progress: Mapping[str, Any], *, num_done: int) -> str:
    """A sentence on how a run goes, or went: ``progress.json``, which is a little older than ``num_done`` committed images."""
    text = f"{progress['state']} as of {progress['updated']}"
    silent_s = (datetime.now(UTC) - datetime.fromisoformat(progress["updated"])).total_seconds()
    rates = f"{progress['images_per_s']:.2f} images/s, {progress['masks_per_s']:.1f} masks/s"
    if progress["state"] != "running":
        return f"{text}: {progress['num_workers']} workers, {rates}"
    if silent_s > _SILENT_S:
        return f"{text}, but silent for {describe_duration(silent_s)}: if it was killed, the same label command goes on"
    num_in_work = max(0, progress["num_done"] + progress["num_images_in_work"] - num_done)
    left = _describe_left(progress.get("seconds_left"), has_begun=progress.get("num_images_here", 0) > 0)
    return f"{text}: {num_in_work} more images in unfinished shards, {progress.get('num_workers_now')} workers, {rates}, {left}"


def _describe_left(left_s: float | None, *, has_begun: bool) -> str:
    if left_s is not None:
        return f"{describe_duration(left_s)} left"
    return "standing still" if has_begun else "starting"


def describe_prompt_counts(counts: Mapping[str, int]) -> str:
    """A sentence on what became of a run's prompts; empty where it has none."""
    if not counts:
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()) if kind != "ok")
    text = f"{counts.get('ok', 0)} of {sum(counts.values())} prompts have their mask"
    return text + (f"; not: {kinds} (the table prompts says why)" if kinds else "")


def describe_duration(seconds: float) -> str:
    """Seconds as a person says them: ``42 s``, ``7 min``, ``3.2 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def read_report(output: str, name: str) -> dict[str, Any] | None:
    """``progress.json`` or ``report.json``, or None where there is none (yet)."""
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(storage.join(output, name)))
    except (FileNotFoundError, ValueError):
        return None
    return content


def write_failures(output: str, shards: Sequence[int], target: Path) -> int:
    """A CSV file of the images that failed in these committed shards, whole or not at all; gives their number.

    Cells are what the tables hold, also where a spreadsheet would take one for a formula: scripts need names to be exact.
    """
    columns = ["image_id", "file_name", "uri", "error_kind", "error_message"]

    def read_failures(shard: int) -> list[dict[str, Any]]:
        try:
            rows = tables.read_part(output, table="images", number=shard, columns=columns).to_pylist()
        except FileNotFoundError:
            return []  # It is made again just now.
        return [row for row in rows if row["error_kind"] is not None]

    num_rows = 0
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        failures = map_ahead(pool, read_failures, shards, num_ahead=READS_AT_ONCE)
        try:
            with _open_csv(target) as file:
                file.write(_to_csv([columns]))
                for rows in failures:
                    file.write(_to_csv([row[name] for name in columns] for row in rows))
                    num_rows += len(rows)
        except OSError as error:
            raise StorageError(f"{target} can't be written: {error.strerror}") from error
    return num_rows


def _open_csv(target: Path) -> AbstractContextManager[storage.Sink]:
    """Whole or not at all, but for what must stay what it is: a link, a pipe or a terminal, such as ``/dev/stdout``."""
    if target.is_symlink() or (target.exists() and not target.is_file()):
        return target.open("wb")
    return storage.open_whole(str(target))


def _to_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _write_json(output: str, name: str, content: Mapping[str, Any], *, check: Callable[[], None] = lambda: None) -> None:
    """That it can't be written is said, not fatal: the masks matter."""
    try:
        check()
        storage.write_bytes(storage.join(output, name), json.dumps(content, indent=2).encode() + b"\n")
    except (StorageError, OSError) as error:
        logger.warning("%s could not be written: %s", name, error)
