"""What this machine, and the container around it, let a process use. Must not know what for.

Containers limit by control groups, of version 1 or 2; a group is also bound by those above it.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def count_usable_cpus(*, root: Path = _ROOT) -> int:
    """CPUs this process may use: those it is bound to, and no more than the container's quota pays for."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _list_groups("cpu", root=root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError):  # No such file, or no limit: "max".
                quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
                usable = min(usable, math.ceil(quota / period)) if quota > 0 else usable
    return max(1, usable)


def measure_free_memory(*, root: Path = _ROOT) -> int:
    """Bytes this process and its children may still take: the machine's, and no more than the container's limit leaves."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for group in _list_groups("memory", root=root):
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):
                limit, used = (int((group / name).read_text()) for name in (most, now))
                # Pages of files count as used, but are given back when they are needed.
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                files = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                free = min(free, limit - used + files)
    return max(0, free)


def _list_groups(controller: str, *, root: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, as far as they can be seen from here."""
    mount = root / "sys/fs/cgroup"
    yield from (mount, mount / controller)
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                top = mount / controller if controllers else mount
                own = top / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder != top and folder.is_relative_to(top))
