"""Images in order of their file names, any number of them, in bounded memory. Must not know where they come from.

Runs of a fixed number of images are sorted in memory and written to files in the machine's temporary folder; at the end
they are merged block by block. Images of equal names keep the order in which they were found.
"""

import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.refs import REFS_SCHEMA, ImageRef
from labeler.errors import StorageError
from labeler.temporary import make_temporary_folder

_IMAGES_PER_RUN = 400_000
_IMAGES_PER_BLOCK = 16_384

RUN_SCHEMA = REFS_SCHEMA.append(pa.field("found", pa.int64()))
"""The columns of a run: images in order of ``file_name`` and, where that is equal, of ``found``, which no two share."""

_ORDER = [("file_name", "ascending"), ("found", "ascending")]
_get_values = attrgetter(*REFS_SCHEMA.names)


class SortedRefs:
    """Images in order; iterate over it, as often as wanted, for record batches of ``REFS_SCHEMA``.

    The folder of its files goes when it does, or when the process ends.
    """

    def __init__(self, runs: Sequence[Path | pa.Table], *, folder: str | None, limit: int | None) -> None:
        self._runs = runs
        self._limit = limit
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        left = self._limit
        for rows in merge_runs([_read_blocks(run) for run in self._runs]):
            chosen = rows if left is None else rows.slice(0, min(left, rows.num_rows))  # Arrow takes no larger integers.
            yield from chosen.select(REFS_SCHEMA.names).combine_chunks().to_batches()
            left = None if left is None else left - chosen.num_rows
            if left == 0:
                return


def sort_refs(
    refs: Iterable[ImageRef], *, limit: int | None = None, on_progress: Callable[[int], None] | None = None
) -> tuple[SortedRefs, int]:
    """Sort by file name, in order of bytes; also how many there are, at most ``limit``.

    Raises:
        StorageError: the machine's temporary folder is full.
    """
    runs: list[Path | pa.Table] = []
    folder: str | None = None
    num_images = 0
    try:
        for table in _gather_runs(refs):
            num_images += table.num_rows
            if on_progress is not None:
                on_progress(num_images)
            if not runs and table.num_rows < _IMAGES_PER_RUN:
                runs.append(table)  # The only one: it stays in memory.
                break
            folder = folder or make_temporary_folder("listing-")
            runs.append(_spill(table, Path(folder) / f"{len(runs)}.arrow"))
    except BaseException:
        shutil.rmtree(folder or "", ignore_errors=True)
        raise
    count = num_images if limit is None else min(limit, num_images)
    return SortedRefs(runs, folder=folder, limit=limit), count


def _gather_runs(refs: Iterable[ImageRef]) -> Iterator[pa.Table]:
    """Sorted tables of a run's length. Blocks become columns at once, for those take a tenth of the objects' memory."""
    blocks: list[pa.RecordBatch] = []
    rows: list[tuple[Any, ...]] = []
    found = 0
    for ref in refs:
        rows.append(_get_values(ref))
        if len(rows) == _IMAGES_PER_BLOCK or len(blocks) * _IMAGES_PER_BLOCK + len(rows) == _IMAGES_PER_RUN:
            blocks.append(_rows_to_batch(rows, found=found))
            found, rows = found + len(rows), []
            if sum(map(len, blocks)) >= _IMAGES_PER_RUN:
                yield pa.Table.from_batches(blocks).sort_by(_ORDER)
                blocks = []
    if rows:
        blocks.append(_rows_to_batch(rows, found=found))
    if blocks:
        yield pa.Table.from_batches(blocks).sort_by(_ORDER)


def _rows_to_batch(rows: Sequence[tuple[Any, ...]], *, found: int) -> pa.RecordBatch:
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), REFS_SCHEMA.types, strict=True)]
    return pa.RecordBatch.from_arrays([*columns, pa.array(range(found, found + len(rows)), pa.int64())], schema=RUN_SCHEMA)


def _spill(table: pa.Table, path: Path) -> Path:
    try:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, RUN_SCHEMA, options=options) as writer:
            writer.write_table(table, max_chunksize=_IMAGES_PER_BLOCK)
    except OSError as error:
        raise StorageError(f"the listing can't be sorted in {path.parent}: {error}") from error
    return path


class _Run:
    """One sorted run while it is merged: the block that is next, and where in it."""

    def __init__(self, blocks: Iterator[pa.RecordBatch]) -> None:
        self._blocks = blocks
        self.block: pa.RecordBatch | None = next(self._blocks, None)

    def key_at(self, index: int) -> tuple[bytes, int]:
        """What row ``index`` of the block is sorted by."""
        assert self.block is not None  # Runs at their end are not asked.
        return _key(self.block, index)

    def take_until(self, last: tuple[bytes, int]) -> pa.RecordBatch:
        """The rows up to and with this key, which are then done."""
        block = self.block
        assert block is not None
        low, high = 0, block.num_rows
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if _key(block, middle) <= last else (low, middle)
        self.block = block.slice(low) if low < block.num_rows else next(self._blocks, None)
        return block.slice(0, low)


def _key(block: pa.RecordBatch, index: int) -> tuple[bytes, int]:
    return block.column("file_name")[index].as_buffer().to_pybytes(), block.column("found")[index].as_py()


def _read_blocks(run: Path | pa.Table) -> Iterator[pa.RecordBatch]:
    if isinstance(run, Path):
        return iter(pa.ipc.open_stream(pa.OSFile(str(run))))
    return iter(run.to_batches(max_chunksize=_IMAGES_PER_BLOCK))


def merge_runs(runs: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[pa.Table]:
    """All rows of sorted runs (blocks of ``RUN_SCHEMA``, none of them empty) in order, some at a time, never none.

    Each step gives what no later block of any run can come before, so that of each run one block is held.
    """
    alive = [run for run in map(_Run, runs) if run.block is not None]
    while alive:
        last = min(run.key_at(run.block.num_rows - 1) for run in alive if run.block is not None)
        pieces = [run.take_until(last) for run in alive]
        rows = pa.Table.from_batches(pieces, schema=RUN_SCHEMA)
        yield rows.take(pc.sort_indices(rows, sort_keys=_ORDER)) if len(alive) > 1 else rows
        alive = [run for run in alive if run.block is not None]
