"""``python -m jobs``: options and words, exit codes and signals. Must not know how the work is done.

What each command does, in order, is readable here; every step stands in another module.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from jobs.arguments import complete_retry_failed, parse_kinds, read_config
from jobs.bench_cli import bench
from jobs.driver import Outcome, complete_run
from jobs.extension import find_new_images
from jobs.lease import LeaseHolder
from jobs.options import JobOptions, Selection
from jobs.plan import RunRecord, RunSpec, check_resume, describe_model, extend_run, freeze_run, read_run
from jobs.prompts import check_prompt_flags, describe_prompts, match_prompts
from jobs.refs import Listing
from jobs.report import (
    describe_duration,
    describe_progress,
    describe_prompt_counts,
    describe_report,
    read_report,
    write_failures,
)
from jobs.shards import Tally
from jobs.sources import list_images
from jobs.tallies import read_standing
from labeler import storage, tables
from labeler.checkpoints import CHECKPOINTS
from labeler.errors import OptionsError, StorageError, UnknownModelError
from labeler.flags import (
    EXIT_DONE,
    EXIT_STOPPED,
    EXIT_USAGE,
    MaskFlags,
    PresetFlag,
    given_options,
    refuse_empty_arguments,
    run_command,
    tell_default,
)
from labeler.model_folder import read_model_info
from labeler.models import find_model
from labeler.options import PromptOptions, check_given_options, name_prices, resolve_mask_options
from labeler.retries import RETRIES_OF_A_MINUTE, use_retries
from labeler.signals import catch_signals
from labeler.stores import find_bucket, parse_store_options, use_store_options

EXIT_TOO_MANY_FAILED = 3

ENGINE = "labeler.engine:Engine"
"""What computes, by import path: workers import it themselves."""

_NUM_WORTH_SAYING = 100_000  # Shorter listings are over before anybody wonders.
_SECONDS_BETWEEN_LINES = 5.0

_EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 stopped, the same command goes on, or verify found a fault; 2 usage, nothing to do, or a resume "
    "that does not fit; 3 finished, but more images failed than --max-error-rate, or all prompts; 130, 143 interrupted, as 1."
)

app = App(
    name="python -m jobs",
    help="Label a whole folder of images, on all CPUs of a machine or of a Ray cluster. Stops and goes on as you like.",
    help_epilogue=_EXIT_CODES_HELP,
    version_flags=(),
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=(), show_default=tell_default),
)
app.command(bench)

# Where `ray job submit --working-dir` unpacks a checkout.
_RAYS_OWN_FOLDER = "/runtime_resources/working_dir_files/"

_WHERE = Group("Input and output", sort_key=1)
_WHICH = Group("Which images (frozen at the first start)", sort_key=2)
_CHANGE_MASKS = Group("Options that change masks (frozen at the first start)", sort_key=3)
_CHANGE_NO_MASKS = Group("Options that do not change masks", sort_key=4)


@app.command
def label(
    *,
    input: Annotated[str, Parameter(group=_WHERE)],
    output: Annotated[str, Parameter(group=_WHERE)],
    model: Annotated[str, Parameter(group=_WHERE)],
    prompts: Annotated[str | None, Parameter(group=_WHERE)] = None,
    config: Annotated[Path | None, Parameter(group=_WHERE)] = None,
    dry_run: Annotated[bool, Parameter(group=_WHERE)] = False,
    extend: Annotated[bool, Parameter(group=_WHICH)] = False,
    retry_failed: Annotated[str | None, Parameter(group=_CHANGE_NO_MASKS)] = None,
    selection: Annotated[Selection | None, Parameter(name="*", group=_WHICH)] = None,
    preset: Annotated[PresetFlag, Parameter(group=_CHANGE_MASKS)] = None,
    mask_flags: Annotated[MaskFlags | None, Parameter(name="*", group=_CHANGE_MASKS)] = None,
    prompt_options: Annotated[PromptOptions | None, Parameter(name="*", group=_CHANGE_MASKS)] = None,
    job: Annotated[JobOptions | None, Parameter(name="*", group=_CHANGE_NO_MASKS)] = None,
) -> int:
    """Find the masks of every image in a folder. The same command again goes on where it stopped.

    ```
    python -m jobs label --input photos --output labels --model vit_b
    python -m jobs label --input photos --output labels --model vit_b --workers 8
    python -m jobs label --input photos --prompts boxes.json --output labels --model vit_b
    ```

    Args:
        input: A folder, a pattern (`*`, `**`, `{00..19}`), a list, COCO file, .tar or .parquet of images (jobs/INPUT.md).
        output: The folder to write: Parquet tables (masks, images, with --prompts also prompts), and all that a resume needs.
        model: A folder made by `labeler convert`, its URI, vit_b, vit_l, vit_h, vit_t (MobileSAM), or `tiny` (embedded, weak).
        prompts: A file of boxes or points, COCO .json, .csv, .jsonl or .parquet: one mask for each, and no others. Names
            images by file name, else by URI.
        config: A TOML file that sets any option of this page; what is typed wins.
        dry_run: Count the images, time a few, say how long the job would take, and write nothing.
        extend: Also label images that came into the input since the run was started. Not with --limit, --sample or --prompts.
        retry_failed: Label failed images again: all, or those of these kinds, such as `timeout,worker_died`. All: missing,
            forbidden, changed, unsupported, truncated, corrupt, too_large, too_small, timeout, worker_died, internal.
    """
    selection, job = selection or Selection(), job or JobOptions()
    given = given_options(mask_flags)
    check_given_options(given, preset=preset)
    check_prompt_flags(prompts, prompt_options, given=given, preset=preset, extend=extend)
    kinds = parse_kinds(retry_failed)
    if extend and (selection.limit or selection.sample):
        raise OptionsError("--extend: a run of a --limit or --sample has only those images; name a new --output without it")
    input, place = storage.path_to_uri(input), storage.path_to_uri(output)  # Absolute: workers stand elsewhere.
    if _RAYS_OWN_FOLDER in place:
        raise OptionsError(
            f"--output {output}: in a submitted job that is a folder of Ray's own, on one machine, which is deleted in the "
            "end; name an absolute path that every machine sees, or a bucket"
        )
    if selection.images_root is not None:
        selection = selection.model_copy(update={"images_root": storage.path_to_uri(selection.images_root)})
    places = {
        "input": find_bucket(selection.images_root or input),
        "output": place,
        "model": model if "://" in model else None,
    }
    use_store_options(parse_store_options(job.storage_options, places=places))
    with catch_signals(SIGINT, SIGTERM) as signals, LeaseHolder(place, say=_say) as lease:
        use_retries(job.storage_retries, is_stopped=lambda: bool(signals.received))
        try:
            record = read_run(place)
            if record is not None and extend and not dry_run:
                lease.take()
                record = _read_run(place)  # From now on nobody else extends it.
            listing = list_images(input, selection=selection, on_progress=_say_progress) if record is None else None
            folder = _find_model(model, record=record, output=place)
            info = read_model_info(folder)
            options = resolve_mask_options(given, preset=preset, model_defaults=info.defaults)
            _say(*name_prices(options))
            asked = describe_prompts(prompts, options=prompt_options, frozen=record.prompts if record else None)
            known = describe_model(info, name=model)
            spec = RunSpec(input=input, selection=selection, options=options, model=known, prompts=asked)
            if record is not None:
                check_resume(record, spec, output=output)
            if record is not None and extend:
                listing = list_images(input, selection=selection, on_progress=_say_progress, may_be_empty=True)
                listing = find_new_images(listing, output=place, record=record)
            if listing is not None:
                _say(_describe_listing(listing))
            with match_prompts(asked, listing=listing, say=_say) as matched:
                if dry_run:
                    what = {"record": record, "listing": listing, "prompts": matched}
                    return _estimate(spec, output=place, job=job, folder=folder, retry_kinds=kinds, **what)
                if listing is not None and record is None:
                    lease.take()
                    _refuse_frozen_meanwhile(place)
                    record = freeze_run(
                        place,
                        spec,
                        check=lease.check,
                        images_per_shard=job.images_per_shard,
                        listing=listing,
                        model_folder=folder,
                        prompts=matched,
                    )
                    listing = None
            if listing is not None and record is not None and listing.num_images:
                record = extend_run(place, record, listing=listing, check=lease.check)
            assert record is not None  # It stood, or was frozen just now.
            outcome = complete_run(
                record, output=place, job=job, engine=ENGINE, signals=signals, lease=lease, retry_kinds=kinds, say=_say
            )
            print(describe_report(outcome.report, output=output))
            return _judge(outcome, record, job)
        except KeyboardInterrupt:
            _say(f"stopped by {signals.received[0].name}; run the same command again to go on")
            return 128 + signals.received[0]


@app.command
def status(output: str, /, *, failures: Path | None = None, storage_options: tuple[str, ...] = ()) -> int:
    """Say how far a run is, from its storage alone: while it runs, after it stopped, from any machine.

    Args:
        output: The run's folder.
        failures: A CSV file to write: every image that failed so far, and why.
        storage_options: KEY=VALUE for fsspec, as `label` takes them.
    """
    record = _open_run(output, storage_options)
    progress, shards, tally = _read_standing(output)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.errors.items()))
    print(f"{tally.num_images} of {record.num_images} images done in {len(shards)} of {record.num_shards} shards")
    print(f"{tally.num_masks} masks; {tally.num_failed} images failed{f': {kinds}' if kinds else ''}")
    if tally.prompts:
        print(describe_prompt_counts(tally.prompts))
    if progress is not None:
        print(describe_progress(progress, num_done=tally.num_images))
    if failures is not None:
        num_rows = write_failures(output, shards, failures)
        print(f"wrote {failures}: {num_rows} images")
    return EXIT_DONE


@app.command
def verify(output: str, /, *, repair: bool = False, storage_options: tuple[str, ...] = ()) -> int:
    """Prove a run whole: every file readable, every image one row, every mask measured again.

    The plan, the model, masks and prompts are hashed. No hash of the images parts stands anywhere: their rows are held
    against plan and masks, so that a changed second or warning in them is not noticed.

    Args:
        output: The run's folder.
        repair: Remove the parts that are at fault, so that `label`, run again, makes them anew.
        storage_options: KEY=VALUE for fsspec, as `label` takes them.
    """
    from jobs.verify import find_faults, remove_parts

    record = _open_run(output, storage_options)
    num_faults = num_removed = 0
    parts: set[str] = set()
    with LeaseHolder(output, say=_say) as lease:
        if repair:
            lease.take()
            record = _read_run(output)  # From now on nobody else extends it.
        for fault in find_faults(output, record, on_progress=_watch_shards(record.num_shards)):
            num_faults += 1
            parts.update(fault.parts)
            print(f"fault: {fault}")
        if repair and parts:
            lease.check()
            num_removed = remove_parts(output, parts)
    num_done = len(tables.list_committed_shards(output))
    if num_done < record.num_shards:
        print(f"the run is not finished: {num_done} of {record.num_shards} shards are committed; the label command goes on")
    if repair and parts:
        print(f"removed {num_removed} parts; run the same label command again to make them anew")
    if num_faults:
        print(f"{num_faults} faults in {output}")
    if num_faults or num_done < record.num_shards:
        return EXIT_STOPPED
    print(f"{output} is whole: {record.num_images} images in {record.num_shards} shards, each file and row as it should be")
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's); returns its exit code."""
    tokens = complete_retry_failed(list(sys.argv[1:] if arguments is None else arguments))
    try:
        app.config = [*read_config(tokens), refuse_empty_arguments]
    except OptionsError as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    return run_command(app, tokens)


def _refuse_frozen_meanwhile(output: str) -> None:
    if read_run(output) is not None:
        raise StorageError(f"another driver has begun a run in {output} meanwhile; run the same command again to go on with it")


def _judge(outcome: Outcome, record: RunRecord, job: JobOptions) -> int:
    if outcome.given_up:
        _say(f"{len(outcome.given_up)} shards were given up; run the same command again to try them once more")
        return EXIT_STOPPED
    if outcome.tally.num_images != record.num_images:
        raise RuntimeError(f"the run has {outcome.tally.num_images} rows for {record.num_images} images")
    error_rate = outcome.tally.num_failed / record.num_images
    if error_rate > job.max_error_rate:
        _say(f"{error_rate:.1%} of the images failed, more than --max-error-rate {job.max_error_rate:g}")
        return EXIT_TOO_MANY_FAILED
    prompts = outcome.tally.prompts
    if prompts and not prompts.get("ok"):
        _say(f"none of the {sum(prompts.values())} prompts has a mask; the table prompts says why")
        return EXIT_TOO_MANY_FAILED
    return EXIT_DONE


def _estimate(spec: RunSpec, *, output: str, job: JobOptions, retry_kinds: frozenset[str], **known: Any) -> int:
    """The dry run, which writes nothing."""
    from jobs.estimate import estimate_job

    num_again = _read_standing(output)[2].count_errors(retry_kinds) if retry_kinds else 0
    if num_again:
        print(f"{num_again} failed images would be labeled again, of which nobody knows how long they take")
    _say("timing a few images ...")
    estimate = estimate_job(spec, output=output, job=job, engine=ENGINE, **known)
    if not estimate.num_images:
        print("nothing else is left to do; nothing was written" if num_again else "nothing is left to do")
        return EXIT_DONE
    print(f"{estimate.num_images} images, {estimate.seconds_an_image:.2f} s an image here, on {job.cpus_per_worker} CPUs")
    num_workers = f"{estimate.num_workers} worker{'' if estimate.num_workers == 1 else 's'}"
    print(f"about {estimate.total_s / 3600:.2f} hours with {num_workers}; nothing was written")
    return EXIT_DONE


def _find_model(name: str, *, record: RunRecord | None, output: str) -> Path:
    """The model folder. A run that was started with the same published model has it: no machine needs to convert again."""
    published = CHECKPOINTS.get(name)
    if record and published and published.sha256 == record.model.checkpoint_sha256 and record.model.name == name:
        return find_model(storage.join(output, "model"))
    try:
        return find_model(name)
    except UnknownModelError:
        if record is None or record.model.name != storage.encode_name(name):
            raise
        _say(f"there is no {name} here any more; the run's own copy is used")
        return find_model(storage.join(output, "model"))


def _open_run(output: str, storage_options: Sequence[str]) -> RunRecord:
    """The run, with the store options that ``label`` was given: those of other places are of no use here."""
    use_store_options(parse_store_options(storage_options, places={"input": None, "output": output, "model": None}))
    use_retries(RETRIES_OF_A_MINUTE)
    return _read_run(output)


def _read_standing(output: str) -> tuple[Mapping[str, Any] | None, list[int], Tally]:
    """``progress.json``, the shards that are committed, and their tally. In this order: see ``tallies.read_standing``."""
    progress = read_report(output, "progress.json")
    return progress, *read_standing(output, tables.list_committed_shards(output), progress=progress)


def _read_run(output: str) -> RunRecord:
    record = read_run(output)
    if record is None:
        raise OptionsError(f"{output} holds no run: there is no run.json in it")
    return record


def _describe_listing(listing: Listing) -> str:
    skipped = ", ".join(f"{count} {kind}" for kind, count in listing.skipped.items())
    text = f"{listing.num_images} images to label" if listing.num_images else "nothing new to label"
    text += f"; {listing.num_known} are in the run already" if listing.num_known else ""
    text += f"; {listing.num_not_selected} more are not selected" if listing.num_not_selected else ""
    text += f"; {listing.num_damaged} archives can't be read to their end, an error row each" if listing.num_damaged else ""
    return text + (f"; skipped, for they are no images by name: {skipped}" if skipped else "")


def _say_progress(num_images: int) -> None:
    if num_images >= _NUM_WORTH_SAYING:
        _say(f"{num_images} images found so far ...")


def _watch_shards(num_shards: int) -> Callable[[int], None]:
    """What is told how many shards were looked at, and says it every few seconds."""
    start_s = line_s = time.monotonic()

    def watch(num_seen: int) -> None:
        nonlocal line_s
        now_s = time.monotonic()
        if now_s >= line_s + _SECONDS_BETWEEN_LINES:
            line_s = now_s
            left_s = (num_shards - num_seen) * (now_s - start_s) / num_seen
            _say(f"{num_seen}/{num_shards} shards looked at, {describe_duration(left_s)} left")

    return watch


def _say(*texts: str) -> None:
    for text in texts:
        print(text, file=sys.stderr, flush=True)
