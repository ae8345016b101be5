"""A planned run, from where it stands to its end: what is left, the workers at it, the report. Must not know flags or words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.lease import LeaseHolder
from jobs.options import JobOptions
from jobs.plan import RunRecord
from jobs.report import Watch, read_report
from jobs.shards import Tally
from jobs.tallies import find_failed_shards, read_tally
from labeler import storage, tables
from labeler.errors import LabelerError
from labeler.signals import Signals


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the report, the rows of the whole run, and the shards whose workers died too often."""

    report: dict[str, Any]
    tally: Tally
    given_up: Sequence[int] = ()


def complete_run(
    record: RunRecord,
    *,
    output: str,
    job: JobOptions,
    engine: str,
    signals: Signals,
    lease: LeaseHolder,
    retry_kinds: frozenset[str],
    say: Callable[[str], None],
) -> Outcome:
    """Label what is not committed yet, and what failed where that is asked for.

    Args:
        record: the run.
        output: its folder, by a name that every machine understands.
        job: how it is worked at.
        engine: what computes, by import path.
        signals: what this process received; from now on only noted.
        lease: this process's claim on the folder, taken where anything is left to do or to write.
        retry_kinds: the kinds of error whose images are labeled again.
        say: told in a sentence what a person should know.

    Raises:
        KeyboardInterrupt, StorageError, ModelError, WorkerStoppedError: see ``run.label_shards``; the report is written.
    """
    committed = _list_committed(output, record)
    if len(committed) < record.num_shards or retry_kinds:
        lease.take()
        committed = _list_committed(output, record)
    redone = find_failed_shards(output, committed, kinds=retry_kinds)
    progress, report = read_report(output, "progress.json"), read_report(output, "report.json") if committed else None
    before = read_tally(output, committed, progress=progress)
    todo = sorted((set(range(record.num_shards)) - committed) | set(redone))
    num_again = before.count_errors(retry_kinds)
    if redone:
        storage.delete(storage.join(output, "progress.json"))  # It counts shards that are about to change.
        say(f"labeling {num_again} failed images of {len(redone)} shards again")
    if committed:
        say(f"going on: {before.num_images} of {record.num_images} images are done")
    if job.images_per_shard != record.images_per_shard and "images_per_shard" in job.model_fields_set:
        say(f"--images-per-shard stays {record.images_per_shard}: the plan is frozen")
    earlier = next((told for told in (progress, report) if told and told.get("images_per_s")), None)
    watch = Watch(
        output,
        record=record,
        before=before,
        shards_before=committed,
        redone=redone,
        num_again=num_again,
        earlier=earlier,
    )
    if not todo:
        if report is None or not _tell_end(record, report, progress):  # Whoever committed the last shard was killed before it.
            lease.take()
            report = watch.finish("finished", check=lease.check)
        return Outcome(report, watch.tally)

    from jobs.run import label_shards  # Ray, which nothing else here needs.

    state = "stopped"
    signals.only_noted = True  # An exception raised anywhere inside Ray can get lost there.
    try:
        with watch.show():
            given_up = label_shards(
                todo,
                output=output,
                options=job,
                watch=watch,
                engine=engine,
                lease=lease,
                again=dict.fromkeys(redone, retry_kinds),
                is_stopped=lambda: bool(signals.received),
            )
        state = "stopped" if given_up else "finished"
    except LabelerError:
        say("stopped; what is committed stays, and the same command goes on once this is mended")
        raise
    finally:
        report = watch.finish(state, check=lease.check)
    return Outcome(report, watch.tally, given_up)


def _tell_end(record: RunRecord, *files: Mapping[str, Any] | None) -> bool:
    """Whether the report, and ``progress.json`` where there is one, tell of a run that is finished, with all its images."""
    ends = [(file.get("state"), file.get("num_done")) for file in files if file is not None]
    return all(end == ("finished", record.num_images) for end in ends)


def _list_committed(output: str, record: RunRecord) -> set[int]:
    return tables.list_committed_shards(output) & set(range(record.num_shards))
