"""A committed shard counts, a broken one is found."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores

import jobs.cli
import jobs.verify
from jobs.plan import read_run
from jobs.shards import Tally, read_parts, tally_shard
from jobs.verify import find_faults
from labeler import storage, tables
from labeler.errors import StorageError

LabelHere = Callable[..., Path]


def list_faults(output: Path) -> list[str]:
    record = read_run(str(output))
    assert record is not None
    return [str(fault) for fault in find_faults(str(output), record)]


def test_a_whole_run_has_no_faults(label_here: LabelHere) -> None:
    """And its shards' tallies add up to its images."""
    output = label_here()
    assert list_faults(output) == []
    tally = sum((tally_shard(str(output), shard) for shard in range(3)), Tally())
    assert (tally.num_images, tally.errors) == (12, {"corrupt": 2})
    assert tally.num_masks == pq.read_table(output / "masks").num_rows > 0


def test_the_same_run_twice_is_the_same_bytes(label_here: LabelHere) -> None:
    """Masks parts hold no clock, host or run."""
    first, second = label_here(name="first"), label_here(name="second")
    for path in sorted((first / "masks").iterdir()):
        assert path.read_bytes() == (second / "masks" / path.name).read_bytes()


def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a part's rows and keep its metadata, and the images part's hash right: only the content is wrong."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    if path.parent.name == "masks":
        images = path.parent.parent / "images" / path.name
        table = pq.read_table(images)
        metadata = {**table.schema.metadata, tables.MASKS_SHA256.encode(): hashlib.sha256(path.read_bytes()).hexdigest()}
        pq.write_table(table.replace_schema_metadata(metadata), images)


def spoil_metadata(path: Path) -> None:
    """As a flipped bit does it: what should be a text is none."""
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"labeler.options": b"\xe9"}), path)


def set_row(index: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[index].update(values)


MASKS, IMAGES = "masks/part-0000001.parquet", "images/part-0000001.parquet"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: (run / MASKS).write_bytes((run / MASKS).read_bytes()[:-50]), f"{MASKS} is damaged"),
        (lambda run: (run / IMAGES).write_bytes((run / IMAGES).read_bytes()[:-50]), f"{IMAGES} is damaged"),
        (lambda run: spoil_metadata(run / IMAGES), f"{IMAGES} is damaged"),
        (lambda run: spoil_metadata(run / MASKS), f"{MASKS} is damaged"),
        (lambda run: edit(run / IMAGES, set_row(0, num_masks=2**31 - 1)), "that the images part counts"),
        (lambda run: (run / MASKS).unlink(), f"{MASKS} is missing"),
        (lambda run: (run / IMAGES).unlink(), f"{IMAGES} is missing"),
        (lambda run: shutil.copy(run / "masks/part-0000000.parquet", run / MASKS), f"{MASKS} is not the one"),
        (lambda run: shutil.copy(run / "images/part-0000000.parquet", run / IMAGES), "images of the plan"),
        (lambda run: shutil.copy(run / MASKS, run / "masks/part-0000009.parquet"), "part-0000009.parquet is not a part"),
        (lambda run: (run / "images/notes.txt").write_text("x"), "images/notes.txt is not a part"),
        (lambda run: (run / "plan/part-0000000.parquet").write_bytes(b"x"), "is not the plan"),
        (lambda run: (run / "model/encoder.bin").write_text("x"), "model"),
        (lambda run: edit(run / IMAGES, lambda rows: rows.pop()), "images of the plan"),
        (lambda run: edit(run / IMAGES, lambda rows: rows.append(rows[-1])), "images of the plan"),
        (lambda run: edit(run / IMAGES, set_row(0, uri="file:///else")), "another image than planned"),
        (lambda run: edit(run / IMAGES, set_row(0, error_kind="bad luck")), "error_kind bad luck"),
        (lambda run: edit(run / IMAGES, set_row(4, error_kind="corrupt")), "is ok, but has an error"),
        (lambda run: edit(run / IMAGES, set_row(0, num_masks=1)), "that the images part counts"),
        (lambda run: edit(run / MASKS, lambda rows: rows.pop()), "that the images part counts"),
        (lambda run: edit(run / MASKS, set_row(0, mask_id=7)), "that the images part counts"),
        (lambda run: edit(run / MASKS, set_row(0, area=5)), "has area 5"),
        (lambda run: edit(run / MASKS, set_row(0, bbox=[0.0, 0.0, 1.0, 1.0])), "has bbox"),
        (lambda run: edit(run / MASKS, set_row(0, segmentation={"size": [5, 5], "counts": "1"})), "has size [5, 5]"),
        (lambda run: edit(run / MASKS, lambda rows: rows[0]["segmentation"].update(counts="11")), "do not add up"),
        (lambda run: edit(run / MASKS, lambda rows: rows[0]["segmentation"].update(counts="11d")), "are no run lengths"),
        (lambda run: edit(run / MASKS, set_row(0, file_name="x")), "has the file name x"),
    ],
)
def test_every_fault_is_found_and_named(label_here: LabelHere, break_it: Callable[[Path], Any], words: str) -> None:
    """Truncated, missing, doubled, swapped, foreign, or wrong inside."""
    output = label_here()
    break_it(output)
    faults = list_faults(output)
    assert any(words in fault for fault in faults), faults


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worth it with thousands of shards, for a few."""
    monkeypatch.setattr(jobs.verify, "_SHARDS_A_PROCESS", 1)
    monkeypatch.setattr(jobs.verify, "count_usable_cpus", lambda: 2)


def test_many_processes_find_what_one_does(
    label_here: LabelHere, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, request: Any, capsys: Any
) -> None:
    """The same lines in the same order; on stderr it says now and then how far it is."""
    output = label_here(images_per_shard=1)
    edit(output / "masks/part-0000003.parquet", set_row(0, area=5))
    (output / MASKS).write_bytes(b"x")
    (output / "images/part-0000009.parquet").unlink()
    monkeypatch.setattr(jobs.cli, "_SECONDS_BETWEEN_LINES", 0)
    capsys.readouterr()
    assert main("verify", output) == 1
    alone = capsys.readouterr()
    named = [line.split()[1] for line in alone.out.splitlines()[:3]]
    assert named == [MASKS, "masks/part-0000003.parquet:", "images/part-0000009.parquet"]
    request.getfixturevalue("two_processes")
    monkeypatch.setattr(jobs.verify.rle, "measure_areas", None)  # Not used in this process.
    assert main("verify", output) == 1
    together = capsys.readouterr()
    assert together.out == alone.out
    for answer in (alone, together):
        said = [line.split()[0] for line in answer.err.splitlines() if "shards looked at" in line]
        assert said == [f"{number}/12" for number in range(1, 13)]


def test_processes_ask_the_store_as_the_command_does(label_here: LabelHere, s3: Any, two_processes: None) -> None:
    """With its keys, which stand in no environment."""
    stores.copy_folder(str(label_here()), target="s3://labels/run")
    record = read_run("s3://labels/run")
    assert record is not None
    assert list(find_faults("s3://labels/run", record)) == []


def test_what_is_not_labeled_yet_is_no_fault(label_here: LabelHere) -> None:
    """Of a young run of a million shards two lines each would say nothing."""
    output = label_here()
    for name in (MASKS, IMAGES):
        (output / name).unlink()
    assert list_faults(output) == []


def test_a_temporary_file_of_a_killed_writer_is_no_fault(label_here: LabelHere) -> None:
    """Readers of Parquet folders pass over dotfiles."""
    output = label_here()
    (output / "masks" / ".abc.tmp").write_bytes(b"half")
    assert list_faults(output) == []


@pytest.mark.parametrize("place", range(20))
def test_damage_is_no_silence_of_the_store(label_here: LabelHere, place: int) -> None:
    """Wherever a part is damaged, its shard is to be made again, and verify names it."""
    output = label_here()
    path = output / (MASKS, IMAGES)[place % 2]
    data = bytearray(path.read_bytes())
    begin = 4 + (len(data) - 20) * (place // 2) // 9
    data[begin : begin + 8] = bytes(255 - byte for byte in data[begin : begin + 8])
    path.write_bytes(data)
    assert read_parts(str(output), 1) is None or place % 2  # Nothing has the hash of an images part.
    faults = list_faults(output)
    assert any("part-0000001" in fault for fault in faults) or place % 2, faults


@pytest.mark.parametrize("error", [StorageError("503"), PermissionError(13, "permission denied", "s3://b/k")])
def test_a_store_that_does_not_answer_damages_nothing(
    label_here: LabelHere, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """verify --repair ends with exit 1 and removes nothing; a shard is not labeled anew for it."""
    output = label_here()
    before = sorted(path for path in output.rglob("part-*"))
    read_bytes = storage.read_bytes

    def fail(uri: str, **where: Any) -> bytes:
        if MASKS in uri:
            raise error
        return read_bytes(uri, **where)

    monkeypatch.setattr(storage, "read_bytes", fail)
    assert main("verify", output, "--repair") == 1
    assert sorted(path for path in output.rglob("part-*")) == before
    with pytest.raises(StorageError):
        read_parts(str(output), 1)
