"""New Python processes: how they find these packages."""

import os
import site
import sysconfig
from pathlib import Path


def add_own_path(paths: str | None) -> str:
    """A PYTHONPATH with the checkout that this process runs from.

    Not where the packages are installed: there they are found anyway, and what else is installed would come before Python's own
    modules.
    """
    folder = Path(__file__).resolve().parent.parent
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages())
    is_installed = folder in [Path(path).resolve() for path in installed]
    return os.pathsep.join(filter(None, [None if is_installed else str(folder), paths]))
