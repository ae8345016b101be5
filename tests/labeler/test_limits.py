"""What containers allow, as their control groups say it: files as Linux, Docker and Slurm lay them out."""

import os
from pathlib import Path

import pytest

from labeler.limits import count_usable_cpus, measure_free_memory

GIB = 2**30


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": f"MemTotal: 1\nMemAvailable: {64 * GIB // 1024} kB\n"} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def describe(group: str, version: int, *, cpus: float | None, memory: int | None) -> dict[str, str]:
    """A control group's files: a quota, and a limit of which 3 GiB are used, 1 of them by pages of files."""
    if version == 2:
        limits = {"cpu.max": "max 100000" if cpus is None else f"{int(cpus * 100000)} 100000"}
        limits |= {"memory.max": "max" if memory is None else str(memory), "memory.current": str(3 * GIB)}
        return {f"{group}/{name}": text for name, text in (limits | {"memory.stat": f"inactive_file {GIB}"}).items()}
    most = 9223372036854771712 if memory is None else memory  # What version 1 says where there is no limit.
    return {
        group.replace("*", "cpu") + "/cpu.cfs_quota_us": "-1" if cpus is None else str(int(cpus * 100000)),
        group.replace("*", "cpu") + "/cpu.cfs_period_us": "100000",
        group.replace("*", "memory") + "/memory.limit_in_bytes": str(most),
        group.replace("*", "memory") + "/memory.usage_in_bytes": str(3 * GIB),
        group.replace("*", "memory") + "/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}",
    }


TOP = "sys/fs/cgroup"
IN_V1 = "12:cpuset:/\n4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
PLACES = {
    "version 2, a namespace of its own": ("0::/\n", TOP, 2),
    "version 2, below a job": ("0::/slurm/job_1/step_0\n", f"{TOP}/slurm/job_1", 2),
    "version 1, as a container sees it": (IN_V1, f"{TOP}/*", 1),
    "version 1, as the host sees it": (IN_V1, f"{TOP}/*/docker/abc", 1),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_containers_limits_are_found_wherever_they_stand(place: str, tmp_path: Path) -> None:
    own, group, version = PLACES[place]
    root = write_files(tmp_path, {"proc/self/cgroup": own} | describe(group, version, cpus=0.5, memory=8 * GIB))
    assert count_usable_cpus(root=root) == 1
    assert measure_free_memory(root=root) == 6 * GIB


@pytest.mark.parametrize("place", PLACES)
def test_without_limits_there_is_the_machine(place: str, tmp_path: Path) -> None:
    own, group, version = PLACES[place]
    root = write_files(tmp_path, {"proc/self/cgroup": own} | describe(group, version, cpus=None, memory=None))
    assert count_usable_cpus(root=root) == len(os.sched_getaffinity(0))
    assert measure_free_memory(root=root) == 64 * GIB


def test_the_narrowest_group_counts(tmp_path: Path) -> None:
    """A step of a job may have less than the job, and the job less than the machine."""
    files = {"proc/self/cgroup": "0::/job/step\n"} | describe(f"{TOP}/job", 2, cpus=0.5, memory=20 * GIB)
    root = write_files(tmp_path, files | describe(f"{TOP}/job/step", 2, cpus=None, memory=10 * GIB))
    assert (count_usable_cpus(root=root), measure_free_memory(root=root)) == (1, 8 * GIB)


def test_no_groups_are_no_limits(tmp_path: Path) -> None:
    assert count_usable_cpus(root=tmp_path) >= 1
    assert measure_free_memory(root=tmp_path) > 0
