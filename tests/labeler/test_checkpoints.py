"""Downloads against a real HTTP server that misbehaves in the ways servers do."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from labeler import checkpoints
from labeler.checkpoints import CHECKPOINTS, Checkpoint, download
from labeler.errors import ModelError

CONTENT = bytes(range(256)) * 4096
NAME = "sam_vit_t_000000.pth"


@dataclass
class Server:
    """What a test's server does, and what it was asked.

    Attributes:
        breaks_after: bytes after which each answer's connection is cut; used up from the front, then none is.
        statuses: answered in place of the file; used up from the front.
        ranges: whether it knows them.
        asked: the Range header of each request.
    """

    port: int = 0
    content: bytes = CONTENT
    breaks_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)

    def publish(self, *, content: bytes = CONTENT) -> Checkpoint:
        """A checkpoint at this server, whose published bytes are ``content``."""
        return Checkpoint("vit_t", f"http://127.0.0.1:{self.port}/{NAME}", hashlib.sha256(content).hexdigest(), len(content))


@contextmanager
def run_server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.asked.append(asked)
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(server.content) - begin))
            self.end_headers()
            end = begin + server.breaks_after.pop(0) if server.breaks_after else None
            self.wfile.write(server.content[begin:end])

        def log_message(self, *_: Any) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = http_server.server_port
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Runs on this machine; a proxy of the environment must not be asked for it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(checkpoints, "_WAITS_S", (0.0, 0.0))
    with run_server() as running:
        yield running


def test_a_file_arrives_whole_and_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    """What was downloaded and verified is taken from the folder afterwards, without the network."""
    path = download(server.publish(), folder=tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert download(server.publish(), folder=path.parent) == path
    assert server.asked == [None]
    assert {file.name for file in path.parent.iterdir()} == {NAME, f"{NAME}.lock"}


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    """A connection cut twice costs two more requests for the rest, not the bytes that had arrived."""
    server.breaks_after = [300_000, 200_000]
    assert download(server.publish(), folder=tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    """The beginning of a file outlives the process that loaded it."""
    server.breaks_after = [400_000]
    checkpoint = server.publish()
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:123_456])
    assert download(checkpoint, folder=tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=123456-", "bytes=523456-"]


def test_a_server_without_ranges_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    """Its second answer begins at the first byte and replaces what had arrived."""
    server.ranges = False
    server.breaks_after = [300_000]
    assert download(server.publish(), folder=tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    """503 and 429 are no final answers."""
    server.statuses = [503, 429]
    assert download(server.publish(), folder=tmp_path).read_bytes() == CONTENT


def test_a_refusal_is_final(server: Server, tmp_path: Path) -> None:
    """After 404 nobody is asked again; the error names the address and where the file may be put."""
    server.statuses = [404]
    checkpoint = server.publish()
    with pytest.raises(ModelError) as caught:
        download(checkpoint, folder=tmp_path)
    assert checkpoint.url in str(caught.value)
    assert f"put it at {tmp_path / NAME}" in str(caught.value)
    assert "HTTP 404" in str(caught.value)
    assert len(server.asked) == 1


def test_without_network_the_error_says_what_to_do(server: Server, tmp_path: Path) -> None:
    """Nobody answers: the error names address, file and place; a file put there is taken."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    checkpoint = Checkpoint("vit_t", f"http://127.0.0.1:{port}/{NAME}", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    with pytest.raises(ModelError) as caught:
        download(checkpoint, folder=tmp_path)
    assert all(part in str(caught.value) for part in (checkpoint.url, f"fetch {NAME}", str(tmp_path / NAME)))
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download(checkpoint, folder=tmp_path).read_bytes() == CONTENT


def test_other_bytes_than_the_published_ones_are_refused(server: Server, tmp_path: Path) -> None:
    """A wrong download is not kept: the next call starts anew, and succeeds when the server does."""
    checkpoint = server.publish(content=CONTENT[::-1])
    with pytest.raises(ModelError, match=r"is not the published sam_vit_t_000000.pth .*it was deleted"):
        download(checkpoint, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    server.content = CONTENT[::-1]
    assert download(checkpoint, folder=tmp_path).read_bytes() == CONTENT[::-1]


def test_a_wrong_file_in_the_folder_is_named_and_kept(server: Server, tmp_path: Path) -> None:
    """Somebody put it there: it is theirs to delete. The error holds both hashes."""
    (tmp_path / NAME).write_bytes(CONTENT[:1000])
    checkpoint = server.publish()
    with pytest.raises(ModelError, match=f"1000 bytes, sha256 [0-9a-f]{{64}}.*sha256 {checkpoint.sha256}.*delete it"):
        download(checkpoint, folder=tmp_path)
    assert (tmp_path / NAME).exists()


def test_two_at_a_time_download_once(server: Server, tmp_path: Path) -> None:
    """Who comes second waits for the first, and takes its file."""
    checkpoint = server.publish()
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(checkpoint, folder=tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.asked == [None]


def test_a_folder_that_can_not_be_written_says_so(server: Server, tmp_path: Path) -> None:
    """A file where the cache should be is an error with its name."""
    (tmp_path / "cache").touch()
    with pytest.raises(ModelError, match=r"can't write .*cache"):
        download(server.publish(), folder=tmp_path / "cache")


def test_the_published_checkpoints_are_metas_and_mobile_sams() -> None:
    """Addresses, sizes and hashes as published with segment-anything and with MobileSAM."""
    assert {name: (c.url.rsplit("/", 2)[1:], c.sha256[:8], c.size_bytes) for name, c in CHECKPOINTS.items()} == {
        "vit_b": (["segment_anything", "sam_vit_b_01ec64.pth"], "ec2df627", 375_042_383),
        "vit_l": (["segment_anything", "sam_vit_l_0b3195.pth"], "3adcc431", 1_249_524_607),
        "vit_h": (["segment_anything", "sam_vit_h_4b8939.pth"], "a7bf3b02", 2_564_550_879),
        "vit_t": (["weights", "mobile_sam.pt"], "6dbb9052", 40_728_226),
    }
    hosts = {c.url.split("/")[2] for c in CHECKPOINTS.values()}
    assert hosts == {"dl.fbaipublicfiles.com", "raw.githubusercontent.com"}
    assert all(c.url.startswith("https://") and len(c.sha256) == 64 for c in CHECKPOINTS.values())
