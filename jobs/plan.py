"""Images -> the frozen plan of a run: ``run.json``, ``model/`` and ``plan/``; refuses a resume that does not fit.

Must not know workers or how a shard is labeled. A run is frozen once: first the model folder, then the plan's parts,
then ``run.json``, which makes them count. From then on a resume reads the plan and never lists the input again.
"""

import bisect
import functools
import hashlib
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.options import Selection
from jobs.refs import ImageRef, Listing, batch_to_refs
from labeler import storage, tables
from labeler.errors import OptionsError, StorageError
from labeler.models import ModelInfo, model_sha256, read_model_info
from labeler.options import MaskOptions, fingerprint

logger = logging.getLogger(__name__)

_IMAGES_PER_PLAN_PART = 65_536
_TOOLS = ("sam-labeler", "numpy", "numba", "openvino", "pillow", "pyarrow", "pycocotools", "ray")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Record):
    """Which model a run uses. ``name`` is what was typed; two names of the same model are the same model."""

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


class PlanPart(_Record):
    """One file of the plan: which shards it lists."""

    first_shard: int
    num_shards: int
    num_images: int
    sha256: str


class RunRecord(RunSpec):
    """The content of ``run.json``."""

    schema_version: int
    images_per_shard: int
    num_images: int
    num_shards: int
    skipped: dict[str, int]
    fingerprint: str
    plan: tuple[PlanPart, ...]
    plan_sha256: str
    tools: dict[str, str]

    @property
    def metadata(self) -> dict[str, str]:
        """What every part of this run says in its file metadata."""
        return tables.make_metadata(self.options, model_sha256=self.model.sha256)


class PlannedImage(NamedTuple):
    """One row of the plan."""

    image_id: int
    ref: ImageRef


def describe_model(info: ModelInfo, *, name: str) -> ModelRecord:
    """A model folder's ``model.json`` as a run records it."""
    return ModelRecord(
        name=name,
        model_type=info.model_type,
        sha256=model_sha256(info),
        checkpoint_sha256=info.checkpoint_sha256,
        weights=info.weights,
    )


def freeze_run(output: str, spec: RunSpec, *, images_per_shard: int, listing: Listing, model_folder: Path) -> RunRecord:
    """Write the model, the plan and last ``run.json``. Killed before that, nothing was frozen and the next try starts anew.

    Raises:
        OptionsError: the output holds parts that no ``run.json`` explains.
        StorageError: the output can't be written.
    """
    if tables.list_parts(output, table="masks") or tables.list_parts(output, table="images"):
        raise OptionsError(f"{output} holds masks or images parts but no run.json; name an empty --output")
    _copy_model(model_folder, output)
    parts = tuple(write_plan(output, listing, images_per_shard=images_per_shard))
    record = RunRecord(
        **dict(spec),
        schema_version=tables.SCHEMA_VERSION,
        images_per_shard=images_per_shard,
        num_images=listing.num_images,
        num_shards=sum(part.num_shards for part in parts),
        skipped=dict(listing.skipped),
        fingerprint=fingerprint(spec.options, model_sha256=spec.model.sha256),
        plan=parts,
        plan_sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        tools=_read_tool_versions(),
    )
    storage.write_bytes(storage.join(output, "run.json"), record.model_dump_json(indent=2).encode() + b"\n")
    return record


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
        return RunRecord.model_validate_json(data)
    except ValidationError as error:
        raise OptionsError(f"{uri} is not a run this version can read: {str(error).splitlines()[0]}") from error


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
            "Repeat the first command to go on with it, or name a new --output."
        )


def read_shard(output: str, record: RunRecord, shard: int) -> list[PlannedImage]:
    """The images of one shard, in order of id."""
    number = bisect.bisect_right([part.first_shard for part in record.plan], shard) - 1
    rows = _read_plan_part(output, number)
    begin = (shard - record.plan[number].first_shard) * record.images_per_shard
    chosen = rows.slice(begin, record.images_per_shard)
    chosen = chosen.filter(pc.equal(chosen["shard"], shard)).combine_chunks()
    refs = (ref for batch in chosen.to_batches() for ref in batch_to_refs(batch))
    return [PlannedImage(image_id, ref) for image_id, ref in zip(chosen["image_id"].to_pylist(), refs, strict=True)]


def _compare(record: RunRecord, spec: RunSpec) -> Iterator[str]:
    if record.input != spec.input:
        yield f"--input: {record.input} -> {spec.input}"
    old, new = record.model, spec.model
    # Converting the same checkpoint twice need not give equal bytes; the model is the same.
    same_checkpoint = old.checkpoint_sha256 is not None and old.checkpoint_sha256 == new.checkpoint_sha256
    if old.sha256 != new.sha256 and not (old.name == new.name and same_checkpoint and old.weights == new.weights):
        yield f"--model: {old.name} ({old.sha256[:12]}) -> {new.name} ({new.sha256[:12]})"
    yield from _compare_fields(record.selection, spec.selection)
    yield from _compare_fields(record.options, spec.options)


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


def write_plan(output: str, listing: Listing, *, images_per_shard: int) -> Iterator[PlanPart]:
    """Parts of whole shards, each shard's rows one after the other; no more than one part is held at a time."""
    shards_per_part = max(1, _IMAGES_PER_PLAN_PART // images_per_shard)
    images_per_part = shards_per_part * images_per_shard
    for number, refs in enumerate(_cut(listing.source, num_rows=images_per_part)):
        index = pa.array(range(number * images_per_part, number * images_per_part + refs.num_rows), pa.int64())
        ids = {"image_id": pc.add(index, 1), "shard": pc.divide(index, images_per_shard)}
        columns = [ids[name] if name in ids else refs[name].combine_chunks() for name in tables.PLAN_SCHEMA.names]
        batch = pa.RecordBatch.from_arrays(columns, schema=tables.PLAN_SCHEMA)
        data = tables.encode_part([batch], table="plan", metadata={})
        storage.write_bytes(storage.join(output, tables.part_name("plan", number)), data)
        yield PlanPart(
            first_shard=number * shards_per_part,
            num_shards=-(-refs.num_rows // images_per_shard),
            num_images=refs.num_rows,
            sha256=hashlib.sha256(data).hexdigest(),
        )


def _cut(batches: Iterable[pa.RecordBatch], *, num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of this length, but for the last."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        while sum(part.num_rows for part in held) >= num_rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, num_rows)
            held = table.slice(num_rows).to_batches()
    if any(part.num_rows for part in held):
        yield pa.Table.from_batches(held)


@functools.lru_cache(maxsize=2)
def _read_plan_part(output: str, number: int) -> pa.Table:
    """A frozen part, so it may be kept: neighbouring shards are read from the same one."""
    return tables.read_part(output, table="plan", number=number)


def _read_tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # A checkout that is not installed, or another build of a package: the record says what it can.
    return versions
