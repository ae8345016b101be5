"""Real servers of object stores, each in a process of its own, for tests over HTTP."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

S3_KEYS = {"key": "AKIAEXAMPLE", "secret": "a-secret-nobody-may-read"}
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
