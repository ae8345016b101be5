"""Images -> the frozen plan of a run: ``run.json``, ``model/`` and ``plan/``; refuses a resume that does not fit.

Must not know workers or how a shard is labeled. A run is frozen once: first the model folder, then the plan's parts,
then ``run.json``, which makes them count. From then on a resume reads the plan and never lists the input again.
"""

import bisect
import functools
import hashlib
import importlib.metadata
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.options import Selection
from jobs.sources import ImageRef, Listing
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
    parts = tuple(_write_plan(output, listing.refs, images_per_shard=images_per_shard))
    record = RunRecord(
        **dict(spec),
        schema_version=tables.SCHEMA_VERSION,
        images_per_shard=images_per_shard,
        num_images=len(listing.refs),
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
    found = rows.slice(begin, record.images_per_shard).to_pylist()
    return [_row_to_image(row) for row in found if row["shard"] == shard]


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


def _write_plan(output: str, refs: Sequence[ImageRef], *, images_per_shard: int) -> Iterator[PlanPart]:
    """Parts of whole shards, each shard's rows one after the other."""
    shards_per_part = max(1, _IMAGES_PER_PLAN_PART // images_per_shard)
    images_per_part = shards_per_part * images_per_shard
    for number, begin in enumerate(range(0, len(refs), images_per_part)):
        chosen = refs[begin : begin + images_per_part]
        rows = [
            _image_to_row(ref, image_id=index + 1, shard=index // images_per_shard)
            for index, ref in enumerate(chosen, start=begin)
        ]
        batch = pa.RecordBatch.from_pylist(rows, schema=tables.PLAN_SCHEMA)
        data = tables.encode_part([batch], table="plan", metadata={})
        storage.write_bytes(storage.join(output, tables.part_name("plan", number)), data)
        yield PlanPart(
            first_shard=number * shards_per_part,
            num_shards=-(-len(chosen) // images_per_shard),
            num_images=len(chosen),
            sha256=hashlib.sha256(data).hexdigest(),
        )


@functools.lru_cache(maxsize=2)
def _read_plan_part(output: str, number: int) -> pa.Table:
    """A frozen part, so it may be kept: neighbouring shards are read from the same one."""
    return tables.read_part(output, table="plan", number=number)


def _image_to_row(ref: ImageRef, *, image_id: int, shard: int) -> dict[str, Any]:
    columns = {name: getattr(ref, name) for name in ImageRef.__slots__}
    return {"image_id": image_id, "shard": shard, **columns}


def _row_to_image(row: dict[str, Any]) -> PlannedImage:
    return PlannedImage(row["image_id"], ImageRef(**{name: row[name] for name in ImageRef.__slots__}))


def _read_tool_versions() -> dict[str, str]:
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # A checkout that is not installed, or another build of a package: the record says what it can.
    return versions
