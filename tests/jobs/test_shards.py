"""A committed shard counts, a broken one is found."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores
from fakes import freeze, label_shards, make_model, write_picture

import jobs.cli
import jobs.verify
from jobs.plan import read_run
from jobs.shards import Tally, read_parts, tally_shard
from jobs.verify import find_faults
from labeler import rle, storage, tables
from labeler.errors import StorageError

LabelHere = Callable[..., Path]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A run of three shards, labeled once; of shard 1 the first two images are broken."""
    folder = tmp_path_factory.mktemp("labeled")
    for number in (*range(5), *range(7, 12)):
        write_picture(folder / "photos" / f"{number:02}.png", seed=number)
    (folder / "photos" / "05.jpg").write_bytes(b"")
    (folder / "photos" / "06.png").write_text("<html>not found</html>")
    record = freeze(folder / "photos", folder / "run", model_folder)
    label_shards(folder / "run", range(record.num_shards))
    return folder / "run"


@pytest.fixture
def run(labeled: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    return shutil.copytree(labeled, tmp_path / "run")


def list_faults(output: Path) -> list[str]:
    record = read_run(str(output))
    assert record is not None
    return [str(fault) for fault in find_faults(str(output), record)]


def test_a_whole_run_has_no_faults(run: Path) -> None:
    """And its shards' tallies add up to its images."""
    assert list_faults(run) == []
    tally = sum((tally_shard(str(run), shard) for shard in range(3)), Tally())
    assert (tally.num_images, tally.errors) == (12, {"corrupt": 2})
    assert tally.num_masks == pq.read_table(run / "masks").num_rows > 0


def test_the_same_run_twice_is_the_same_bytes(label_here: LabelHere) -> None:
    """Masks parts hold no clock, host or run."""
    first, second = label_here(name="first"), label_here(name="second")
    for path in sorted((first / "masks").iterdir()):
        assert path.read_bytes() == (second / "masks" / path.name).read_bytes()


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Write a part anew and keep the images part's hash right: only what was changed is wrong."""
    pq.write_table(change(pq.read_table(path)), path)
    if path.parent.name == "masks":
        images = path.parent.parent / "images" / path.name
        table = pq.read_table(images)
        metadata = {**table.schema.metadata, tables.MASKS_SHA256.encode(): hashlib.sha256(path.read_bytes()).hexdigest()}
        pq.write_table(table.replace_schema_metadata(metadata), images)


def edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a part's rows."""

    def change_rows(table: Any) -> Any:
        rows = table.to_pylist()
        change(rows)
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(path, change_rows)


def set_metadata(path: Path, key: str, value: bytes | None) -> None:
    """Another value than was written; or none."""

    def change_metadata(table: Any) -> Any:
        others = {name: text for name, text in table.schema.metadata.items() if name != key.encode()}
        return table.replace_schema_metadata(others if value is None else {**others, key: value})

    rewrite(path, change_metadata)


def set_record(run: Path, **values: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **values}))


def empty_mask(rows: list[dict[str, Any]]) -> None:
    height, width = rows[0]["segmentation"]["size"]
    rows[0]["segmentation"]["counts"] = rle.runs_to_counts(np.array([height * width]), image_hw=(height, width))
    rows[0]["area"] = 0


def set_row(index: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[index].update(values)


PLAN, MASKS, IMAGES = "plan/part-0000000.parquet", "masks/part-0000001.parquet", "images/part-0000001.parquet"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda run: (run / MASKS).write_bytes((run / MASKS).read_bytes()[:-50]), f"{MASKS} is damaged"),
        (lambda run: (run / IMAGES).write_bytes((run / IMAGES).read_bytes()[:-50]), f"{IMAGES} is damaged"),
        (lambda run: set_metadata(run / IMAGES, "labeler.options", b"\xe9"), f"{IMAGES} is damaged"),  # As a flipped bit does.
        (lambda run: set_metadata(run / MASKS, "labeler.options", b"\xe9"), f"{MASKS} is damaged"),
        (lambda run: set_metadata(run / IMAGES, "labeler.options", b"{}"), f"{IMAGES} was made with other options"),
        (lambda run: set_metadata(run / MASKS, "labeler.model_sha256", b"0"), f"{MASKS} was made with other options"),
        (lambda run: set_metadata(run / IMAGES, tables.MASKS_SHA256, None), f"{MASKS} is not the one"),
        (lambda run: rewrite(run / IMAGES, lambda table: table.drop_columns("etag")), f"{IMAGES} has other columns"),
        (lambda run: rewrite(run / MASKS, lambda table: table.append_column("x", table["area"])), f"{MASKS} has other columns"),
        (lambda run: edit(run / IMAGES, set_row(0, num_masks=2**31 - 1)), "that the images part counts"),
        (lambda run: (run / MASKS).unlink(), f"{MASKS} is missing"),
        (lambda run: (run / IMAGES).unlink(), f"{IMAGES} is missing"),
        (lambda run: shutil.copy(run / "masks/part-0000000.parquet", run / MASKS), f"{MASKS} is not the one"),
        (lambda run: shutil.copy(run / "images/part-0000000.parquet", run / IMAGES), "images of the plan"),
        (lambda run: shutil.copy(run / MASKS, run / "masks/part-0000009.parquet"), "part-0000009.parquet is not a part"),
        (lambda run: (run / "images/notes.txt").write_text("x"), "images/notes.txt is not a part"),
        (lambda run: (run / "plan/notes.txt").write_text("x"), "plan/notes.txt is not a part"),
        (lambda run: (run / PLAN).write_bytes(b"x"), f"{PLAN} is not the plan"),
        (lambda run: (run / PLAN).unlink(), f"{PLAN} is missing"),
        (lambda run: set_record(run, plan_sha256="0" * 64), "run.json contradicts itself: plan_sha256"),
        (lambda run: set_record(run, num_images=11), "run.json contradicts itself: num_images"),
        (lambda run: (run / "model/encoder.bin").write_text("x"), "/model: "),
        (lambda run: shutil.rmtree(run / "model"), "/model: "),
        (lambda run: make_model(run / "model", content="other"), "/model is not the model"),
        (lambda run: edit(run / IMAGES, lambda rows: rows.pop()), "images of the plan"),
        (lambda run: edit(run / IMAGES, lambda rows: rows.append(rows[-1])), "images of the plan"),
        (lambda run: edit(run / IMAGES, set_row(0, uri="file:///else")), "another image than planned"),
        (lambda run: edit(run / IMAGES, set_row(0, error_kind="bad luck")), "error_kind bad luck"),
        (lambda run: edit(run / IMAGES, set_row(4, error_kind="corrupt")), "is ok, but has an error"),
        (lambda run: edit(run / IMAGES, set_row(4, width=None)), "has an error or no size"),
        (lambda run: edit(run / IMAGES, set_row(0, status="done")), "has status done"),
        (lambda run: edit(run / IMAGES, set_row(0, num_masks=1)), "error_kind corrupt, 1 masks"),
        (lambda run: edit(run / IMAGES, set_row(0, num_masks=1)), "that the images part counts"),
        (lambda run: edit(run / IMAGES, set_row(4, num_masks=-1)), "that the images part counts"),
        (lambda run: edit(run / MASKS, lambda rows: rows.pop()), "that the images part counts"),
        (lambda run: edit(run / MASKS, set_row(0, mask_id=7)), "that the images part counts"),
        (lambda run: edit(run / MASKS, set_row(0, area=5)), "has area 5"),
        (lambda run: edit(run / MASKS, set_row(0, bbox=[0.0, 0.0, 1.0, 1.0])), "has bbox"),
        (lambda run: edit(run / MASKS, set_row(0, segmentation={"size": [5, 5], "counts": "1"})), "has size [5, 5]"),
        (lambda run: edit(run / MASKS, lambda rows: rows[0]["segmentation"].update(counts="11")), "do not add up"),
        (lambda run: edit(run / MASKS, lambda rows: rows[0]["segmentation"].update(counts="11d")), "are no run lengths"),
        (lambda run: edit(run / MASKS, set_row(0, file_name="x")), "has the file name x"),
        (lambda run: edit(run / MASKS, empty_mask), "is empty"),
    ],
)
def test_every_fault_is_found_and_named(run: Path, break_it: Callable[[Path], Any], words: str) -> None:
    """Truncated, missing, doubled, swapped, foreign, made otherwise, or wrong inside."""
    break_it(run)
    faults = list_faults(run)
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


def test_processes_ask_the_store_as_the_command_does(labeled: Path, s3: Any, two_processes: None) -> None:
    """With its keys, which stand in no environment."""
    stores.copy_folder(str(labeled), target="s3://labels/run")
    record = read_run("s3://labels/run")
    assert record is not None
    assert list(find_faults("s3://labels/run", record)) == []


def test_what_is_not_labeled_yet_is_no_fault(run: Path) -> None:
    """Of a young run of a million shards two lines each would say nothing."""
    for name in (MASKS, IMAGES):
        (run / name).unlink()
    assert list_faults(run) == []


def test_a_temporary_file_of_a_killed_writer_is_no_fault(run: Path) -> None:
    """Readers of Parquet folders pass over dotfiles."""
    (run / "masks" / ".abc.tmp").write_bytes(b"half")
    assert list_faults(run) == []


def damage(path: Path, *, place: int) -> None:
    """Turn all bits of eight bytes: place 0 is the first after the file's mark, 19 the last before it."""
    data = bytearray(path.read_bytes())
    begin = 4 + (len(data) - 16) * place // 19
    data[begin : begin + 8] = bytes(255 - byte for byte in data[begin : begin + 8])
    path.write_bytes(data)


@pytest.mark.parametrize("place", range(20))
def test_damaged_masks_are_found_anywhere(run: Path, place: int) -> None:
    """The shard is to be made again, and verify names the part."""
    damage(run / MASKS, place=place)
    assert read_parts(str(run), 1) is None
    faults = list_faults(run)
    assert any(MASKS in fault for fault in faults), faults


@pytest.mark.parametrize("place", range(20))
def test_a_damaged_images_part_is_no_silence_of_the_store(run: Path, place: int) -> None:
    """Nothing has its hash, so that damage may stay unseen; but nowhere is it a StorageError, nor another shard's fault."""
    damage(run / IMAGES, place=place)
    parts = read_parts(str(run), 1)
    assert parts is None or parts.masks.equals(pq.read_table(run / MASKS))
    assert all("part-0000001" in fault for fault in list_faults(run))


@pytest.mark.parametrize("error", [StorageError("503"), PermissionError(13, "permission denied", "s3://b/k")])
def test_a_store_that_does_not_answer_damages_nothing(
    run: Path, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """verify --repair ends with exit 1 and removes nothing; a shard is not labeled anew for it."""
    before = sorted(path for path in run.rglob("part-*"))
    read_bytes = storage.read_bytes

    def fail(uri: str, **where: Any) -> bytes:
        if MASKS in uri:
            raise error
        return read_bytes(uri, **where)

    monkeypatch.setattr(storage, "read_bytes", fail)
    assert main("verify", run, "--repair") == 1
    assert sorted(path for path in run.rglob("part-*")) == before
    with pytest.raises(StorageError):
        read_parts(str(run), 1)
