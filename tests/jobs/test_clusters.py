"""Clusters as README describes them: a job sent to one, the machines of ``ray up``, a Kubernetes manifest."""

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from fakes import label_arguments, make_slow
from job_server import JobServer, copy_checkout, serve_jobs
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.options import JobOptions, Selection
from labeler.options import MaskOptions

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8")

FAKES = ("--runtime-env-json", '{"env_vars": {"PYTHONPATH": "tests/jobs"}}')


@pytest.fixture(scope="module")
def job_server() -> Iterator[JobServer]:
    """A head with two CPUs, a job server and a token."""
    with serve_jobs() as server:
        yield server


def test_a_submitted_job(job_server: JobServer, model_folder: Path, tmp_path: Path) -> None:
    """Its exit code is the job's status, its log has progress lines and no bars, and no virtual environment travels.

    Without the token nothing is accepted.
    """
    checkout = copy_checkout(tmp_path / "checkout")
    slow = make_slow(tmp_path / "slow", count=13)
    (slow / "broken.png").write_text("no picture")
    fake_jobs = ("python", "tests/jobs/fake_jobs.py")
    common = label_arguments(slow, tmp_path / "out", model_folder, "--workers", 1, "--images-per-shard", 2)

    typo = job_server.submit(checkout, "python", "-m", "jobs", *common[:3], "--output", tmp_path / "out", "--modle", "x")
    assert typo.returncode == 1
    assert "failed with exit code 2" in typo.stdout
    done = job_server.submit(checkout, *fake_jobs, *common, "--max-error-rate", 0.5, options=FAKES)
    assert (done.returncode, "succeeded" in done.stdout) == (0, True), done.stderr
    assert re.search(r"^shard 6 committed: 2 images, 1 failed, \d+ masks, by pid \d+", done.stdout, re.MULTILINE)
    assert re.search(r"^\d+/14 images, .* images/s", done.stdout, re.MULTILINE)
    assert "━" not in done.stdout
    assert pd.read_parquet(tmp_path / "out" / "images")["error_kind"].dropna().tolist() == ["corrupt"]
    assert 100_000 < job_server.measure_uploads() < 30 * 2**20

    (Path(job_server.environment["HOME"]) / "other").write_text("0" * 64)
    stranger = {**job_server.environment, "RAY_AUTH_TOKEN_PATH": f"{job_server.environment['HOME']}/other"}
    refused = subprocess.run([job_server.ray, "job", "list"], env=stranger, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "token" in refused.stderr


def test_the_machines_of_ray_up() -> None:
    """Ray accepts them, and would not accept a slip; the head has no CPUs for workers; no option of a job stands there."""
    path = ROOT / "cluster.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    validate_config(prepare_config(copy.deepcopy(config)))

    def misspell(config: dict[str, Any]) -> None:
        config["available_node_types"]["worker"]["max_worker"] = 3

    def name_nobody(config: dict[str, Any]) -> None:
        config["head_node_type"] = "nobody"

    for spoil in (misspell, name_nobody, lambda config: config.update(max_worker=3)):
        spoiled = copy.deepcopy(config)
        spoil(spoiled)
        with pytest.raises(Exception, match=r"max_worker|head_node_type"):
            validate_config(prepare_config(spoiled))

    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
    names = {*MaskOptions.model_fields, *JobOptions.model_fields, *Selection.model_fields}
    flags = {f"--{name.replace('_', '-')}" for name in names}
    text = path.read_text(encoding="utf-8")
    assert not flags & set(re.findall(r"--[\w-]+", text))
    keys = set(re.findall(r"^\s*-?\s*(\w+):", text, re.MULTILINE))
    assert keys & names <= {"max_workers", "min_workers"}  # Those are also Ray's names, for nodes.
    assert f"rayproject/ray:{_read_ray_version()}-py311" == config["docker"]["image"]


TEXT, NUMBER, FLAG = str, int, bool
_LIMITS = {"requests": {"*": TEXT}, "limits": {"*": TEXT}}
_POD = {
    "spec!": {
        "nodeSelector": {"*": TEXT},
        "containers!": [
            {"name!": TEXT, "image": TEXT, "resources": _LIMITS, "envFrom": [{"secretRef": {"name": TEXT, "optional": FLAG}}]}
        ],
    }
}
RAY_JOB = {
    "apiVersion!": TEXT,
    "kind!": TEXT,
    "metadata!": {"name": TEXT},
    "spec!": {
        "entrypoint": TEXT,
        "backoffLimit": NUMBER,
        "submissionMode": TEXT,
        "submitterConfig": {"backoffLimit": NUMBER},
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": NUMBER,
        "runtimeEnvYAML": TEXT,
        "rayClusterSpec": {
            "rayVersion": TEXT,
            "enableInTreeAutoscaling": FLAG,
            "autoscalerOptions": {"idleTimeoutSeconds": NUMBER, "version": TEXT},
            "authOptions": {"mode": TEXT, "secretName": TEXT, "enableK8sTokenAuth": FLAG},
            "headGroupSpec!": {"rayStartParams": {"*": TEXT}, "template!": _POD},
            "workerGroupSpecs": [
                {
                    "groupName!": TEXT,
                    "replicas": NUMBER,
                    "minReplicas!": NUMBER,
                    "maxReplicas!": NUMBER,
                    "rayStartParams": {"*": TEXT},
                    "template!": _POD,
                }
            ],
        },
    },
}
"""Fields of the custom resource RayJob, ray.io/v1, in KubeRay 1.7.0, as far as a manifest may need them; ! is required."""


def find_misfits(value: Any, schema: Any, *, where: str = "") -> Iterator[str]:
    """What of a manifest the custom resource does not have, lacks, or has as another type."""
    if isinstance(schema, type):
        if type(value) is not schema:
            yield f"{where} is a {type(value).__name__}"
    elif isinstance(schema, list):
        for number, item in enumerate(value):
            yield from find_misfits(item, schema[0], where=f"{where}[{number}]")
    else:
        fields = {name.rstrip("!"): field for name, field in schema.items()}
        yield from (f"{where} lacks {name[:-1]}" for name in schema if name.endswith("!") and name[:-1] not in value)
        for name, item in value.items():
            field = fields.get(name, fields.get("*"))
            if field is None:
                yield f"{where} has no {name}"
            else:
                yield from find_misfits(item, field, where=f"{where}.{name}")


def test_the_manifest_for_kubernetes() -> None:
    """Every field is one of the custom resource; one misspelt, missing or of another type would be found."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    manifest = yaml.safe_load(text)
    assert list(find_misfits(manifest, RAY_JOB)) == []
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == _read_ray_version()
    spoiled = copy.deepcopy(manifest)
    spoiled["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    spoiled["spec"]["backOffLimit"] = spoiled["spec"].pop("backoffLimit")
    del spoiled["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    assert sorted(find_misfits(spoiled, RAY_JOB)) == [
        ".spec has no backOffLimit",
        ".spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus is a int",
        ".spec.rayClusterSpec.workerGroupSpecs[0] lacks groupName",
    ]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 0), (3, 0), (143, 143)])
def test_what_would_fail_again_is_not_started_again(tmp_path: Path, code: int, expected: int) -> None:
    """The page's script hands its arguments on, and ends with 0 where KubeRay must not retry."""
    (script,) = re.findall(r"```sh\n(#!/bin/sh.*?)```", PAGE, re.DOTALL)
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" > said\nexit {code}\n')
    (tmp_path / "label").write_text(script)
    for name in ("python", "label"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["./label", "--input", "a b"]
    answer = subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert answer.returncode == expected
    assert (tmp_path / "said").read_text() == "-m jobs label --input a b\n"
    assert (f"exit {code}" in answer.stderr) == (code in (2, 3))


def _read_ray_version() -> str:
    (version,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)
