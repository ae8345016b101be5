"""Machine code on disk: kept where it can be, and never a reason to fail."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from numba.core.caching import CacheImpl
from numba.core.dispatcher import Dispatcher

from labeler import regions, tracing
from labeler.compiled import compiled

_LOOP = """
from labeler.compiled import compiled

@compiled
def double(x):
    return 2 * x
"""

_RUN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from loop import double
for value in sys.argv[2:]:
    assert double(float(value) if "." in value else int(value)) == 2 * float(value)
print(sum(double._cache_hits.values()), sum(double._cache_misses.values()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one compiled loop in it."""
    (tmp_path / "loop.py").write_text(_LOOP)
    return tmp_path


def run(folder: Path, *values: str, most_bytes: int = 1 << 30, cpu: str = "") -> tuple[int, int]:
    """In a new process: how many of the calls found machine code, and how many compiled. The answers are asserted there."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"} | ({"NUMBA_CPU_NAME": cpu} if cpu else {})
    command = [sys.executable, "-c", _RUN, str(most_bytes), *values]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert answer.returncode == 0, answer.stderr
    hits, misses = answer.stdout.split()
    return int(hits), int(misses)


def test_machine_code_is_kept_for_each_signature(folder: Path) -> None:
    assert run(folder, "3") == (0, 1)
    assert run(folder, "4.5") == (0, 1)
    assert run(folder, "4.5", "3") == (2, 0)
    (folder / "loop.py").write_text(_LOOP.replace("2 * x", "x + x"))
    assert run(folder, "4.5", "3") == (0, 2)


def test_unlike_cpus_on_a_shared_disk_keep_their_own(folder: Path) -> None:
    """numba's own index would be written over by whichever is last."""
    assert run(folder, "3") == (0, 1)
    assert run(folder, "3", cpu="generic") == (0, 1)
    assert run(folder, "3") == (1, 0)
    assert run(folder, "3", cpu="generic") == (1, 0)


@pytest.mark.parametrize("kept", [0, 0.5, "zeros", "hole"])
def test_machine_code_that_is_cut_is_made_anew(folder: Path, kept: float | str) -> None:
    """Empty, cut in half, zeros, or with a hole in it, as a machine that lost power leaves files."""
    assert run(folder, "3") == (0, 1)
    (file,) = (folder / "__pycache__").glob("*.nbc")
    whole = file.read_bytes()
    third = len(whole) // 3
    holes = {"zeros": bytes(len(whole)), "hole": whole[:third] + bytes(200) + whole[third + 200 :]}
    file.write_bytes(holes[kept] if isinstance(kept, str) else whole[: int(kept * len(whole))])
    assert run(folder, "3") == (0, 1)
    assert run(folder, "3") == (1, 0)


def test_machine_code_of_other_packages_is_made_anew(folder: Path) -> None:
    """Whole, but of a class that is no more, as after an upgrade."""
    assert run(folder, "3") == (0, 1)
    (file,) = (folder / "__pycache__").glob("*.nbc")
    content = b"cno_such_module\nThing\n."
    file.write_bytes(hashlib.sha256(content).digest() + content)
    assert run(folder, "3") == (0, 1)
    assert run(folder, "3") == (1, 0)


def test_a_full_disk_costs_a_compilation(folder: Path) -> None:
    assert run(folder, "3", most_bytes=100) == (0, 1)
    assert not [path for path in (folder / "__pycache__").iterdir() if path.suffix != ".pyc" and "loop.double" in path.name]
    assert run(folder, "3") == (0, 1)


@pytest.mark.parametrize("module", [regions, tracing])
def test_compiled_loops_call_none_of_another_file(module: ModuleType) -> None:
    """Numba keeps machine code until its own file changes: what is compiled into it from another would stay as it was."""
    loops = [loop for loop in vars(module).values() if isinstance(loop, Dispatcher) and loop.__module__ == module.__name__]
    assert loops
    for loop in loops:
        called = [loop.py_func.__globals__.get(name) for name in loop.py_func.__code__.co_names]
        assert {other.__module__ for other in called if isinstance(other, Dispatcher)} <= {module.__name__}


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose files are read-only."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    @compiled
    def double(x: int) -> int:
        return 2 * x

    assert double(21) == 42
