"""How new processes find these packages."""

import os
import sysconfig
from pathlib import Path

import pytest

import jobs.processes
from jobs.processes import add_own_path


def test_new_processes_find_a_checkout_and_installed_packages_come_after_pythons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages are installed, PYTHONPATH would put all that is beside them before the standard library."""
    checkout = str(Path(jobs.processes.__file__).resolve().parent.parent)
    assert add_own_path("/more") == f"{checkout}{os.pathsep}/more"
    assert add_own_path(None) == checkout
    monkeypatch.setattr(sysconfig, "get_path", lambda name: {"purelib": checkout, "platlib": "/elsewhere"}[name])
    assert add_own_path("/more") == "/more"
