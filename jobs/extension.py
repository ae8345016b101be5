"""What an input holds that a run does not know yet: the images that an extension adds. Must not know how it is written.

An image is known by its file name and, where a name comes more than once, by how many of that name came before it. The
old plan's names and the new listing are both in order, so they are gone through side by side, a block of each at a time.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.ordering import RUN_SCHEMA, merge_runs
from jobs.plan import RunRecord
from jobs.refs import REFS_SCHEMA, Listing
from labeler import tables


def find_new_images(listing: Listing, *, output: str, record: RunRecord) -> Listing:
    """Of an input, listed anew, the images that the run in ``output`` does not have.

    Raises:
        StorageError: the run's plan can't be read.
    """
    source = _NewRefs(listing.source, output=output, record=record)
    num_images = sum(batch.num_rows for batch in source)
    return replace(listing, num_images=num_images, num_known=listing.num_images - num_images, source=source)


@dataclass(frozen=True, slots=True)
class _NewRefs:
    """Record batches of ``REFS_SCHEMA``; iterable again."""

    found: Iterable[pa.RecordBatch]
    output: str
    record: RunRecord

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        # Known images have negative numbers as ``found``: so of equal names they come before those that are listed.
        edges = [0, *(extension.first_part for extension in self.record.extensions), len(self.record.plan)]
        known = [_read_known(self.output, self.record, range(*pair)) for pair in itertools.pairwise(edges)]
        group = _Group()
        for rows in merge_runs([_number(self.found), *known]):
            keep, group = _find_new(rows, before=group)
            if keep.any():
                yield from rows.filter(pa.array(keep)).select(REFS_SCHEMA.names).combine_chunks().to_batches()


@dataclass(frozen=True, slots=True)
class _Group:
    """The images of one name that were seen so far."""

    name: str | None = None
    num_known: int = 0
    num_listed: int = 0


def _find_new(rows: pa.Table, *, before: _Group) -> tuple["np.ndarray[tuple[int], np.dtype[np.bool_]]", _Group]:
    """Which rows are new, (N,) bool; and the last name's group, which may go on in the next rows."""
    names = rows["file_name"].combine_chunks()
    is_listed = rows["found"].to_numpy() >= 0
    begins = np.ones(len(names), np.bool_)
    begins[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    group = np.cumsum(begins) - 1
    num_known = np.bincount(group, weights=~is_listed).astype(np.int64)
    listed_so_far = np.cumsum(is_listed)
    first = np.flatnonzero(begins)
    occurrence = listed_so_far - 1 - (listed_so_far[first] - is_listed[first])[group]
    if names[0].as_py() == before.name:
        num_known[0] += before.num_known
        occurrence[group == 0] += before.num_listed
    keep = is_listed & (occurrence >= num_known[group])
    return keep, _Group(names[-1].as_py(), int(num_known[-1]), int(occurrence[-1]) + 1)


def _number(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Listed images, which come in order, with their place as ``found``."""
    begin = 0
    for batch in batches:
        places = pa.array(np.arange(begin, begin + batch.num_rows))
        yield pa.RecordBatch.from_arrays([*batch.columns, places], schema=RUN_SCHEMA)
        begin += batch.num_rows


def _read_known(output: str, record: RunRecord, parts: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """The names of the images that were planned at one time, in order, with negative numbers as ``found``."""
    for number in parts:
        names = tables.read_part(output, table="plan", number=number, columns=["image_id", "file_name"])
        for batch in names.combine_chunks().to_batches():
            places = pc.subtract(batch.column("image_id"), record.num_images + 1)
            known = {"file_name": batch.column("file_name"), "found": places}
            columns = [known.get(field.name, pa.nulls(batch.num_rows, field.type)) for field in RUN_SCHEMA]
            yield pa.RecordBatch.from_arrays(columns, schema=RUN_SCHEMA)
