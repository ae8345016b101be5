"""A cluster whose machines have Python and Ray alone: the page's runtime environment brings the rest. Needs the network."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

from fakes import write_picture
from job_server import ROOT, copy_checkout, serve_jobs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_packages_come_with_the_job(tmp_path: Path) -> None:
    """From the project's own metadata, with the README's own words; the second job finds them installed."""
    page = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"--runtime-env-json '(.*?)'", page, re.DOTALL)
    checkout = copy_checkout(tmp_path / "checkout")
    prototype = ROOT / "tests" / "data" / "prototype"
    convert = ["--model-type", prototype / "arch.json", "--checkpoint", prototype / "state_f16.pth"]
    subprocess.run([sys.executable, "-m", "labeler", "convert", *convert, "--output", tmp_path / "model"], cwd=ROOT, check=True)
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", seed=number)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", bare], check=True)
    pip = [bare / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, "ray[default]"], check=True)
    missing = subprocess.run([bare / "bin" / "python", "-c", "import openvino"], capture_output=True, check=False)
    assert missing.returncode == 1
    command = ("python", "-m", "jobs", "label", "--input", tmp_path / "in", "--model", tmp_path / "model")
    with serve_jobs(bin_folder=bare / "bin") as server:
        for name in ("first", "second"):
            begin = time.monotonic()
            more = ("--output", tmp_path / name, "--points-per-side", 4, "--workers", 1)
            answer = server.submit(checkout, *command, *more, options=("--runtime-env-json", text))
            assert answer.returncode == 0, answer.stdout + answer.stderr
            print(f"\nthe {name} job on a fresh cluster: {time.monotonic() - begin:.0f} s")
            assert pd.read_parquet(tmp_path / name / "images")["status"].eq("ok").all()
