"""``python -m jobs``: options and words, exit codes and signals. Must not know how the work is done.

What each command does, in order, is readable here; every step stands in another module.
"""

import csv
import itertools
import signal
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter
from cyclopts.config import Dict

from jobs.options import JobOptions, Selection
from jobs.plan import (
    PlannedImage,
    RunRecord,
    RunSpec,
    check_resume,
    describe_model,
    freeze_run,
    read_run,
    read_shard,
)
from jobs.report import Watch, describe_report, read_report
from jobs.shards import Tally, tally_shard
from jobs.sources import Listing, list_images
from labeler import storage, tables
from labeler.checkpoints import CHECKPOINTS
from labeler.errors import LabelerError, OptionsError, StorageError
from labeler.flags import EXIT_DONE, EXIT_STOPPED, EXIT_USAGE, MaskFlags, given_options, run_command
from labeler.models import find_model, read_model_info
from labeler.options import Preset, resolve_mask_options

EXIT_TOO_MANY_FAILED = 3

ENGINE = "labeler.engine:Engine"
"""What computes, by import path: workers import it themselves."""

_NUM_TIMED_IMAGES = 3

_EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 stopped, the same command goes on, or verify found a fault; 2 usage, nothing to do, or a resume "
    "that does not fit; 3 finished, but more images failed than --max-error-rate; 130, 143 interrupted, same as 1."
)

app = App(
    name="python -m jobs",
    help="Label a whole folder of images, on all CPUs of a machine or of a Ray cluster. Stops and goes on as you like.",
    help_epilogue=_EXIT_CODES_HELP,
    version_flags=(),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
)

_WHERE = Group("Input and output", sort_key=1)
_WHICH = Group("Which images (frozen at the first start)", sort_key=2)
_CHANGE_MASKS = Group("Options that change masks (frozen at the first start)", sort_key=3)
_CHANGE_NO_MASKS = Group("Options that don't", sort_key=4)


@app.command
def label(
    *,
    input: Annotated[str, Parameter(group=_WHERE)],
    output: Annotated[str, Parameter(group=_WHERE)],
    model: Annotated[str, Parameter(group=_WHERE)],
    config: Annotated[Path | None, Parameter(group=_WHERE)] = None,
    dry_run: Annotated[bool, Parameter(group=_WHERE)] = False,
    selection: Annotated[Selection | None, Parameter(name="*", group=_WHICH)] = None,
    preset: Annotated[Preset | None, Parameter(group=_CHANGE_MASKS)] = None,
    mask_flags: Annotated[MaskFlags | None, Parameter(name="*", group=_CHANGE_MASKS)] = None,
    job: Annotated[JobOptions | None, Parameter(name="*", group=_CHANGE_NO_MASKS)] = None,
) -> int:
    """Find the masks of every image in a folder. The same command again goes on where it stopped.

    Examples::

        python -m jobs label --input photos --output labels --model tiny
        python -m jobs label --input photos --output labels --model vit_b --workers 8 --cpus-per-worker 2

    Args:
        input: The folder of images; listed once, with all its subfolders.
        output: The folder to write: two Parquet tables, masks and images, and all that a resume needs.
        model: A folder made by `labeler convert`, its URI, `tiny` (comes with this package), or vit_b, vit_l, vit_h.
        config: A TOML file that sets any option of this page; what is typed wins.
        dry_run: Count the images, time a few, say how long the job would take, and write nothing.
        preset: A named set of the options below: sa1b is how the dataset SA-1B was made. Single options win over it.
    """
    selection, job = selection or Selection(), job or JobOptions()
    given = given_options(mask_flags)
    resolve_mask_options(given)  # A bad option is said before anything is listed or loaded.
    input, place = storage.path_to_uri(input), storage.path_to_uri(output)  # Absolute: workers stand elsewhere.
    with _catch_signals() as signals:
        try:
            record = read_run(place)
            listing = list_images(input, selection=selection) if record is None else None
            folder = _find_model(model, record=record, output=place)
            info = read_model_info(folder)
            options = resolve_mask_options(given, preset=preset, model_defaults=info.defaults)
            spec = RunSpec(input=input, selection=selection, options=options, model=describe_model(info, name=model))
            if record is not None:
                check_resume(record, spec, output=output)
            if dry_run:
                return _estimate(spec, record=record, listing=listing, output=place, folder=folder, job=job)
            if listing is not None:
                _say(_describe_listing(listing))
                record = freeze_run(place, spec, images_per_shard=job.images_per_shard, listing=listing, model_folder=folder)
            assert record is not None  # It stood, or was frozen just now.
            return _run(record, output=place, shown=output, job=job, signals=signals)
        except KeyboardInterrupt:
            _say(f"stopped by {signals.received[0].name}; run the same command again to go on")
            return 128 + signals.received[0]


@app.command
def status(output: str, /, *, failures: Path | None = None) -> int:
    """Say how far a run is, from its storage alone: while it runs, after it stopped, from any machine.

    Args:
        output: The run's folder.
        failures: A CSV file to write: every image that failed so far, and why.
    """
    record = _read_run(output)
    shards = sorted(tables.list_committed_shards(output))
    tally = sum((tally_shard(output, shard) for shard in shards), Tally())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.errors.items()))
    print(f"{tally.num_images} of {record.num_images} images done in {len(shards)} of {record.num_shards} shards")
    print(f"{tally.num_masks} masks; {tally.num_failed} images failed{f': {kinds}' if kinds else ''}")
    progress = read_report(output, "progress.json")
    if progress is not None:
        print(f"{progress['state']} as of {progress['updated']}, {progress['num_workers']} workers, ", end="")
        print(f"{progress['images_per_s']:.2f} images/s, {progress['masks_per_s']:.1f} masks/s")
    if failures is not None:
        num_rows = _write_failures(output, shards, failures)
        print(f"wrote {failures}: {num_rows} images")
    return EXIT_DONE


@app.command
def verify(output: str, /) -> int:
    """Prove a run whole: every file readable and the one that was written, every image one row, every mask measured again.

    Args:
        output: The run's folder.
    """
    from jobs.verify import find_faults

    record = _read_run(output)
    num_faults = 0
    num_done = len(tables.list_committed_shards(output))
    if num_done < record.num_shards:
        print(f"the run is not finished: {num_done} of {record.num_shards} shards are committed")
    for fault in find_faults(output, record):
        num_faults += 1
        print(f"fault: {fault}")
    if num_faults:
        print(f"{num_faults} faults in {output}")
        return EXIT_STOPPED
    print(f"{output} is whole: {record.num_images} images in {record.num_shards} shards, each file and row as it should be")
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's); returns its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app.config = _read_config(tokens)
    except OptionsError as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    return run_command(app, tokens)


def _run(record: RunRecord, *, output: str, shown: str, job: JobOptions, signals: "_Signals") -> int:
    """Label what is not committed yet, report, and judge."""
    committed = sorted(tables.list_committed_shards(output) & set(range(record.num_shards)))
    before = sum((tally_shard(output, shard) for shard in committed), Tally())
    todo = sorted(set(range(record.num_shards)) - set(committed))
    if committed:
        _say(f"going on: {before.num_images} of {record.num_images} images are done")
    if job.images_per_shard != record.images_per_shard and "images_per_shard" in job.model_fields_set:
        _say(f"--images-per-shard stays {record.images_per_shard}: the plan is frozen")
    watch = Watch(output, record=record, before=before)
    if todo:
        from jobs.run import label_shards  # Ray, which no other command needs.

        state = "stopped"
        signals.only_noted = True  # An exception raised anywhere inside Ray can get lost there.
        try:
            with watch.show():
                given_up = label_shards(
                    todo, output=output, options=job, watch=watch, engine=ENGINE, is_stopped=lambda: bool(signals.received)
                )
            state = "stopped" if given_up else "finished"
        except LabelerError:
            _say("stopped; what is committed stays, and the same command goes on once this is mended")
            raise
        finally:
            report = watch.finish(state)
        print(describe_report(report, output=shown))
        if given_up:
            _say(f"{len(given_up)} shards were given up; run the same command again to try them once more")
            return EXIT_STOPPED
    else:
        print(describe_report(read_report(output, "report.json") or watch.make_report("finished"), output=shown))
    return _judge(watch.tally, record, job)


def _judge(tally: Tally, record: RunRecord, job: JobOptions) -> int:
    if tally.num_images != record.num_images:
        raise RuntimeError(f"the run has {tally.num_images} rows for {record.num_images} images")
    error_rate = tally.num_failed / record.num_images
    if error_rate > job.max_error_rate:
        _say(f"{error_rate:.1%} of the images failed, more than --max-error-rate {job.max_error_rate:g}")
        return EXIT_TOO_MANY_FAILED
    return EXIT_DONE


def _estimate(
    spec: RunSpec, *, record: RunRecord | None, listing: Listing | None, output: str, folder: Path, job: JobOptions
) -> int:
    """The dry run: a few images timed on this machine, in this process."""
    from jobs.run import count_usable_cpus
    from jobs.worker import ImageLabeler, load_predictor, time_images

    if listing is not None:
        images = [PlannedImage(number, ref) for number, ref in enumerate(listing.refs, start=1)]
        _say(_describe_listing(listing))
    else:
        assert record is not None  # There is a listing, or a run that needs none.
        done = tables.list_committed_shards(output)
        todo = (shard for shard in range(record.num_shards) if shard not in done)
        images = [image for shard in todo for image in read_shard(output, record, shard)]
    if not images:
        print("nothing is left to do")
        return EXIT_DONE
    step = max(1, len(images) // _NUM_TIMED_IMAGES)
    _say("timing a few images ...")
    predictor = load_predictor(folder, options=spec.options, threads=job.cpus_per_worker, engine=ENGINE)
    labeler = ImageLabeler(spec.input, options=spec.options, predictor=predictor, retries=job.retries)
    seconds_an_image = time_images(labeler, images[::step][:_NUM_TIMED_IMAGES])
    num_workers = max(1, count_usable_cpus() // job.cpus_per_worker) if job.workers == "auto" else job.workers
    total_s = len(images) * seconds_an_image / num_workers
    print(f"{len(images)} images, {seconds_an_image:.2f} s an image on {job.cpus_per_worker} CPUs")
    print(f"about {total_s / 3600:.2f} hours with {num_workers} workers; nothing was written")
    return EXIT_DONE


def _find_model(name: str, *, record: RunRecord | None, output: str) -> Path:
    """The model folder. A run that was started with the same official model has it: no machine needs to convert again."""
    official = CHECKPOINTS.get(name)
    if record and official and official.sha256 == record.model.checkpoint_sha256 and record.model.name == name:
        return find_model(storage.join(output, "model"))
    return find_model(name)


def _read_run(output: str) -> RunRecord:
    record = read_run(output)
    if record is None:
        raise OptionsError(f"{output} holds no run: there is no run.json in it")
    return record


def _write_failures(output: str, shards: Sequence[int], target: Path) -> int:
    columns = ["image_id", "file_name", "uri", "error_kind", "error_message"]
    rows = (
        row
        for shard in shards
        for row in tables.read_part(output, table="images", number=shard, columns=columns).to_pylist()
        if row["error_kind"] is not None
    )
    num_rows = 0
    try:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in rows:
                writer.writerow(row)
                num_rows += 1
    except OSError as error:
        raise StorageError(f"{target} can't be written: {error.strerror}") from error
    return num_rows


def _read_config(tokens: Sequence[str]) -> list[Dict]:
    """What ``--config`` names, for cyclopts to put below what is typed."""
    path = next((b for a, b in itertools.pairwise(tokens) if a == "--config"), None)
    path = next((token.partition("=")[2] for token in tokens if token.startswith("--config=")), path)
    if path is None:
        return []
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionsError(f"--config: can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise OptionsError(f"--config: {path} is not TOML: {error}") from error
    return [Dict(content, use_commands_as_keys=False, allow_unknown=False, source=path)]


def _describe_listing(listing: Listing) -> str:
    skipped = ", ".join(f"{count} {kind}" for kind, count in listing.skipped.items())
    text = f"{len(listing.refs)} images to label"
    text += f"; {listing.num_not_selected} more are not selected" if listing.num_not_selected else ""
    return text + (f"; skipped, for they are no images by name: {skipped}" if skipped else "")


@dataclass(slots=True)
class _Signals:
    """SIGINT and SIGTERM, in the order in which they came. They raise KeyboardInterrupt, unless they are only noted."""

    received: list[signal.Signals] = field(default_factory=list)
    only_noted: bool = False


@contextmanager
def _catch_signals() -> Iterator[_Signals]:
    """Catch SIGINT and SIGTERM while this lasts. A second one ends the process at once."""
    signals = _Signals()

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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
