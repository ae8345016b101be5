"""Real servers of object stores, each in a process of its own, for tests over HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from labeler import storage

S3_KEYS = {"key": "AKIAEXAMPLE", "secret": "a-secret-nobody-may-read"}
ONE_TRY = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
"""For botocore, which else would ask again below s3fs, which asks again by itself."""
AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's published development key: the same for everybody, and no secret.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def serve_s3(folder: Path) -> Iterator[str]:
    """moto's server: its endpoint."""
    port = find_port()
    with serve([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serve_azure(folder: Path, program: str) -> Iterator[str]:
    """azurite's blob server: its endpoint."""
    port = find_port()
    options = ["--blobPort", str(port), "--location", str(folder), "--silent", "--skipApiVersionCheck"]
    with serve([program, *options], port=port, folder=folder):
        yield f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"


@contextmanager
def serve_gcs(folder: Path) -> Iterator[str]:
    """gcp-storage-emulator, which stands for Google's store: its endpoint."""
    port = find_port()
    options = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    with serve([sys.executable, "-m", "gcp_storage_emulator", *options], port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


class Proxy:
    """``faulty_proxy.py`` before an S3 server; ``stop`` and ``start`` it, and the store is gone and there again."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        self._port = find_port()
        self._target_port = target.rpartition(":")[2]
        self._serving = ExitStack()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve, from now on."""
        program = [sys.executable, str(Path(__file__).parent / "faulty_proxy.py"), str(self._port), self._target_port]
        self._serving.enter_context(serve(program, port=self._port, folder=self._folder))

    def stop(self) -> None:
        """Nobody listens any more."""
        self._serving.close()

    def set_faults(self, **faults: Any) -> None:
        """Which requests are answered with which fault, and how many; none where nothing is said."""
        data = json.dumps(faults).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/--faults", data, method="PUT"), timeout=10).close()

    def list_faults(self) -> list[str]:
        """Which were, since they were set: method and path of each."""
        with urllib.request.urlopen(f"{self.endpoint}/--faults", timeout=10) as answer:
            return list(json.loads(answer.read()))

    def count_faults(self) -> int:
        """How many."""
        return len(self.list_faults())


def find_azurite() -> str | None:
    """``azurite-blob``, from the path or where AZURITE_BIN says."""
    return shutil.which("azurite-blob", path=os.pathsep.join([os.environ.get("AZURITE_BIN", ""), os.environ["PATH"]]))


def find_port() -> int:
    """A port that is free now."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def serve(command: list[str], *, port: int, folder: Path) -> Iterator[None]:
    """Start a server, wait until it answers, end it afterwards."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def count_tries() -> int:
    """How often s3fs asks an overloaded store before it gives up (with ``ONE_TRY``)."""
    from s3fs import S3FileSystem

    return int(S3FileSystem.retries)


def copy_folder(source: str, *, target: str) -> None:
    """Copy every file below a folder."""
    for file in storage.list_files(source):
        storage.write_bytes(storage.join(target, file.path), storage.read_bytes(file.uri))
