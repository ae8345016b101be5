"""A listing -> the plan's parts: every image with its id and its shard. Must not know what else a run freezes."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from jobs.refs import Listing
from labeler import storage, tables

_IMAGES_PER_PLAN_PART = 65_536


class PlanPart(BaseModel):
    """One file of the plan: which shards it lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_shard: int
    num_shards: int
    num_images: int
    sha256: str


def write_plan(output: str, listing: Listing, *, images_per_shard: int, after: Sequence[PlanPart] = ()) -> Iterator[PlanPart]:
    """Parts of whole shards, each shard's rows one after the other; no more than one part is held at a time.

    Args:
        output: the run's folder.
        listing: what to plan.
        images_per_shard: how many images a shard has; the last one may have less.
        after: the parts that stand already: numbers, shards and ids go on after theirs.
    """
    shards_per_part = max(1, _IMAGES_PER_PLAN_PART // images_per_shard)
    images_per_part = shards_per_part * images_per_shard
    num_images_before = sum(part.num_images for part in after)
    num_shards_before = sum(part.num_shards for part in after)
    for number, refs in enumerate(_cut(listing.source, num_rows=images_per_part)):
        index = pa.array(range(number * images_per_part, number * images_per_part + refs.num_rows), pa.int64())
        ids = {
            "image_id": pc.add(index, num_images_before + 1),
            "shard": pc.add(pc.divide(index, images_per_shard), num_shards_before),
        }
        columns = [ids[name] if name in ids else refs[name].combine_chunks() for name in tables.PLAN_SCHEMA.names]
        batch = pa.RecordBatch.from_arrays(columns, schema=tables.PLAN_SCHEMA)
        data = tables.encode_part([batch], table="plan", metadata={})
        storage.write_bytes(tables.locate_part(output, "plan", len(after) + number), data)
        yield PlanPart(
            first_shard=num_shards_before + number * shards_per_part,
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
