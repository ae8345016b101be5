"""Fixtures that several test files share."""

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labeler.errors import ModelError
from labeler.retries import use_retries
from labeler.stores import use_store_options

sys.path.insert(0, str(Path(__file__).parent))  # So that tests find "stores" by name.

import page_server
import stores

PROTOTYPE = Path(__file__).parent / "data" / "prototype"


@pytest.fixture(autouse=True)
def _storage_is_tried_once() -> Iterator[None]:
    """What a command in this process said about its patience does not hold for the next test."""
    yield
    use_retries(0)


@pytest.fixture(scope="session")
def prototype_checkpoint() -> Path:
    """A small trained SAM (f16 state dict); ``arch.json`` beside it describes it."""
    return PROTOTYPE / "state_f16.pth"


@pytest.fixture(scope="session")
def prototype_folder(prototype_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prototype as a model folder, with its ONNX files; converted once a session."""
    try:
        from labeler import convert
    except ModelError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("prototype")
    convert.convert_checkpoint(prototype_checkpoint, output=folder, model_type=str(PROTOTYPE / "arch.json"), keep_onnx=True)
    return folder


@pytest.fixture(scope="session")
def prototype_sam(prototype_checkpoint: Path) -> Any:
    """The prototype in PyTorch, with the rounded weights its model folder holds: the oracle."""
    convert = pytest.importorskip("labeler.convert", reason="needs the extra convert", exc_type=Exception)
    sam = convert.build_sam(PROTOTYPE / "arch.json")
    sam.load_state_dict(convert.load_checkpoint(prototype_checkpoint))
    return sam


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, or the test is skipped."""
    with page_server.open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server in a process of its own, with nothing in it."""
    pytest.importorskip("moto.server", reason="needs moto's server")
    pytest.importorskip("s3fs", reason="needs the extra s3")
    with stores.serve_s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def s3(endpoint: str) -> Iterator[Any]:
    """Another tool's view of the server; this process opens it with options as the command line would."""
    client = pytest.importorskip("boto3", reason="needs boto3").client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=stores.S3_KEYS["key"],
        aws_secret_access_key=stores.S3_KEYS["secret"],
    )
    for bucket in ("photos", "labels"):
        client.create_bucket(Bucket=bucket)
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": endpoint}})
    yield client
    use_store_options({})
    client.close()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
