"""``status``: how far a run is, from its storage alone."""

import csv
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crowd import Crowd
from fakes import label_arguments, make_slow, start_jobs, wait_until

import jobs.report
import jobs.run
import jobs.tallies
from jobs.driver import complete_run
from jobs.events import ImageDone, ShardCommitted
from jobs.lease import LEASE_JSON, LeaseHolder, LeaseLostError
from jobs.options import JobOptions
from jobs.plan import read_run
from jobs.report import Watch, read_report, write_failures
from jobs.shards import Tally, tally_shard
from labeler import storage, tables
from labeler.errors import StorageError
from labeler.retries import retried, use_retries
from labeler.signals import Signals

LabelHere = Callable[..., Path]
Main = Callable[..., int]


@pytest.fixture
def output(label_here: LabelHere) -> Path:
    """Twelve images in shards of three, of which the first three are committed."""
    return label_here(images_per_shard=3, shards=range(3))


def save_progress(output: Path, *, committed: list[int], in_work: int, state: str = "running") -> Watch:
    """What a driver writes that saw these shards committed, and so many images of another done."""
    record = read_run(str(output))
    assert record is not None
    watch = Watch(str(output), record=record, before=Tally())
    watch.tick(num_workers=2)
    for shard in committed:
        watch.count_shard(ShardCommitted(shard, tally_shard(str(output), shard), 0))
    for number in range(in_work):
        watch.count_image(2, ImageDone(number, num_masks=4, error_kind=None, log=None))
    watch.save(state)
    return watch


def read_status(main: Main, output: Path, capsys: Any) -> str:
    capsys.readouterr()
    assert main("status", output) == 0
    return str(capsys.readouterr().out)


def test_done_running_rate_and_time_left(output: Path, main: Main, capsys: Any) -> None:
    """Shards that were committed after progress.json was written count as done, and their images not as running too."""
    save_progress(output, committed=[0, 1], in_work=3)
    text = read_status(main, output, capsys)
    assert "9 of 12 images done in 3 of 4 shards" in text
    assert "running as of 2" in text
    assert ": 0 more images in unfinished shards, 2 workers, " in text
    save_progress(output, committed=[0, 1, 2], in_work=2)
    progress = read_report(str(output), "progress.json")
    assert progress is not None
    assert progress["images_per_s"] > 0
    text = read_status(main, output, capsys)
    assert f": 2 more images in unfinished shards, 2 workers, {progress['images_per_s']:.2f} images/s, " in text
    assert text.endswith(" left\n")


def test_a_shard_that_is_committed_meanwhile(output: Path, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """While status lists: what was counted before still counts, and only newer parts are read."""
    watch = save_progress(output, committed=[0, 1], in_work=0)
    list_committed, read = tables.list_committed_shards, []

    def list_and_commit(output: str) -> set[int]:
        listed = list_committed(output)
        for shard in (2, 3):
            watch.count_shard(ShardCommitted(shard, Tally(num_images=3), 0))
        watch.save("running")
        return listed

    def count(output: str, shard: int) -> Tally:
        read.append(shard)
        return tally_shard(output, shard)

    monkeypatch.setattr(tables, "list_committed_shards", list_and_commit)
    monkeypatch.setattr(jobs.tallies, "tally_shard", count)
    assert "9 of 12 images done in 3 of 4 shards" in read_status(main, output, capsys)
    assert read == [2]


def test_speed_and_time_left_are_those_of_the_last_half_hour(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a day of many machines nothing is left when few are; the report keeps the whole."""
    record = read_run(str(output))
    assert record is not None
    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr(jobs.report, "time", clock)
    monkeypatch.setattr(jobs.report, "_SECONDS_BETWEEN_FILES", 1e9)
    now_s, shard = 0.0, 0
    watch = Watch(str(output), record=record.model_copy(update={"num_images": 100_000, "num_shards": 1000}), before=Tally())
    watch.tick(num_workers=10)
    for minutes, images_per_minute in ((120, 600), (40, 60)):
        for _ in range(minutes):
            now_s += 60
            watch.count_shard(ShardCommitted(shard, Tally(images_per_minute, 20 * images_per_minute), 0))
            watch.tick(num_workers=10)
            shard += 1
    watch.save("running")
    progress, report = read_report(str(output), "progress.json"), watch.make_report("running")
    assert progress is not None
    assert (progress["images_per_s"], progress["masks_per_s"]) == (1.0, 20.0)
    assert progress["seconds_left"] == 100_000 - 120 * 600 - 40 * 60
    assert report["images_per_s"] == round((120 * 600 + 40 * 60) / (160 * 60), 4)
    watch.save("stopped")
    progress = read_report(str(output), "progress.json")
    assert progress is not None
    assert progress["images_per_s"] == report["images_per_s"]


def test_a_bar_lives_as_long_as_the_run(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """It is drawn by a thread, while thousands of workers come and go; and at the end it shows the end."""
    record = read_run(str(output))
    assert record is not None
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    monkeypatch.setenv("FORCE_COLOR", "1")  # Else nothing here is a terminal.
    num_workers, shard = 2000, 0
    record = record.model_copy(update={"num_images": 100_000, "num_shards": 100_000})
    watch = Watch(str(output), record=record, before=Tally(3, 12))
    monkeypatch.setattr(watch, "_line_due_s", 0.0)
    with watch.show():
        for shard in range(num_workers):
            watch.count_image(shard, ImageDone(1, num_masks=4, error_kind=None))
        end_s = time.monotonic() + 2
        while time.monotonic() < end_s and not died:
            shard += 1
            watch.count_shard(ShardCommitted(shard - num_workers, Tally(1, 4), 0))
            watch.count_image(shard, ImageDone(1, num_masks=4, error_kind=None))
            watch.tick(num_workers=num_workers)
            time.sleep(0.001)
    assert died == []
    shown = capsys.readouterr().err
    assert f"{shard + 4}/100000 images" in shown
    assert " left" in shown


def test_failures_are_read_many_at_a_time_and_in_order(
    label_here: LabelHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store answers one request in a hundredth of a second, and there may be a hundred thousand."""
    output, crowd, read_bytes = label_here(images_per_shard=1), Crowd(), storage.read_bytes

    def read_slowly(uri: str) -> bytes:
        with crowd:
            return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", read_slowly)
    assert write_failures(str(output), range(12), tmp_path / "failed.csv") == 2
    assert 4 < crowd.most <= 16
    with (tmp_path / "failed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["error_kind"] for row in rows] == ["corrupt"] * 2
    assert [int(row["image_id"]) for row in rows] == sorted(int(row["image_id"]) for row in rows)


def test_failures_are_written_whole_or_not_at_all(
    label_here: LabelHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Yesterday's list stands until today's is done; what is no file of its own, as a link, stays what it is."""
    output, place = label_here(images_per_shard=3), tmp_path / "lists"
    place.mkdir()
    (place / "link.csv").symlink_to("failed.csv")
    assert write_failures(str(output), range(4), place / "failed.csv") == 2
    before, read_part = (place / "failed.csv").read_bytes(), tables.read_part

    def read(output: str, *, number: int, **how: Any) -> Any:
        if number == 1:  # The first that holds failures.
            raise StorageError("503")
        return read_part(output, number=number, **how)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "read_part", read)
        with pytest.raises(StorageError, match="503"):
            write_failures(str(output), range(4), place / "failed.csv")
    assert (place / "failed.csv").read_bytes() == before
    assert write_failures(str(output), [0], place / "link.csv") < 2
    assert (place / "link.csv").is_symlink()
    assert (place / "failed.csv").read_bytes() != before
    assert {path.name for path in place.iterdir()} == {"failed.csv", "link.csv"}
    with pytest.raises(StorageError, match="lists can't be written: Is a directory"):
        write_failures(str(output), [0], place)


def test_a_shard_that_is_made_again_just_now(
    output: Path, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    """Its part is gone between the listing and the reading: it is not committed, and that is no error."""
    monkeypatch.setattr(tables, "list_committed_shards", lambda _output: {0, 1, 2})
    (output / "images" / "part-0000001.parquet").unlink()
    assert "6 of 12 images done in 2 of 4 shards" in read_status(main, output, capsys)
    assert write_failures(str(output), range(3), tmp_path / "failed.csv") == write_failures(
        str(output), (0, 2), tmp_path / "failed.csv"
    )


def test_before_the_first_image_no_time_is_known(output: Path, main: Main, capsys: Any) -> None:
    """It says so, and promises nothing."""
    save_progress(output, committed=[], in_work=0)
    assert read_status(main, output, capsys).endswith(" 2 workers, 0.00 images/s, 0.0 masks/s, starting\n")


def test_a_driver_that_says_nothing_is_not_running(output: Path, main: Main, capsys: Any) -> None:
    """One that was killed leaves progress.json as it was; one that stopped says so, and has no time left."""
    save_progress(output, committed=[0], in_work=1)
    progress = json.loads((output / "progress.json").read_text())
    progress["updated"] = (datetime.now(UTC) - timedelta(minutes=12)).isoformat(timespec="seconds")
    (output / "progress.json").write_text(json.dumps(progress))
    text = read_status(main, output, capsys)
    assert "silent for 12 min: if it was killed, the same label command goes on" in text
    assert " left" not in text
    save_progress(output, committed=[0], in_work=1, state="stopped")
    text = read_status(main, output, capsys)
    assert "stopped as of 2" in text
    assert ": 2 workers, " in text
    assert "unfinished" not in text
    (output / "progress.json").unlink()
    assert read_status(main, output, capsys).startswith("9 of 12 images done in 3 of 4 shards\n")


def test_a_job_is_followed_while_it_runs(cluster: object, main: Main, model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    """From its first image on, long before the first shard is committed."""
    slow = make_slow(tmp_path / "slow", count=40)
    job = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, "--workers", 1), cwd=tmp_path)
    wait_until(lambda: ((read_report(str(tmp_path / "out"), "progress.json")) or {}).get("num_images_in_work"))
    text = read_status(main, tmp_path / "out", capsys)
    job.terminate()
    job.communicate(timeout=60)
    assert "0 of 40 images done in 0 of 1 shards" in text
    assert " more images in unfinished shards, 1 workers, " in text
    assert ", 0.00 images/s" not in text
    assert text.endswith(" s left\n")
    text = read_status(main, tmp_path / "out", capsys)
    assert "stopped as of " in text


def tell_end(output: Path) -> list[tuple[str, int]]:
    """What both files say."""
    files = [json.loads((output / name).read_text()) for name in ("report.json", "progress.json")]
    return [(file["state"], file["num_done"]) for file in files]


def test_a_driver_killed_before_its_report(
    label_here: LabelHere, main: Main, photos: Path, model_folder: Path, capsys: Any
) -> None:
    """All is committed and nothing left to do: the same command writes it, once."""
    output = label_here(images_per_shard=3)
    save_progress(output, committed=[0, 1], in_work=0, state="stopped").finish("stopped")
    save_progress(output, committed=[0, 1, 2], in_work=1)
    command = label_arguments(photos, output, model_folder, "--max-error-rate", 1)
    assert main(*command) == 0
    assert "12 of 12 images done" in capsys.readouterr().out
    assert tell_end(output) == [("finished", 12)] * 2
    told = json.loads((output / "report.json").read_text())
    assert (told["num_workers"], told["images_per_s"] > 0) == (2, True)  # Those of the one that was killed.
    assert "finished as of" in read_status(main, output, capsys)
    before = (output / "report.json").stat()
    assert main(*command) == 0
    assert (output / "report.json").stat() == before


def test_the_last_report_waits_for_the_store(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One 503 at the end of a job is no more than one in its middle."""
    answers = [StorageError("503"), None]
    write_bytes = storage.write_bytes

    def write(uri: str, data: bytes) -> None:
        if uri.endswith("report.json") and (error := answers.pop(0)):
            raise error
        write_bytes(uri, data)

    watch = save_progress(output, committed=[0, 1, 2], in_work=0)
    use_retries(1)
    monkeypatch.setattr(storage, "write_bytes", retried(write))
    watch.finish("finished")
    assert tell_end(output) == [("finished", 9)] * 2


def test_a_driver_that_lost_the_folder_leaves_the_other_s_report(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops without another word in the folder."""
    record = read_run(str(output))
    assert record is not None
    save_progress(output, committed=[0], in_work=0).finish("the other's")

    def lose(*_shards: object, lease: LeaseHolder, **_how: object) -> None:
        other = json.loads((output / LEASE_JSON).read_text())
        (output / LEASE_JSON).write_text(json.dumps({**other, "driver": "other"}))
        raise LeaseLostError("said by a worker")

    monkeypatch.setattr(jobs.run, "label_shards", lose)
    with LeaseHolder(str(output), say=print) as lease, pytest.raises(LeaseLostError):
        complete_run(
            record,
            output=str(output),
            job=JobOptions(),
            engine="",
            signals=Signals(),
            lease=lease,
            retry_kinds=frozenset(),
            say=print,
        )
    assert tell_end(output) == [("the other's", 3)] * 2
