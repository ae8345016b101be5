"""Images -> the frozen plan of a run: ``run.json``, ``model/`` and ``plan/``; refuses a resume that does not fit.

Must not know workers or how a shard is labeled. A run is frozen once: first the model folder, then the plan's parts,
then ``run.json``, which makes them count. From then on a resume reads the plan and never lists the input again. An
extension writes parts after those that stand, then ``run.json`` anew; until that is done the old run is the run.
"""

import bisect
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.options import Selection
from jobs.parts import PlanPart, write_plan
from jobs.patterns import may_be_pattern
from jobs.prompts import MatchedPrompts, PromptsPlan, PromptsSpec, compare_prompts, identify
from jobs.refs import ImageRef, Listing, batch_to_refs
from jobs.sources import find_root, may_be_list
from labeler import storage, tables
from labeler.checkpoints import CHECKPOINTS
from labeler.errors import OptionsError, StorageError, StorageRefusedError
from labeler.model_folder import ModelInfo, model_sha256, read_model_info
from labeler.options import MaskOptions, fingerprint

logger = logging.getLogger(__name__)

_TOOLS = ("sam-labeler", "numpy", "numba", "openvino", "pillow", "pyarrow", "pycocotools", "ray")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Record):
    """Which model a run uses. ``name`` is what was typed, as tables hold names; two names of one model are the same model."""

    name: str
    model_type: str
    sha256: str
    checkpoint_sha256: str | None
    weights: str


class RunSpec(_Record):
    """What a person asks for and a resume must repeat: together it decides every value of the masks table."""

    input: str
    selection: Selection
    options: MaskOptions
    model: ModelRecord
    prompts: PromptsSpec | None = None


class Extension(_Record):
    """What was added to a run after its first start: from which part of the plan on, and what was listed."""

    first_part: int
    num_images: int
    num_damaged: int
    skipped: dict[str, int]


class RunRecord(RunSpec):
    """The content of ``run.json``. What was counted in the listing is the first one's; see ``Extension``."""

    schema_version: int
    images_per_shard: int
    num_images: int
    num_shards: int
    num_damaged: int = 0
    skipped: dict[str, int]
    fingerprint: str
    plan: tuple[PlanPart, ...]
    plan_sha256: str
    extensions: tuple[Extension, ...] = ()
    prompts_plan: PromptsPlan | None = None
    tools: dict[str, str]

    @property
    def metadata(self) -> dict[str, str]:
        """What every part of this run says in its file metadata."""
        return tables.make_metadata(self.options, model_sha256=self.model.sha256, prompts=identify(self.prompts))


class PlannedImage(NamedTuple):
    """One row of the plan."""

    image_id: int
    ref: ImageRef


def describe_model(info: ModelInfo, *, name: str) -> ModelRecord:
    """A model folder's ``model.json`` as a run records it."""
    return ModelRecord(
        name=storage.encode_name(name),  # It may be a path with bytes that are not UTF-8, which JSON has not.
        model_type=info.model_type,
        sha256=model_sha256(info),
        checkpoint_sha256=info.checkpoint_sha256,
        weights=info.weights,
    )


def freeze_run(
    output: str,
    spec: RunSpec,
    *,
    images_per_shard: int,
    listing: Listing,
    model_folder: Path,
    prompts: MatchedPrompts | None = None,
    check: Callable[[], None] = lambda: None,
) -> RunRecord:
    """Write the model, the plan and last ``run.json``. Killed before that, nothing was frozen and the next try starts anew.

    Args:
        output: the run's folder.
        spec: what was asked for.
        images_per_shard: how many images are committed together.
        listing: the images.
        model_folder: the model's, on this machine.
        prompts: what is asked about them, in a run with prompts.
        check: called before ``run.json`` is written; raises where this process may not write to the folder any more.

    Raises:
        OptionsError: the output holds parts that no ``run.json`` explains.
        StorageError: the output can't be written.
    """
    if tables.list_parts(output, table="masks") or tables.list_parts(output, table="images"):
        raise OptionsError(f"{output} holds masks or images parts but no run.json; name an empty --output")
    _copy_model(model_folder, output)
    named = prompts.name_images(listing) if prompts else listing
    parts = tuple(write_plan(output, named, images_per_shard=images_per_shard))
    sizes = [part.num_shards for part in parts]
    record = RunRecord(
        **dict(spec),
        schema_version=tables.SCHEMA_VERSION,
        images_per_shard=images_per_shard,
        num_images=listing.num_images,
        num_shards=sum(sizes),
        num_damaged=listing.num_damaged,
        skipped=dict(listing.skipped),
        fingerprint=fingerprint(spec.options, model_sha256=spec.model.sha256, prompts=identify(spec.prompts)),
        plan=parts,
        plan_sha256=hash_plan(parts),
        prompts_plan=prompts.write(output, images_per_shard=images_per_shard, shards_of_parts=sizes) if prompts else None,
        tools=_read_tool_versions(),
    )
    check()
    _write_record(output, record)
    return record


def extend_run(output: str, record: RunRecord, *, listing: Listing, check: Callable[[], None]) -> RunRecord:
    """Add images to a run: new parts of the plan, with ids and shards after the others, and last a new ``run.json``.

    Killed before that, the run is what it was: the parts beyond its plan do not count, and the next try replaces them.

    Args:
        output: the run's folder.
        record: the run.
        listing: the images to add, at least one.
        check: called before ``run.json`` is replaced; raises where this process may not write to the folder any more.

    Raises:
        OptionsError: parts of shards that were never planned lie in the output.
        StorageError: the output can't be written.
    """
    for table in ("masks", "images"):
        if any(number >= record.num_shards for number in tables.list_parts(output, table=table)):
            raise OptionsError(f"{output}/{table} holds parts that are none of this run; `verify --repair` removes them")
    parts = (*record.plan, *write_plan(output, listing, images_per_shard=record.images_per_shard, after=record.plan))
    extension = Extension(
        first_part=len(record.plan),
        num_images=listing.num_images,
        num_damaged=listing.num_damaged,
        skipped=dict(listing.skipped),
    )
    extended = record.model_copy(
        update={
            "num_images": sum(part.num_images for part in parts),
            "num_shards": sum(part.num_shards for part in parts),
            "plan": parts,
            "plan_sha256": hash_plan(parts),
            "extensions": (*record.extensions, extension),
        }
    )
    check()
    _write_record(output, extended)
    return extended


def read_run(output: str) -> RunRecord | None:
    """The run that stands in this folder, or None where none was frozen.

    Raises:
        OptionsError: another version of this program wrote it.
        StorageError: it can't be read.
    """
    uri = storage.join(output, "run.json")
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise StorageError(f"{uri} may not be read: permission denied") from error
    try:
        record = RunRecord.model_validate_json(data)
    except ValidationError as error:
        raise OptionsError(f"{uri} is not a run this version can read: {str(error).splitlines()[0]}") from error
    tables.check_schema_version(record.schema_version, uri=uri)
    return record


def check_resume(record: RunRecord, spec: RunSpec, *, output: str) -> None:
    """Refuse to go on with anything that would put two kinds of masks, or two lists of images, into one run.

    Raises:
        OptionsError: says each difference, old -> new.
    """
    differences = list(_compare(record, spec))
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise OptionsError(
            f"{output} holds a run that was started differently:\n{lines}\n"
            "Repeat the first command to go on with it (with --extend, if images that are new in its input are to be added), "
            "or name a new --output."
        )


def count_shard_images(record: RunRecord, shard: int) -> int:
    """How many images a shard has."""
    part = record.plan[find_part(record, shard)]
    return min(record.images_per_shard, part.num_images - (shard - part.first_shard) * record.images_per_shard)


def read_shard(output: str, record: RunRecord, shard: int) -> list[PlannedImage]:
    """The images of one shard, in order of id. All have the columns that the run keeps: null where an image has none.

    Raises:
        StorageError: the plan can't be read, or is not the one that ``run.json`` names.
    """
    number = find_part(record, shard)
    rows = _read_plan_part(output, number, record.plan[number].sha256)
    begin = (shard - record.plan[number].first_shard) * record.images_per_shard
    chosen = rows.slice(begin, record.images_per_shard)
    chosen = chosen.filter(pc.equal(chosen["shard"], shard)).combine_chunks()
    nothing = json.dumps(dict.fromkeys(record.selection.keep_columns)) if record.selection.keep_columns else None
    found = (ref for batch in chosen.to_batches() for ref in batch_to_refs(batch))
    refs = (replace(ref, kept=nothing) if ref.kept is None else ref for ref in found)
    return [PlannedImage(image_id, ref) for image_id, ref in zip(chosen["image_id"].to_pylist(), refs, strict=True)]


def find_images_root(output: str, record: RunRecord) -> str:
    """The place that must be there, and not empty, for the run's images to be there.

    Of a list that is the folder which its images share. They are in order: what the first and the last share, all do.
    Images of a list that are no files of this machine have no such folder: the list itself stands for them.
    """
    root = record.selection.images_root or record.input
    if not may_be_pattern(record.input) and (root != record.input or not may_be_list(root)):
        return root
    first = read_shard(output, record, 0)[0].ref
    if record.input in first.uri:  # A folder, an archive or a Parquet file of images, even if called like a pattern or a list.
        return root
    root = find_root(record.input, selection=record.selection)
    if root != record.input or not may_be_list(root):
        return root
    end = record.extensions[0].first_part if record.extensions else len(record.plan)
    last = read_shard(output, record, record.plan[end - 1].first_shard + record.plan[end - 1].num_shards - 1)[-1].ref
    folders = [path.parent for path in map(storage.uri_to_path, (first.uri, last.uri)) if path is not None]
    return storage.path_to_uri(os.path.commonpath(folders)) if len(folders) == 2 else root


def _compare(record: RunRecord, spec: RunSpec) -> Iterator[str]:
    if record.input != spec.input:
        yield f"--input: {record.input} -> {spec.input}"
    old, new = record.model, spec.model
    # Two machines' conversions of a published checkpoint need not be equal bytes; in a folder anything else may differ.
    is_same_published = old.name in CHECKPOINTS and (old.name, old.checkpoint_sha256, old.weights) == (
        new.name,
        new.checkpoint_sha256,
        new.weights,
    )
    if old.sha256 != new.sha256 and not is_same_published:
        yield f"--model: {old.name} ({old.sha256[:12]}) -> {new.name} ({new.sha256[:12]})"
    yield from _compare_fields(record.selection, spec.selection)
    yield from _compare_fields(record.options, spec.options)
    yield from compare_prompts(record.prompts, spec.prompts)


def _compare_fields(old: BaseModel, new: BaseModel) -> Iterator[str]:
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"--{name.replace('_', '-')}: {_shorten(before)} -> {_shorten(after)}"


def _shorten(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _copy_model(folder: Path, output: str) -> None:
    """What the model needs and no more; ``model.json`` last, which names the rest."""
    for name in [*sorted(read_model_info(folder).files), "model.json"]:
        storage.write_bytes(storage.join(output, "model", name), storage.read_bytes(str(folder / name)))


def find_part(record: RunRecord, shard: int) -> int:
    """The number of the part of the plan that lists a shard."""
    return bisect.bisect_right(record.plan, shard, key=lambda part: part.first_shard) - 1


def hash_plan(parts: Iterable[PlanPart]) -> str:
    """The sha256 (hex) of a plan, from those of its parts."""
    return hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()


def _write_record(output: str, record: RunRecord) -> None:
    storage.write_bytes(storage.join(output, "run.json"), record.model_dump_json(indent=2).encode() + b"\n")


@functools.lru_cache(maxsize=2)
def _read_plan_part(output: str, number: int, sha256: str) -> pa.Table:
    """A frozen part, so it may be kept: neighbouring shards are read from the same one."""
    uri = tables.locate_part(output, "plan", number)
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{uri} can't be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StorageRefusedError(f"{uri} is not the plan that {output}/run.json names")
    return tables.decode_part(data, name=uri)


def _read_tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # A checkout that is not installed, or another build of a package: the record says what it can.
    return versions
