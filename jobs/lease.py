"""Who may write to a run's folder: one driver at a time, and of its workers none that was written off.

Must not know Ray or what is written. Works on storage alone, by one small file, ``lease.json``; no store's locks and no
two machines' clocks are relied on. The holder counts a number up every few seconds. Whoever else wants the folder
watches, by its own clock, whether the number still moves: while it does, the holder lives. A holder that finds another
name in the file has lost the folder and stops. Workers read the file before each write. Where there is none any more, the
store is not what it was: a disk that is no longer mounted leaves an empty folder, which nobody shall fill.
"""

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from labeler import storage
from labeler.errors import StorageError, StorageRefusedError
from labeler.retries import call_with_retries, trying_once

logger = logging.getLogger(__name__)

LEASE_JSON = "lease.json"

BEAT_S = 3.0
"""How often the holder counts up."""

LAPSE_S = 30.0
"""A lease whose number has not moved for so long has lapsed."""

_SETTLE_S = 0.3


class LeaseLostError(StorageRefusedError):
    """Another driver has the folder, or this worker was written off: what it has not committed does not count."""


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A process, named so that no other is ever taken for it.

    Attributes:
        machine: host, boot and process namespace; only there the number means anything.
        pid: its number.
        started: when, in the kernel's ticks since the boot; empty where that is not known.
    """

    machine: str
    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The content of ``lease.json``.

    Attributes:
        driver: a random name of the process that holds it.
        process: its host and pid: to tell people, and to see on its own machine whether it lives.
        beat: counted up while the driver lives.
        written_off: attempts (see ``jobs.ledger``) whose workers are not known to be dead and may write no more.
        floor: attempts below it may write no more either; none of them is in work.
    """

    driver: str
    process: ProcessName
    beat: int = 0
    written_off: tuple[int, ...] = ()
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Permit:
    """A worker's right to write one shard once."""

    driver: str
    attempt: int


class LeaseHolder:
    """This process's claim on a run's folder: taken once, kept alive by a thread, given back at the end.

    Args:
        output: the run's folder.
        say: told, in a sentence, what is waited for.
    """

    def __init__(self, output: str, *, say: Callable[[str], None]) -> None:
        self._output = output
        self._say = say
        self._lease = Lease(secrets.token_hex(8), name_process())
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost_to: Lease | None = None

    @property
    def driver(self) -> str:
        """The name under which permits are given out."""
        return self._lease.driver

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def take(self) -> None:
        """Take the folder; a second time is nothing.

        Raises:
            StorageError: another driver has it and lives, or the folder can't be written.
        """
        if self._thread is not None:
            return
        other = read_lease(self._output)
        if other is not None:
            wait_until_lapsed(self._output, other, say=self._say)
        self._write()
        time.sleep(_SETTLE_S)  # Of two that came at the same moment, the one that wrote last has it.
        self.check()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Once the folder was taken: is it still this driver's?

        Raises:
            LeaseLostError: another driver has it now.
            StorageError: there is no lease in it, so it is another folder, or was emptied.
        """
        if self._lost_to is None:
            found = _read_lease_that_stood(self._output)
            self._lost_to = found if found.driver != self._lease.driver else None
        if self._lost_to is not None:
            raise LeaseLostError(f"{self._output} belongs to another driver now: {_describe(self._lost_to.process)}")

    def is_lost(self) -> bool:
        """Whether the thread has found that another driver has the folder."""
        return self._lost_to is not None

    def write_off(self, *attempts: int, floor: int = 0) -> None:
        """From now on these attempts' workers may write nothing, should they still live; nor any below ``floor``.

        Attempts are numbered upwards, so the floor, which only rises, keeps what has to be written small.
        """
        with self._lock:
            floor = max(floor, self._lease.floor)
            written_off = sorted({*self._lease.written_off, *attempts})
            self._lease = replace(self._lease, written_off=tuple(n for n in written_off if n >= floor), floor=floor)
        call_with_retries(self._renew)  # As a whole: between the tries the lease is kept alive.

    def release(self) -> None:
        """Give the folder back, so that the next driver need not wait."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join(timeout=2 * BEAT_S)
        with trying_once(), suppress(StorageError, OSError):
            found = read_lease(self._output)
            if found is not None and found.driver == self._lease.driver:
                storage.delete(_locate(self._output))

    def _keep_alive(self) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                with trying_once():  # The next beat is the next try.
                    self._renew()
            except LeaseLostError:
                return
            except (StorageError, OSError) as error:
                logger.warning("the lease could not be renewed: %s", error)

    def _renew(self) -> None:
        """Write the lease over this driver's own: never over another's, nor where the folder is not mounted any more."""
        self.check()
        self._write()

    def _write(self) -> None:
        with self._lock:
            self._lease = replace(self._lease, beat=self._lease.beat + 1)
            content = json.dumps(asdict(self._lease)).encode() + b"\n"
            storage.write_bytes(_locate(self._output), content)


def wait_until_lapsed(output: str, other: Lease, *, say: Callable[[str], None]) -> None:
    """Wait for another driver's lease to end: at once where it is known dead on this machine, else as long as it moves.

    Raises:
        StorageError: it lives.
    """
    alive = is_process_alive(other.process)
    if alive is False:
        return
    begin_s = time.monotonic()
    if alive is None:
        say(f"another driver has {output} ({_describe(other.process)}); waiting {LAPSE_S:.0f} s for a sign of life")
    while alive is None:
        time.sleep(min(1.0, LAPSE_S / 10))
        now = read_lease(output)
        if now is None:
            return
        if now != other:
            break
        if time.monotonic() > begin_s + LAPSE_S:
            say("it has given none; going on")
            return
    raise StorageError(f"another driver is at work on {output}: {_describe(other.process)}; stop it first, or wait for it")


def check_permit(output: str, permit: Permit | None) -> None:
    """Before each write of a worker. None: nobody else can be there.

    Raises:
        LeaseLostError: the folder has another driver, or this attempt was written off.
        StorageError: there is no lease in it, so it is another folder, or was emptied.
    """
    if permit is None:
        return
    lease = _read_lease_that_stood(output)
    if lease.driver != permit.driver:
        raise LeaseLostError(f"{output} does not belong to this worker's driver any more")
    if permit.attempt < lease.floor or permit.attempt in lease.written_off:
        raise LeaseLostError(f"this worker was written off; another has its shard of {output}")


def read_lease(output: str) -> Lease | None:
    """The lease that stands, or None. One that can't be understood counts as nobody's."""
    try:
        content = json.loads(storage.read_bytes(_locate(output)))
        process = ProcessName(**content.pop("process"))
        return Lease(**{**content, "process": process, "written_off": tuple(content["written_off"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    except PermissionError as error:
        raise StorageError(f"{_locate(output)} may not be read: {error}") from error


def _read_lease_that_stood(output: str) -> Lease:
    lease = read_lease(output)
    if lease is None:
        raise StorageError(f"{_locate(output)}, which this job keeps there, is gone: is the disk still mounted?")
    return lease


def name_process() -> ProcessName:
    """This process."""
    return ProcessName(_name_machine(), os.getpid(), _read_start("self"))


def is_process_alive(name: ProcessName) -> bool | None:
    """Whether a process lives; None where it is, or may be, on another machine, or hidden as another user's."""
    if name.machine != _name_machine() or not name.started:
        return None
    try:
        return _read_start(str(name.pid)) == name.started
    except OSError:
        return None if _is_hidden(name.pid) else False


def _is_hidden(pid: int) -> bool:
    """Whether a process of another user has that number, though /proc may not show it (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _name_machine() -> str:
    pieces = [platform.node()]
    with suppress(OSError):
        pieces.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        pieces.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(pieces)


def _read_start(pid: str) -> str:
    """When a process started; empty on systems without /proc. A dead one that nobody has waited for is no process."""
    if not Path("/proc/self/stat").exists():
        return ""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]


def _locate(output: str) -> str:
    return storage.join(output, LEASE_JSON)


def _describe(process: ProcessName) -> str:
    return f"pid {process.pid} on {process.machine.split(' ')[0]}"
