"""What a run costs in requests, counted at an S3 server: the figures of jobs/README.md."""

import json
import re
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import stores
from fakes import freeze, load_worker, write_picture

from jobs.lease import Lease, Permit, name_process
from labeler import storage
from labeler.stores import use_store_options

OUTPUT = "s3://labels/run"


def count_requests(log: Path) -> Counter[str]:
    """Method and key of each request so far, shards and images as N."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
    found = re.findall(r'"([A-Z]+) /([^ ?]+)\S* HTTP', plain)
    return Counter(f"{method} {re.sub('[0-9]+', 'N', key)}" for method, key in found)


def test_requests_of_an_image_and_of_a_shard(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GET and a HEAD an image; two PUT, one DELETE and three looks at the lease a shard; the plan is read once."""
    pytest.importorskip("moto.server", reason="needs moto's server")
    boto3: Any = pytest.importorskip("boto3", reason="needs boto3")
    monkeypatch.setenv("SAM_LABELER_CACHE", str(tmp_path / "cache"))
    for number in range(12):
        write_picture(tmp_path / "in" / f"{number}.png", seed=number)
    with stores.serve_s3(tmp_path) as endpoint:
        keys = {"aws_access_key_id": stores.S3_KEYS["key"], "aws_secret_access_key": stores.S3_KEYS["secret"]}
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        for bucket in ("photos", "labels"):
            client.create_bucket(Bucket=bucket)
        use_store_options({"": {**stores.S3_KEYS, "endpoint_url": endpoint}})
        try:
            stores.copy_folder(str(tmp_path / "in"), target="s3://photos/in")
            freeze("s3://photos/in", OUTPUT, model_folder, images_per_shard=4)  # type: ignore[arg-type]
            lease = Lease("driver", name_process())
            storage.write_bytes(f"{OUTPUT}/lease.json", json.dumps(asdict(lease)).encode())
            labeler = load_worker(OUTPUT)
            before = count_requests(tmp_path / "server.log")
            for shard in range(3):
                for _event in labeler.label_shard(shard, permit=Permit("driver", attempt=1)):
                    pass
            time.sleep(0.2)  # The server's log comes after its answer.
        finally:
            use_store_options({})
            client.close()
    assert count_requests(tmp_path / "server.log") - before == {
        "GET photos/in/N.png": 12,
        "HEAD photos/in/N.png": 12,
        "GET labels/run/plan/part-N.parquet": 1,
        "GET labels/run/lease.json": 9,
        "DELETE labels/run/images/part-N.parquet": 3,
        "PUT labels/run/masks/part-N.parquet": 3,
        "PUT labels/run/images/part-N.parquet": 3,
    }
