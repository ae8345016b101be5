"""The job as it runs: real Ray, real processes, real deaths. Only the engine is a fake."""

import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import fake_engine
import pandas as pd
import pytest
from crowd import Crowd
from fakes import (
    Cluster,
    find_workers,
    label_arguments,
    label_undisturbed,
    make_slow,
    read_mask_rows,
    read_masks,
    start_jobs,
    wait_until,
    write_picture,
)

import jobs.run
from jobs.actors import Task
from jobs.ledger import Assignment, ShardLedger
from jobs.run import charge_death, put_back_misfits
from labeler.ahead import READS_AT_ONCE

RunJobs = Callable[..., subprocess.CompletedProcess[str]]


def test_a_job_from_end_to_end(
    run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster of its own, two workers: every image a row, the summary says it, exit 3 for too many broken ones.

    The same command again has nothing to do and says the same; a laxer --max-error-rate makes it a success.
    """
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    arguments = label_arguments(photos, Path("out"), model_folder, "--workers", 2, "--images-per-shard", 3)
    first = run_jobs(*arguments, FAKE_ENGINE_BF16="1")
    assert first.returncode == 3, first.stderr
    assert first.stderr.count("the CPUs here have bf16") == 1
    assert "12 of 12 images done" in first.stdout
    assert "2 failed (2 corrupt)" in first.stdout
    assert "python -m export coco out coco.json" in first.stdout
    assert "skipped, for they are no images by name: 1 .txt, 1 dotfile" in first.stderr
    images = pd.read_parquet(tmp_path / "out" / "images")
    assert images["image_id"].tolist() == list(range(1, 13))
    assert set(images.loc[images["status"] == "error", "file_name"]) == {"a/empty.jpg", "a/page.png"}
    report = pd.read_json(tmp_path / "out" / "report.json", typ="series")
    assert (report["num_done"], report["num_failed"], report["state"]) == (12, 2, "finished")
    assert report["num_workers"] in (1, 2)  # The first may be done before the second is ready.

    again = run_jobs(*arguments)
    assert (again.returncode, again.stdout) == (3, first.stdout)
    assert run_jobs(*arguments, "--max-error-rate", 0.5).returncode == 0
    whole = run_jobs("verify", "out")
    assert (whole.returncode, "is whole" in whole.stdout) == (0, True)


def test_the_number_of_workers_changes_no_byte(
    cluster: object, run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    """One worker against two."""
    for workers in (1, 2):
        answer = run_jobs(
            *label_arguments(photos, tmp_path / f"by{workers}", model_folder, "--workers", workers, "--images-per-shard", 2)
        )
        assert answer.returncode == 3, answer.stderr
    assert len(read_masks(tmp_path / "by1")) == 6
    assert read_masks(tmp_path / "by1") == read_masks(tmp_path / "by2")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_driver_killed_and_started_again(cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: the rerun keeps what is committed, does the rest, and the masks are an undisturbed run's.

    Before the rerun, ``status`` counts what is done and ``verify`` says that the run is not finished.
    """
    slow = make_slow(tmp_path / "slow", count=24)
    more = ("--workers", 2, "--images-per-shard", 2)
    driver = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, *more), cwd=tmp_path)
    images = tmp_path / "out" / "images"
    first_part = wait_until(lambda: images.exists() and next(images.glob("part-*"), None))
    driver.kill()
    driver.communicate()
    committed_at = first_part.stat().st_mtime_ns
    wait_until(lambda: not find_workers(cluster.process.pid))  # Ray ends them, with most shards still to do.
    num_committed = len(list(images.glob("part-*")))
    unfinished = run_jobs("verify", tmp_path / "out")
    assert (unfinished.returncode, "not finished" in unfinished.stdout) == (1, True)
    assert f"{2 * num_committed} of 24 images done" in run_jobs("status", tmp_path / "out").stdout

    answer = run_jobs(*label_arguments(slow, tmp_path / "out", model_folder, *more))
    assert answer.returncode == 0, answer.stderr
    assert first_part.stat().st_mtime_ns == committed_at
    assert run_jobs("verify", tmp_path / "out").returncode == 0
    assert read_masks(tmp_path / "out") == label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
def test_a_killed_worker_is_replaced(cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """Its shard is done by another, no image is blamed, and the masks are an undisturbed run's."""
    slow = make_slow(tmp_path / "slow")
    more = ("--workers", 1, "--images-per-shard", 4)
    driver = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, *more), cwd=tmp_path)
    worker = wait_until(lambda: find_workers(cluster.process.pid))[0]
    time.sleep(0.7)
    os.kill(worker, signal.SIGKILL)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    assert "a worker died" in err
    assert run_jobs("verify", tmp_path / "out").returncode == 0
    assert read_masks(tmp_path / "out") == label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=4)


def test_images_that_kill_or_hang_are_set_aside(cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """The one that ends its process becomes 'worker_died', the one that never ends 'timeout'.

    The masks of all others are those of a run that has ordinary pictures in their place.
    """
    colours = [None, fake_engine.EXITS, None, None, fake_engine.HANGS, None]
    for number, colour in enumerate(colours):
        write_picture(tmp_path / "pictures" / f"{number}.png", seed=number, colour=colour)
        write_picture(tmp_path / "ordinary" / f"{number}.png", seed=number)
    more = ("--workers", 2, "--images-per-shard", 3, "--image-timeout", 5, "--max-error-rate", 0.5)
    answer = run_jobs(*label_arguments(tmp_path / "pictures", tmp_path / "out", model_folder, *more))
    assert answer.returncode == 0, answer.stderr
    images = pd.read_parquet(tmp_path / "out" / "images")
    assert images["error_kind"].fillna("").tolist() == ["", "worker_died", "", "", "timeout", ""]
    assert (images.loc[images["status"] == "ok", "num_masks"] > 0).all()
    label_undisturbed(tmp_path / "ordinary", tmp_path / "still", model_folder, images_per_shard=3)
    assert read_mask_rows(tmp_path / "out") == read_mask_rows(tmp_path / "still", without={2, 5})
    assert run_jobs("verify", tmp_path / "out").returncode == 0

    status = run_jobs("status", tmp_path / "out", "--failures", "failed.csv")
    assert status.returncode == 0, status.stderr
    assert "2 images failed: 1 timeout, 1 worker_died" in status.stdout
    with (tmp_path / "failed.csv").open(newline="") as file:
        assert [(row["file_name"], row["error_kind"]) for row in csv.DictReader(file)] == [
            ("1.png", "worker_died"),
            ("4.png", "timeout"),
        ]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_job_that_can_go_on(
    cluster: Cluster, run_jobs: RunJobs, number: signal.Signals, exit_code: int, model_folder: Path, tmp_path: Path
) -> None:
    """Its shards are dropped, not finished (Ray kills a job 3 seconds after SIGTERM), with the words how to go on.

    The same command then does go on, and the masks are an undisturbed run's.
    """
    slow = make_slow(tmp_path / "slow", count=12)
    common = label_arguments(slow, tmp_path / "out", model_folder, "--images-per-shard", 6)
    driver = start_jobs(*common, "--workers", 1, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out" / "images" / "part-0000000.parquet").exists())
    driver.send_signal(number)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == exit_code, err
    if Path("/proc/self/stat").exists():
        wait_until(lambda: not find_workers(cluster.process.pid))
    assert len(list((tmp_path / "out" / "images").glob("part-*"))) == 1
    assert f"stopped by {number.name}; run the same command again to go on" in err
    assert pd.read_json(tmp_path / "out" / "report.json", typ="series")["state"] == "stopped"

    answer = run_jobs(*common, "--workers", 2)
    assert answer.returncode == 0, answer.stderr
    assert "going on: " in answer.stderr
    assert read_masks(tmp_path / "out") == label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=6)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_signal_while_ray_starts(run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """Ray has its own handler then: the words and the exit code are ours all the same."""
    driver = start_jobs(*label_arguments(photos, tmp_path / "out", model_folder, "--workers", 1), cwd=tmp_path)
    wait_until(lambda: find_workers(driver.pid, called=b"gcs_server"))
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 143, err
    assert "stopped by SIGTERM; run the same command again to go on" in err
    assert "Traceback" not in err


def test_a_worker_that_dies_once_its_shard_is_committed(
    cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path
) -> None:
    """Before it could say that there is no more: the shard counts once, is not done again, and nobody is blamed."""
    pictures = make_slow(tmp_path / "pictures", count=2)
    common = label_arguments(pictures, tmp_path / "out", model_folder, "--workers", 1, "--images-per-shard", 1)
    answer = run_jobs(*common, FAKE_TROUBLE="dies once committed")
    assert answer.returncode == 0, answer.stderr
    assert len(set(re.findall(r"committed: .*, by pid (\d+)", answer.stderr))) == 2
    assert "2 of 2 images done" in answer.stdout
    assert answer.stderr.count("shard 0 committed") == 1
    assert "done again" not in answer.stderr


@pytest.mark.parametrize("trouble", ["reads slowly", "listens slowly"])
def test_only_an_image_hangs_by_itself(
    cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path, trouble: str
) -> None:
    """Neither where a worker waits for its bytes, nor where the driver is too busy to hear that it is done."""
    pictures = make_slow(tmp_path / "pictures", count=1 if trouble == "reads slowly" else 14)
    common = label_arguments(pictures, tmp_path / "out", model_folder, "--workers", 1, "--image-timeout", 3)
    answer = run_jobs(*common, FAKE_TROUBLE=trouble)
    assert answer.returncode == 0, answer.stderr
    assert "hung" not in answer.stderr


def test_a_shard_that_is_given_up(cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """All its workers died before they touched an image of it: the others finish, exit 1, and the same command tries again."""
    pictures = make_slow(tmp_path / "pictures", count=3)
    more = ("--workers", 2, "--images-per-shard", 1, "--retries", 1)
    common = label_arguments(pictures, tmp_path / "out", model_folder, *more)
    answer = run_jobs(*common, FAKE_TROUBLE="dies at shard one")
    assert answer.returncode == 1, answer.stderr
    assert "1 shards were given up; run the same command again to try them once more" in answer.stderr
    undisturbed = label_undisturbed(pictures, tmp_path / "still", model_folder, images_per_shard=1)
    assert read_masks(tmp_path / "out") == {name: part for name, part in undisturbed.items() if "0001" not in name}
    assert run_jobs(*common).returncode == 0
    assert read_masks(tmp_path / "out") == undisturbed


def kill_one(
    *, in_work: list[int], hung_image: int | None = None, is_machine_gone: bool = False
) -> tuple[ShardLedger, Assignment | None]:
    """A worker that had shard 0 is dead. Gives the ledger and how the shard is handed out again."""
    ledger = ShardLedger([0], retries=0)
    task = Task(Assignment(0), events=None, in_work=in_work, hung_image=hung_image)
    charge_death(task, ledger=ledger, name="a worker", reason="killed", is_machine_gone=lambda: is_machine_gone)
    return ledger, ledger.take()


def test_a_machine_that_is_gone_answers_before_its_images() -> None:
    """Also where one of them seemed to hang, for it fell silent; and an image that was done when it was killed did not."""
    assert kill_one(in_work=[3], hung_image=3, is_machine_gone=True)[1] == Assignment(0)
    assert kill_one(in_work=[4], hung_image=3)[1] == Assignment(0)
    _, hung = kill_one(in_work=[3, 4], hung_image=3)
    assert hung is not None
    assert (hung.careful, {number: error.kind for number, error in hung.verdicts.items()}) == (True, {3: "timeout"})
    assert kill_one(in_work=[])[0].given_up == [0]


def make_suspects(count: int) -> ShardLedger:
    """So many shards that each lost a worker once and are committed now."""
    ledger = ShardLedger(range(count), retries=0)
    for shard in range(count):
        ledger.take()
        ledger.put_back(shard)
    while ledger.take():
        pass
    return ledger


def test_suspects_are_read_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between them the job shows how it stands and hears a signal; those that do not fit are done again, in order."""
    crowd, asked = Crowd(), list[int]()

    def read(_output: str, shard: int) -> object | None:
        asked.append(shard)
        with crowd:
            return None if shard in (3, 70) else object()

    monkeypatch.setattr(jobs.run, "read_parts", read)
    ledger, watch, looks = make_suspects(100), Mock(), Mock()
    assert put_back_misfits(ledger, output="out", watch=watch, look_up=looks)
    assert 4 < crowd.most <= READS_AT_ONCE
    assert (sorted(asked), looks.call_count) == (list(range(100)), 100)
    assert [call.args for call in watch.forget_shard.call_args_list] == [(3,), (70,)]
    assert [ledger.take(), ledger.take(), ledger.take()] == [Assignment(3), Assignment(70), None]
    assert not put_back_misfits(ledger, output="out", watch=watch, look_up=looks)

    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        put_back_misfits(make_suspects(10_000), output="out", watch=watch, look_up=Mock(side_effect=[None, KeyboardInterrupt]))
    assert len(asked) <= 2 * READS_AT_ONCE


def test_a_bug_in_every_image_is_exit_1(cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """The job stops with the traceback instead of writing thousands of rows 'internal'."""
    for number in range(25):
        write_picture(tmp_path / "pictures" / f"{number:02d}.png", seed=number, colour=fake_engine.RAISES)
    answer = run_jobs(*label_arguments(tmp_path / "pictures", tmp_path / "out", model_folder, "--workers", 1))
    assert answer.returncode == 1
    assert "20 images in a row failed" in answer.stderr
    assert "does not like this picture" in answer.stderr


def test_a_model_that_no_machine_can_run_is_exit_1(
    cluster: object, run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Every worker is left out, with its reason, and the job does not wait forever."""
    arguments = label_arguments(photos, tmp_path / "out", model_folder, "--workers", 2, "--images-per-shard", 3)
    assert run_jobs(*arguments).returncode == 3
    (tmp_path / "out" / "images" / "part-0000001.parquet").unlink()
    (tmp_path / "out" / "model" / "encoder.bin").write_text("damaged")
    answer = run_jobs(*arguments)
    assert answer.returncode == 1
    assert "encoder.bin" in answer.stderr
    assert "Traceback" not in answer.stderr
