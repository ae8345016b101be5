"""Is a run whole? Every file read, every row matched, every mask measured. Must not know how it was made.

All files are hashed but the images parts, whose hash stands nowhere: of them the rows are matched with the plan and the masks.
Trusts nothing but ``run.json``: the plan must have the hash it names, each image of the plan exactly one row, each row
its masks, each mask the box, area and size that pycocotools finds in its run lengths. What can't be read is not known to
be at fault: a store that does not answer ends the proof.
"""

import functools
import hashlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from jobs.asking import read_prompts
from jobs.plan import PlannedImage, RunRecord, hash_plan, read_shard
from jobs.reading import may_be_looked_at_again
from jobs.verify_prompts import check_prompt_rows, check_prompts_plan
from labeler import rle, storage, tables
from labeler.ahead import map_ahead
from labeler.errors import ERROR_KINDS, LabelerError, ModelError, PartDamagedError, StorageError
from labeler.limits import count_usable_cpus
from labeler.model_folder import model_sha256, read_model_info
from labeler.models import find_model
from labeler.retries import RETRIES_OF_A_MINUTE, use_retries
from labeler.stores import StoreOptions, get_store_options, use_store_options

_TABLES: tuple[tables.TableName, ...] = ("plan", "masks", "images")
_TABLES_OF_PROMPTS: tuple[tables.TableName, ...] = ("prompts_plan", "prompts")
_FROM_PLAN = ("image_id", "uri", "file_name", "source_id")
_LOOKS = ("size_bytes", "etag")
_SHARDS_A_PROCESS = 8  # With less to do a process is not worth its start.


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a run: a sentence, and the parts to remove so that a rerun mends it."""

    text: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def find_faults(
    output: str, record: RunRecord, *, on_progress: Callable[[int], None] = lambda num_shards: None
) -> Iterator[Fault]:
    """Each thing that is wrong with a run, as a sentence that names the file. Nothing where the run is whole.

    Args:
        output: the run's folder.
        record: the run.
        on_progress: told after each shard how many were looked at.

    Raises:
        StorageError: the store does not answer, or refuses: nobody can say.
        LabelerError: one of the processes that look at many shards died.
    """
    try:
        yield from _find_faults(output, record, on_progress)
    except PermissionError as error:
        raise StorageError(f"{error.filename} may not be read: {error.strerror}") from error


def remove_parts(output: str, parts: Iterable[str]) -> int:
    """Take away what ``find_faults`` named, so that the next run makes it again; how many were there."""
    num_removed = 0
    storage.delete(storage.join(output, "progress.json"))  # It counts what is about to go.
    for name in sorted(parts):  # "images" sorts before the others: without its images part a shard does not count.
        uri = storage.join(output, *name.split("/"))
        num_removed += storage.exists(uri)
        storage.delete(uri)
    return num_removed


def _find_faults(output: str, record: RunRecord, on_progress: Callable[[int], None]) -> Iterator[Fault]:
    plan_faults = [*_check_plan(output, record), *check_prompts_plan(output, record)]
    yield from map(Fault, plan_faults)
    yield from map(Fault, _check_model(output, record))
    for table in (*_TABLES, *(_TABLES_OF_PROMPTS if record.prompts else ())):
        yield from _check_names(output, record, table)
    if plan_faults:
        return  # Without the plan nobody can say which rows are right.
    for shard, faults in enumerate(_check_shards(output, record)):
        # The images part first: from then on the shard does not count.
        parts = tuple(tables.part_name(table, shard) for table in _list_tables(record))
        yield from (Fault(text, parts) for text in faults)
        on_progress(shard + 1)


def _check_plan(output: str, record: RunRecord) -> Iterator[str]:
    for number, part in enumerate(record.plan):
        uri = tables.locate_part(output, "plan", number)
        try:
            if hashlib.sha256(storage.read_bytes(uri)).hexdigest() != part.sha256:
                yield f"{uri} is not the plan that run.json names"
        except FileNotFoundError:
            yield f"{uri} is missing"
    if hash_plan(record.plan) != record.plan_sha256:
        yield "run.json contradicts itself: plan_sha256 is not that of its parts"
    if sum(part.num_images for part in record.plan) != record.num_images:
        yield "run.json contradicts itself: num_images is not that of its parts"


def _check_model(output: str, record: RunRecord) -> Iterator[str]:
    try:
        if model_sha256(read_model_info(find_model(storage.join(output, "model")))) != record.model.sha256:
            yield f"{output}/model is not the model that run.json names"
    except ModelError as error:
        yield f"{output}/model: {error}"


def _check_names(output: str, record: RunRecord, table: tables.TableName) -> Iterator[Fault]:
    """Every file of a table's folder is one of its parts: readers of the folder take whatever lies there."""
    num_parts = len(record.plan) if table in ("plan", "prompts_plan") else record.num_shards
    try:
        names = sorted(storage.list_names(storage.join(output, table)))
    except FileNotFoundError:
        names = []
    expected = {tables.part_name(table, number).removeprefix(f"{table}/") for number in range(num_parts)}
    for name in names:
        if table in ("plan", "prompts_plan") and (tables.parse_part_name(name) or 0) >= num_parts:
            continue  # What a start or --extend leaves that was killed: nobody reads it.
        if name not in expected and not name.startswith("."):  # Dotfiles are no data: a killed writer may leave one.
            # What is no part by its name may be dear to someone.
            is_ours = table not in ("plan", "prompts_plan") and tables.parse_part_name(name) is not None
            yield Fault(f"{table}/{name} is not a part of this run", (f"{table}/{name}",) if is_ours else ())


def _list_tables(record: RunRecord) -> tuple[tables.TableName, ...]:
    """Of which a shard has a part each."""
    return ("images", "masks", "prompts") if record.prompts else ("images", "masks")


def _check_shards(output: str, record: RunRecord) -> Iterator[list[str]]:
    """What is wrong with each shard, in order. Of many by a process a CPU: to measure a billion masks takes one CPU days."""
    check = functools.partial(_list_shard_faults, output, record)
    num_processes = min(count_usable_cpus(), record.num_shards // _SHARDS_A_PROCESS)
    if num_processes < 2:
        yield from map(check, range(record.num_shards))
        return
    _begin_forkserver()
    with ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=_begin_process,
        initargs=(get_store_options(),),
    ) as pool:
        try:
            yield from map_ahead(pool, check, range(record.num_shards), num_ahead=2 * num_processes)
        except BrokenProcessPool as error:
            raise LabelerError("a process that looks at shards was killed; is there enough memory?") from error


def _begin_forkserver() -> None:
    """Start the process that forks the others: it has no threads whose locks they would inherit, and ignores Ctrl-C, as they
    then do, for the command answers it. To be called in the main thread.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _begin_process(options: StoreOptions) -> None:
    """A process that checks shards asks the store as the command does, and ends with it, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    use_store_options(options)
    use_retries(RETRIES_OF_A_MINUTE)


def _list_shard_faults(output: str, record: RunRecord, shard: int) -> list[str]:
    return list(_check_shard(output, record, shard))


def _check_shard(output: str, record: RunRecord, shard: int) -> Iterator[str]:
    """What is wrong with a shard. One of which nothing is there is no fault, but work that is left."""
    parts, sha256, missing = {}, {}, []
    for table in _list_tables(record):
        name = tables.part_name(table, shard)
        try:
            data = storage.read_bytes(tables.locate_part(output, table, shard))
            parts[table] = tables.decode_part(data, name=name)
        except FileNotFoundError:
            missing.append(name)
            continue
        except PartDamagedError as error:
            yield str(error)
            continue
        sha256[table] = hashlib.sha256(data).hexdigest()
        schema = tables.make_schema(table, kept=record.selection.keep_columns, prompted=record.prompts is not None)
        if not tables.has_columns(parts[table], schema):
            yield f"{name} has other columns than schema version {tables.SCHEMA_VERSION}"
            del parts[table]
    if len(missing) < len(_list_tables(record)):
        yield from (f"{name} is missing" for name in missing)
    if len(parts) < len(_list_tables(record)):
        return
    names = {table: tables.part_name(table, shard) for table in parts}
    metadata = {table: tables.read_metadata(part) for table, part in parts.items()}
    for table, key in (("masks", tables.MASKS_SHA256), ("prompts", tables.PROMPTS_SHA256)):
        if metadata["images"].pop(key, None) != sha256.get(table):
            yield f"{names.get(table, table)} is not the one that {names['images']} was written for"
    for table in parts:
        if metadata[table] != record.metadata:
            yield f"{names[table]} was made with other options or another model"
    yield from _check_contents(output, record, shard, {table: part.to_pylist() for table, part in parts.items()}, names)


def _check_contents(
    output: str,
    record: RunRecord,
    shard: int,
    rows: Mapping[tables.TableName, list[dict[str, Any]]],
    names: Mapping[tables.TableName, str],
) -> Iterator[str]:
    """The rows of a shard's parts, against the plan and each other."""
    images, masks = rows["images"], rows["masks"]
    yield from (f"{names['images']}: {fault}" for fault in _check_rows(images, read_shard(output, record, shard)))
    yield from (f"{names['masks']}: {fault}" for fault in _check_masks(masks, images))
    planned = read_prompts(output, record, shard)
    if planned is not None:
        faults = check_prompt_rows(rows["prompts"], planned=planned, images=images, masks=masks)
        yield from (f"{names['prompts']}: {fault}" for fault in faults)


def _check_rows(rows: Sequence[dict[str, Any]], planned: Sequence[PlannedImage]) -> Iterator[str]:
    if [row["image_id"] for row in rows] != [image.image_id for image in planned]:
        yield f"{len(rows)} rows are not the {len(planned)} images of the plan, each once and in order"
        return
    for row, image in zip(rows, planned, strict=True):
        who = f"image {row['image_id']} ({row['file_name']})"
        names = _FROM_PLAN if may_be_looked_at_again(image.ref) else (*_FROM_PLAN, *_LOOKS)
        expected = {"image_id": image.image_id, **{name: getattr(image.ref, name) for name in names[1:]}}
        if any(row[name] != expected[name] for name in names):
            yield f"{who} is another image than planned"
        if row["status"] == "ok":
            if row["error_kind"] is not None or not (row["width"] and row["height"]):
                yield f"{who} is ok, but has an error or no size"
        elif row["status"] != "error" or row["error_kind"] not in ERROR_KINDS or row["num_masks"] != 0:
            yield f"{who} has status {row['status']}, error_kind {row['error_kind']}, {row['num_masks']} masks"


def _check_masks(masks: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    num_expected = sum(max(0, row["num_masks"]) for row in rows)  # Not yet as a list: a damaged number may be anything.
    expected = ((row["image_id"], mask_id) for row in rows for mask_id in range(row["num_masks"]))
    found = ((mask["image_id"], mask["mask_id"]) for mask in masks)
    if len(masks) != num_expected or any(a != b for a, b in zip(found, expected, strict=False)):
        yield f"{len(masks)} masks are not the {num_expected} that the images part counts, in order"
        return
    begin = 0
    for row in rows:
        end = begin + row["num_masks"]
        for mask in masks[begin:end]:
            fault = _find_mask_fault(mask, row)
            if fault:
                yield f"mask {mask['mask_id']} of image {row['image_id']} ({row['file_name']}) {fault}"
        begin = end


def _find_mask_fault(mask: dict[str, Any], row: dict[str, Any]) -> str | None:
    """What is wrong with one mask. Its run lengths are added up first: pycocotools trusts them blindly."""
    size, counts = mask["segmentation"]["size"], mask["segmentation"]["counts"]
    image_hw = (row["height"], row["width"])
    if mask["file_name"] != row["file_name"]:
        return f"has the file name {mask['file_name']}"
    if size != list(image_hw):
        return f"has size {size}, but its image {list(image_hw)}"
    try:
        runs = rle.counts_to_runs(counts)
    except ValueError:
        return "has counts that are no run lengths"
    if int(runs.sum()) != image_hw[0] * image_hw[1]:
        return "has run lengths that do not add up to its image"
    if mask["area"] != rle.measure_areas([counts], image_hw=image_hw)[0] or mask["area"] != int(runs[1::2].sum()):
        return f"has area {mask['area']}, but its run lengths say {int(runs[1::2].sum())}"
    if mask["area"] == 0:
        return "is empty"
    box = rle.measure_boxes_xywh([counts], image_hw=image_hw)[0].tolist()
    if mask["bbox"] != box:
        return f"has bbox {mask['bbox']}, but its run lengths say {box}"
    return None
