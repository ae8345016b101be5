"""What this machine, and the container around it, let a process use. Must not know what for."""

import contextlib
import math
import os
from pathlib import Path


def count_usable_cpus() -> int:
    """CPUs this process may use: those it is bound to, and no more than the container's quota pays for."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        usable = min(usable, math.ceil(int(quota) / int(period)))
    return max(1, usable)


def measure_free_memory() -> int:
    """Bytes this process and its children may still take: the machine's, and no more than the container's limit leaves."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # Pages of files count as used, but are given back when they are needed.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return max(0, free)
