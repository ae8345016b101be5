"""The published SAM checkpoints: address, size and sha256, and how to fetch one.

Must not know what is inside a checkpoint or what is made of it.
"""

import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from labeler.errors import ModelError
from labeler.locks import open_alone
from labeler.model_folder import hash_file

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_WAITS_S = (1.0, 2.0, 4.0)
"""How long to wait before asking again, each time that nothing at all arrived."""
_SECONDS_BETWEEN_PROGRESS = 5.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published file of weights."""

    model_type: str
    url: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """The name it is published under."""
        return self.url.rsplit("/", 1)[-1]


def _meta(model_type: str, file_name: str, *, size_bytes: int, sha256: str) -> Checkpoint:
    return Checkpoint(model_type, f"https://dl.fbaipublicfiles.com/segment_anything/{file_name}", sha256, size_bytes)


CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.model_type: checkpoint
    for checkpoint in (
        _meta(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            size_bytes=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _meta(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            size_bytes=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _meta(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            size_bytes=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        Checkpoint(
            "vit_t",
            "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size_bytes=40_728_226,
        ),
    )
}


class _UnavailableError(Exception):
    """The server did not give (all of) the file. ``final``: asking again would not help."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def download(checkpoint: Checkpoint, *, folder: Path) -> Path:
    """Bring a published file into a folder, whole and verified, or take the one that lies there.

    A download that broke off goes on where it stopped, in this call or in a later one (its beginning is kept as
    ``NAME.part``). Processes that want the same file wait for the one that loads it.

    Raises:
        ModelError: the address does not answer (names it, the file and where to put it), or the bytes are others than
            the published ones.
    """
    target = folder / checkpoint.file_name
    if target.exists():
        _check_sha256(target, checkpoint, remedy=f"delete it, or replace it by {checkpoint.url}")
        return target
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_alone(target.with_name(target.name + ".lock")):  # Not the file itself: over SMB nobody reads what is locked.
            if not target.exists():
                with part.open("ab") as file:
                    _download_all(checkpoint, file)
                _publish(part, target, checkpoint)
    except _UnavailableError as error:
        raise ModelError(
            f"can't download {checkpoint.url} ({error}). Without network: fetch {checkpoint.file_name} on another "
            f"machine, put it at {target} and run the same command again, or convert it by --checkpoint"
        ) from error
    except OSError as error:
        raise ModelError(f"can't write {part}: {error.strerror or error}") from error
    return target


def _publish(part: Path, target: Path, checkpoint: Checkpoint) -> None:
    try:
        _check_sha256(part, checkpoint, remedy="it was deleted; run the same command again")
    except ModelError:
        part.unlink()
        raise
    part.replace(target)
    logger.info("%s: downloaded and verified", target)


def _check_sha256(path: Path, checkpoint: Checkpoint, *, remedy: str) -> None:
    logger.info("%s: verifying its sha256", path)
    sha256 = hash_file(path)
    if sha256 != checkpoint.sha256:
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes, sha256 {sha256}) is not the published {checkpoint.file_name} "
            f"({checkpoint.size_bytes} bytes, sha256 {checkpoint.sha256}): {remedy}"
        )


def _download_all(checkpoint: Checkpoint, file: BinaryIO) -> None:
    """Append what is missing, asking again as long as something arrives."""
    failures = 0
    while (begin := file.seek(0, os.SEEK_END)) < checkpoint.size_bytes:
        try:
            _download_rest(checkpoint, file, begin=begin)
            reason = "the connection ended early"
        except _UnavailableError as error:
            if error.final:
                raise
            reason = str(error)
        file.flush()
        if file.tell() > begin:
            failures = 0
            continue
        if failures == len(_WAITS_S):
            raise _UnavailableError(reason)
        time.sleep(_WAITS_S[failures])
        failures += 1


def _download_rest(checkpoint: Checkpoint, file: BinaryIO, *, begin: int) -> None:
    """One request for everything from ``begin`` on; what arrives before a failure stays in the file."""
    request = urllib.request.Request(checkpoint.url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if begin and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)  # A server without ranges sends the file from its first byte.
                begin = 0
            _append(checkpoint, file, answer, begin=begin)
    except urllib.error.HTTPError as error:
        error.close()
        busy = error.code >= 500 or error.code in (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)
        raise _UnavailableError(f"HTTP {error.code} {error.reason}", final=not busy) from error
    except urllib.error.URLError as error:
        raise _UnavailableError(str(error.reason)) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _UnavailableError(f"the connection broke: {error or type(error).__name__}") from error


def _append(checkpoint: Checkpoint, file: BinaryIO, answer: http.client.HTTPResponse, *, begin: int) -> None:
    started = said = time.monotonic()
    size = begin
    while chunk := answer.read1(_CHUNK_BYTES):
        file.write(chunk)
        size += len(chunk)
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_PROGRESS:
            said = now
            logger.info(
                "%s: %.0f of %.0f MB, %.1f MB/s",
                checkpoint.file_name,
                size / 1e6,
                checkpoint.size_bytes / 1e6,
                (size - begin) / 1e6 / (now - started),
            )
