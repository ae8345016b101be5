"""S3 gone for seconds, at any moment of a job; the longest time as long as the lease of a dead driver. ``pytest -m soak``."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "jobs"))

from bucket_jobs import label_undisturbed, serve_bench
from fakes import Cluster, make_model

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.mark.parametrize("seconds", [1, 5, 20])
def test_a_store_that_is_gone(tmp_path: Path, s3: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Connections are refused in mid-run: the job waits and ends with an undisturbed run's masks."""
    model = make_model(tmp_path / "model", content="graph")
    (tmp_path / "undisturbed").mkdir()
    undisturbed = label_undisturbed(tmp_path / "undisturbed", model)
    cluster = Cluster(head_cpus=2)
    try:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        with serve_bench(tmp_path, undisturbed=undisturbed, model=model, client=s3, endpoint=endpoint) as bench:
            bench.check_gone(seconds=seconds)
    finally:
        cluster.stop()
