"""One driver at a time, by storage alone; a worker that was written off writes nothing."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import jobs.lease
from jobs.lease import (
    Lease,
    LeaseHolder,
    LeaseLostError,
    Permit,
    ProcessName,
    check_permit,
    is_process_alive,
    name_process,
    read_lease,
)
from labeler import storage
from labeler.errors import StorageError

ELSEWHERE = ProcessName("another machine", 1, "1")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_S", 0.05), ("LAPSE_S", 0.6), ("_SETTLE_S", 0.05)):
        monkeypatch.setattr(jobs.lease, name, seconds)


def write(output: Path, lease: Lease) -> None:
    storage.write_bytes(str(output / "lease.json"), json.dumps(asdict(lease)).encode())


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once on the same machine, without a word of waiting; where it is given back, the next has it."""
    monkeypatch.setattr(jobs.lease, "LAPSE_S", 3600.0)  # Were it waited for, nobody would see the end.
    said: list[str] = []
    with LeaseHolder(str(tmp_path), say=said.append) as first:
        first.take()
        first.take()
        with pytest.raises(StorageError, match="another driver is at work"):
            LeaseHolder(str(tmp_path), say=said.append).take()
    assert not (tmp_path / "lease.json").exists()
    with LeaseHolder(str(tmp_path), say=said.append) as second:
        second.take()
    assert said == []


def test_a_driver_on_another_machine_lives_while_its_number_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's clock is compared with anybody's."""
    monkeypatch.setattr(jobs.lease, "LAPSE_S", 10.0)
    said: list[str] = []
    with monkeypatch.context() as there:
        there.setattr(jobs.lease, "name_process", lambda: ELSEWHERE)
        other = LeaseHolder(str(tmp_path), say=said.append)
    with other:
        other.take()
        with pytest.raises(StorageError, match="pid 1 on another"):
            LeaseHolder(str(tmp_path), say=said.append).take()
        other.check()
    assert len(said) == 1
    assert "waiting 10 s for a sign of life" in said[0]


def test_a_dead_drivers_lease_lapses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, and that is said; no waiting where the process is known to be dead on this machine."""
    said: list[str] = []
    write(tmp_path, Lease("other", ELSEWHERE))
    with LeaseHolder(str(tmp_path), say=said.append) as holder:
        holder.take()
    assert [text.rpartition("; ")[2] for text in said] == ["waiting 1 s for a sign of life", "going on"]

    code = "from jobs.lease import name_process; n = name_process(); print(n.machine, n.pid, n.started, sep='|')"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    machine, pid, started = answer.stdout.strip().split("|")
    dead = ProcessName(machine, int(pid), started)
    if not started:
        pytest.skip("this system does not say when a process started")
    assert (is_process_alive(dead), is_process_alive(name_process()), is_process_alive(ELSEWHERE)) == (False, True, None)
    write(tmp_path, Lease("other", dead))
    monkeypatch.setattr(jobs.lease, "LAPSE_S", 3600.0)
    said.clear()
    with LeaseHolder(str(tmp_path), say=said.append) as holder:
        holder.take()
    assert said == []


def test_of_two_that_come_at_once_one_has_it(tmp_path: Path) -> None:
    """Never both for longer than a beat, whatever the order of their writes."""
    holders = [LeaseHolder(str(tmp_path), say=lambda text: None) for _ in range(4)]

    def take(holder: LeaseHolder) -> None:
        try:
            holder.take()
        except StorageError:
            refused.append(holder)

    refused: list[LeaseHolder] = []
    threads = [threading.Thread(target=take, args=(holder,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.3)
    having = [holder for holder in holders if holder not in refused and not holder.is_lost()]
    assert len(having) == 1
    for holder in holders:
        holder.release()
    assert not (tmp_path / "lease.json").exists()


def test_a_driver_that_slept_finds_that_another_has_the_folder(tmp_path: Path) -> None:
    """It stops, and does not take the other's lease away when it leaves."""
    with LeaseHolder(str(tmp_path), say=lambda text: None) as holder:
        holder.take()
        write(tmp_path, Lease("other", ELSEWHERE))
        time.sleep(0.3)
        if not holder.is_lost():  # Its own beat came after that write: then the file is its own again.
            write(tmp_path, Lease("other", ELSEWHERE))
            time.sleep(0.3)
        assert holder.is_lost()
        with pytest.raises(LeaseLostError, match="belongs to another driver"):
            holder.check()
    found = read_lease(str(tmp_path))
    assert found is not None
    assert found.driver == "other"


def test_a_worker_that_was_written_off_may_not_write(tmp_path: Path) -> None:
    """Nor one of a driver that is gone; others may."""
    output = str(tmp_path)
    check_permit(output, None)
    with LeaseHolder(output, say=lambda text: None) as holder:
        holder.take()
        check_permit(output, Permit(holder.driver, 1))
        holder.write_off(1)
        check_permit(output, Permit(holder.driver, 2))
        with pytest.raises(LeaseLostError, match="written off"):
            check_permit(output, Permit(holder.driver, 1))
        with pytest.raises(LeaseLostError):
            check_permit(output, Permit("another", 2))


def test_nobody_is_written_off_in_another_driver_s_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as it is, and so its driver keeps the folder."""
    monkeypatch.setattr("jobs.lease.BEAT_S", 3600.0)
    with LeaseHolder(str(tmp_path), say=lambda text: None) as holder:
        holder.take()
        write(tmp_path, Lease("other", ELSEWHERE))
        with pytest.raises(LeaseLostError):
            holder.write_off(1)
    assert read_lease(str(tmp_path)) == Lease("other", ELSEWHERE)


def test_what_was_written_off_long_ago_takes_no_room(tmp_path: Path) -> None:
    """Attempts below those in work may write nothing, and need no name; nobody gets the right back."""
    output = str(tmp_path)

    def may_write(attempt: int) -> bool:
        try:
            check_permit(output, Permit(holder.driver, attempt))
        except LeaseLostError:
            return False
        return True

    with LeaseHolder(output, say=lambda text: None) as holder:
        holder.take()
        holder.write_off(*range(1, 5000, 2))
        assert (may_write(4998), may_write(4999), may_write(5001)) == (True, False, True)
        holder.write_off(5002, floor=5001)
        time.sleep(0.2)  # Beats go by.
        assert [may_write(attempt) for attempt in (1, 4998, 5000, 5001, 5002, 5003)] == [False] * 3 + [True, False, True]
        assert (tmp_path / "lease.json").stat().st_size < 400
        holder.write_off(5004, floor=7)
        assert [may_write(attempt) for attempt in (7, 5000, 5001, 5002, 5003, 5004)] == [False, False, True, False, True, False]


def test_a_lease_of_the_version_before_is_understood(tmp_path: Path) -> None:
    """It has no floor, so nothing is below it."""
    process = {"machine": "another machine", "pid": 1, "started": "1"}
    old = {"driver": "other", "process": process, "beat": 3, "written_off": [4]}
    (tmp_path / "lease.json").write_text(json.dumps(old, indent=2))
    assert read_lease(str(tmp_path)) == Lease("other", ELSEWHERE, beat=3, written_off=(4,))
    check_permit(str(tmp_path), Permit("other", 1))
    with pytest.raises(LeaseLostError, match="written off"):
        check_permit(str(tmp_path), Permit("other", 4))


def test_a_folder_that_is_not_mounted_any_more_is_left_alone(tmp_path: Path) -> None:
    """Neither driver nor worker writes below the mount point; once the disk is back the driver still has its folder."""
    output = tmp_path / "disk" / "run"
    with LeaseHolder(str(output), say=lambda text: None) as holder:
        holder.take()
        (tmp_path / "disk").rename(tmp_path / "gone")
        (tmp_path / "disk").mkdir()
        time.sleep(0.3)
        for ask in (holder.check, lambda: check_permit(str(output), Permit(holder.driver, 1))):
            with pytest.raises(StorageError, match="still mounted"):
                ask()
        assert not output.exists()
        (tmp_path / "disk").rmdir()
        (tmp_path / "gone").rename(tmp_path / "disk")
        time.sleep(0.3)
        holder.check()
    assert not (output / "lease.json").exists()
