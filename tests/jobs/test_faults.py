"""What dies, fills up, is cut off or comes twice: each ends with an undisturbed run's masks. Real processes throughout."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import fake_engine
import pandas as pd
import pytest
from fakes import (
    PATHS,
    Cluster,
    find_workers,
    freeze,
    label_arguments,
    label_undisturbed,
    make_slow,
    read_mask_rows,
    read_masks,
    start_jobs,
    wait_until,
    write_picture,
)

from jobs.lease import LeaseHolder

RunJobs = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


def has_parts(output: Path, count: int) -> Callable[[], bool]:
    return lambda: len(list((output / "images").glob("part-*"))) >= count


def test_retry_failed_labels_errors_again_and_nothing_else(
    cluster: object, run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The broken file, mended, gets its masks; its neighbours keep theirs; where it was never broken the bytes are the same.

    Shards without such errors are not touched. Unknown kinds are exit 2.
    """
    out, arguments = tmp_path / "out", ("--workers", 1, "--images-per-shard", 4)
    common = label_arguments(photos, out, model_folder, *arguments)
    good = (photos / "a" / "1 %.png").read_bytes()
    (photos / "a" / "1 %.png").write_bytes(b"x" * len(good))
    (photos / "b" / "c" / "8 %.png").unlink()
    assert run_jobs(*common).returncode == 3  # The second is not even in the plan.
    before = pd.read_parquet(out / "images").set_index("image_id")
    untouched = (out / "images" / "part-0000002.parquet").stat().st_mtime_ns
    stamp = (photos / "a" / "1 %.png").stat()
    (photos / "a" / "1 %.png").write_bytes(good)
    os.utime(photos / "a" / "1 %.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    assert run_jobs(*common, "--retry-failed", "timeout,bad").returncode == 2
    nothing = run_jobs(*common, "--retry-failed", "timeout")
    assert (nothing.returncode, "again" in nothing.stderr) == (3, False)
    answer = run_jobs(*common, "--max-error-rate", 0.5, "--retry-failed")
    assert answer.returncode == 0, answer.stderr
    assert "labeling 3 failed images of 2 shards again" in answer.stderr
    assert "11 of 11 images done" in answer.stdout
    after = pd.read_parquet(out / "images").set_index("image_id")
    assert sorted(after.loc[after["status"] == "error", "file_name"]) == ["a/empty.jpg", "a/page.png"]
    kept = before.index[before["status"] == "ok"]
    pd.testing.assert_frame_equal(after.loc[kept], before.loc[kept])
    assert (out / "images" / "part-0000002.parquet").stat().st_mtime_ns == untouched
    assert run_jobs("verify", out).returncode == 0
    assert "2 images failed: 2 corrupt" in run_jobs("status", out).stdout

    assert read_masks(out) == label_undisturbed(photos, tmp_path / "still", model_folder, images_per_shard=4)


def test_a_part_cut_off_behind_the_jobs_back(
    cluster: object, run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    """verify names it, verify --repair removes it, the rerun makes it again, byte for byte."""
    out = tmp_path / "out"
    common = label_arguments(photos, out, model_folder, "--workers", 1, "--images-per-shard", 4, "--max-error-rate", 0.5)
    assert run_jobs(*common).returncode == 0
    whole = read_masks(out)
    part = out / "masks" / "part-0000001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    (out / "masks" / "part-0000077.parquet").write_bytes(part.read_bytes())
    (out / "images" / "notes.txt").write_text("mine")
    assert run_jobs("verify", out).returncode == 1
    repair = run_jobs("verify", out, "--repair")
    assert repair.returncode == 1
    assert "removed 3 parts" in repair.stdout
    assert (out / "images" / "notes.txt").exists()
    (out / "images" / "notes.txt").unlink()
    answer = run_jobs(*common)
    assert answer.returncode == 0, answer.stderr
    assert "12 of 12 images done" in answer.stdout
    assert run_jobs("verify", out).returncode == 0
    assert read_masks(out) == whole


def test_two_drivers_at_once(cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """The second is refused with exit 1 and a sentence, so is a repair; the first goes on to an undisturbed run's masks."""
    slow = make_slow(tmp_path / "slow")
    common = label_arguments(slow, tmp_path / "out", model_folder, "--workers", 1, "--images-per-shard", 2)
    first = start_jobs(*common, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out" / "run.json").exists())
    for arguments in (common, ("verify", tmp_path / "out", "--repair")):
        second = run_jobs(*arguments)
        assert second.returncode == 1
        assert "another driver is at work" in second.stderr
        assert f"pid {first.pid}" in second.stderr
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert not (tmp_path / "out" / "lease.json").exists()
    assert read_masks(tmp_path / "out") == label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=2)


def test_a_disk_that_is_full(cluster: object, run_jobs: RunJobs, photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """Exit 1 and a sentence, soon; no image is blamed; once there is room again the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=False).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        common = label_arguments(photos, disk / "out", model_folder, "--images-per-shard", 4, "--max-error-rate", 0.5)
        blocks = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes((blocks.f_bavail - 15) * blocks.f_bsize))
        answer = run_jobs(*common, "--workers", 1)
        assert answer.returncode == 1, answer.stderr
        assert "the disk is full" in answer.stderr
        assert "Traceback" not in answer.stderr
        (disk / "ballast").unlink()
        answer = run_jobs(*common, "--workers", 1)
        assert answer.returncode == 0, answer.stderr
        assert run_jobs("verify", disk / "out").returncode == 0
        undisturbed = label_undisturbed(photos, tmp_path / "still", model_folder, images_per_shard=4)
        assert read_masks(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_worker_that_is_slow_to_die(cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """Stopped in the middle, killed by Ray for its hung image, it holds its shard until it is dead; then another has it."""
    slow = make_slow(tmp_path / "slow", count=6)
    more = ("--workers", 1, "--images-per-shard", 3, "--image-timeout", 4, "--max-error-rate", 0.5)
    driver = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, *more), cwd=tmp_path)
    worker = wait_until(lambda: find_workers(cluster.process.pid))[0]
    time.sleep(0.9)  # The driver must have heard of an image: only then can one hang.
    os.kill(worker, signal.SIGSTOP)
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert "hung" in err
    assert not Path(f"/proc/{worker}/fd").exists() or not list(Path(f"/proc/{worker}/fd").iterdir())
    kinds = pd.read_parquet(tmp_path / "out" / "images").set_index("image_id")["error_kind"].dropna()
    assert kinds.tolist() == ["timeout"]
    label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=3)
    assert read_mask_rows(tmp_path / "out") == read_mask_rows(tmp_path / "still", without=kinds.index)
    assert run_jobs("verify", tmp_path / "out").returncode == 0


def test_a_worker_that_writes_late(model_folder: Path, tmp_path: Path) -> None:
    """Asleep while it was written off and another did its shard, it wakes, finds that it may not write, and does not."""
    slow = make_slow(tmp_path / "slow", count=4)
    output = tmp_path / "out"
    freeze(slow, output, model_folder, images_per_shard=4)
    code = (
        "import sys; from jobs.lease import Permit; from jobs.worker import ShardLabeler\n"
        "worker = ShardLabeler(sys.argv[1], threads=1, retries=0, engine='fake_engine:DiscEngine')\n"
        "print(worker.load().pid, flush=True)\n"
        "for event in worker.label_shard(0, permit=Permit(sys.argv[2], int(sys.argv[3]))): print(event, flush=True)"
    )

    def start_worker(driver: str, attempt: int, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(output), driver, str(attempt)]
        return subprocess.Popen(
            command, env={**os.environ, **PATHS, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with LeaseHolder(str(output), say=print) as lease:
        lease.take()
        sleeper = start_worker(lease.driver, 1)
        assert sleeper.stdout is not None
        wait_until(lambda: "ImageDone" in sleeper.stdout.readline())  # type: ignore[union-attr]
        sleeper.send_signal(signal.SIGSTOP)
        lease.write_off(1)
        other = start_worker(lease.driver, 2, FAKE_ENGINE_SLOW_S="0")
        assert "ShardCommitted" in other.communicate(timeout=60)[0]
        written = {path: path.stat().st_mtime_ns for path in output.glob("*/part-*")}
        sleeper.send_signal(signal.SIGCONT)
        out, err = sleeper.communicate(timeout=60)
        assert out.count("ImageDone") >= 3
        assert "ShardCommitted" not in out
        assert "LeaseLostError: this worker was written off" in err
        assert {path: path.stat().st_mtime_ns for path in output.glob("*/part-*")} == written
    assert read_masks(output) == label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=4)


def test_a_node_that_comes_and_a_node_that_goes(
    growing_cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path
) -> None:
    """--workers auto uses a node added in mid-run. Killed with its workers, it takes no image with it."""
    slow = make_slow(tmp_path / "slow", count=44)
    more = ("--images-per-shard", 2)
    driver = start_jobs(*label_arguments(slow, tmp_path / "out", model_folder, *more), cwd=tmp_path)
    wait_until(has_parts(tmp_path / "out", 1))
    growing_cluster.order("add")

    def find_both() -> list[int]:
        found = find_workers(growing_cluster.process.pid)
        return found if len(found) == 2 else []

    assert len(set(wait_until(find_both))) == 2
    assert driver.stderr is not None
    err = ""
    while len(set(re.findall(r"by pid (\d+)", err))) < 2:  # Until the second worker has committed a shard, too.
        line = driver.stderr.readline()
        assert line, err
        err += line
    wait_until(find_both)  # Between two shards its death would harm none.
    growing_cluster.order("kill")
    err += driver.stderr.read()
    driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert len(set(re.findall(r"by pid (\d+)", err))) >= 2
    assert "the machine of a worker" in err
    assert "images in work" not in err
    images = pd.read_parquet(tmp_path / "out" / "images")
    assert (len(images), images["status"].eq("ok").all()) == (44, True)
    assert run_jobs("verify", tmp_path / "out").returncode == 0
    assert read_masks(tmp_path / "out") == label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=2)


def test_input_changed_between_runs(cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """What was written again since the plan is an error 'changed', what was added is not labeled, the rest is done."""
    slow = make_slow(tmp_path / "slow", count=8)
    label_undisturbed(slow, tmp_path / "still", model_folder, images_per_shard=2)
    common = label_arguments(slow, tmp_path / "out", model_folder, "--workers", 1, "--images-per-shard", 2)
    driver = start_jobs(*common, cwd=tmp_path)
    wait_until(has_parts(tmp_path / "out", 1))
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    assert driver.returncode == 143
    write_picture(slow / "7.png", seed=100)
    write_picture(slow / "8.png", seed=101)
    answer = run_jobs(*common, "--max-error-rate", 0.5)
    assert answer.returncode == 0, answer.stderr
    images = pd.read_parquet(tmp_path / "out" / "images")
    assert images["error_kind"].fillna("").tolist() == [""] * 7 + ["changed"]
    assert read_mask_rows(tmp_path / "out") == read_mask_rows(tmp_path / "still", without={8})


def test_what_is_said_of_shards(cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path) -> None:
    """A hint where workers will have no work; a line a shard."""
    pictures = make_slow(tmp_path / "slow", count=2)
    write_picture(pictures / "2.png", colour=fake_engine.RAISES)
    arguments = label_arguments(pictures, tmp_path / "out", model_folder, "--workers", 2, "--max-error-rate", 0.5)
    answer = run_jobs(*arguments)
    assert answer.returncode == 0, answer.stderr
    hint = "3 images make 1 shard: only 1 of 2 workers has work; a smaller --images-per-shard spreads them"
    assert hint in answer.stderr
    assert re.search(r"shard 0 committed: 3 images, 1 failed, \d+ masks, by pid \d+ on ", answer.stderr)


def test_the_figures_are_on_rays_own_endpoint(
    growing_cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path
) -> None:
    """Images, masks, failures by kind and seconds a stage, for Prometheus, while the job runs."""
    pictures = make_slow(tmp_path / "slow", count=60)
    write_picture(pictures / "0.png", colour=fake_engine.RAISES)
    arguments = label_arguments(pictures, tmp_path / "out", model_folder, "--workers", 1, "--images-per-shard", 2)
    driver = start_jobs(*arguments, cwd=tmp_path)
    address = growing_cluster.order("metrics")

    def read_metrics() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    try:
        text = wait_until(lambda: "sam_labeler_images" in (text := read_metrics()) and text)
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.communicate(timeout=60)
    for name in ("sam_labeler_images", "sam_labeler_masks", "sam_labeler_failures", "sam_labeler_seconds"):
        assert name in text
    assert 'kind="internal"' in text
    assert 'stage="encode"' in text
