"""What the page's server lets through: the page, and nothing else of this machine or of gradio's."""

import asyncio
import html
import http.client
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import page_server
import pytest
from PIL import Image as PillowImage

from labeler.cli import main


@dataclass(frozen=True)
class Server:
    """A running page, the folder it shows, and a file beside that folder."""

    url: str
    folder: Path
    secret: Path

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Status and text. The path goes out as it is, dots and all."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def call(self, target: str, event: str, data: list[Any], **event_data: Any) -> str:
        """Trigger an event as a page that was just opened does: the text of all that the server answers."""
        session = secrets.token_hex(6)
        self._trigger(session, "", "load", [None])
        return self._trigger(session, target, event, data, **event_data)

    def _trigger(self, session: str, target: str, event: str, data: list[Any], **event_data: Any) -> str:
        config = json.loads(self.ask("GET", "/config")[1])
        ids = [c["id"] for c in config["components"] if target and c["props"].get("elem_id") == target]
        heard = {d["id"]: [(t[0], t[1]) for t in d["targets"]] for d in config["dependencies"]}
        function = next(n for n, ts in heard.items() if any(e == event and (not ids or i == ids[0]) for i, e in ts))
        request = {"fn_index": function, "session_hash": session, "data": data, "event_data": event_data or None}
        status, text = self.ask("POST", "/gradio_api/queue/join", json.dumps(request).encode(), content_type="application/json")
        if status != 200:
            return text
        return text + self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")[1]


def to_png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    PillowImage.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prototype_folder: Path) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("served")
    (place / "photos").mkdir()
    (place / "photos" / "a.png").write_bytes(to_png(40, 30))
    (place / "private.png").write_bytes(to_png(41, 31))
    (place / "photos" / "link.png").symlink_to(place / "private.png")
    limits = ["--max-upload-mb", "1", "--max-pixels", "5000"]
    with page_server.serve("--model", prototype_folder, "--images", place / "photos", *limits) as url:
        yield Server(url, place / "photos", place / "private.png")


def test_the_page_is_there_on_this_machine_alone(server: Server) -> None:
    """By its name and number; the port is bound to loopback."""
    assert urlsplit(server.url).hostname == "127.0.0.1"
    status, text = server.ask("GET", "/")
    assert status == 200
    assert "SAM labeler" in text
    port = urlsplit(server.url).port
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=PRIVATE",
        "/gradio_api/file=FOLDER/a.png",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:9/",
        "/gradio_api/file/PRIVATE",
        "/file=PRIVATE",
        "/file/PRIVATE",
        "/gradio_api/proxy=http://127.0.0.1:9/",
        "/proxy=http://127.0.0.1:9/",
        "/static/../../../../../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/package.json",
        "/svelte/../../../../../../etc/passwd",
        "//etc/passwd",
        "/gradio_api/info",
        "/gradio_api/runs",
        "/gradio_api/stream/x/y/1/playlist.m3u8",
        "/gradio_api/upload_progress?upload_id=x",
        "/gradio_api/queue/status",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/photo",
        "/photo/../a.png",
        "/a.png",
    ],
)
def test_no_route_reads_files_or_fetches_addresses(path: str, server: Server) -> None:
    """gradio's own routes to files, addresses, uploads and lists of endpoints are shut, also for the folder's photos."""
    status, text = server.ask("GET", path.replace("PRIVATE", str(server.secret)).replace("FOLDER", str(server.folder)))
    assert status in (404, 403)
    assert "root:" not in text
    assert "PNG" not in text


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/component_server", "/login"])
def test_nothing_else_takes_what_is_sent(path: str, server: Server) -> None:
    """No files beside /photo, no calls beside the queue."""
    assert server.ask("POST", path, b"{}", content_type="application/json")[0] in (404, 405)


def test_a_photo_of_the_folder_opens(server: Server) -> None:
    """The counterpart of the next test: this is how a page opens one."""
    assert "data:image/jpeg" in server.call("photo-name", "select", ["a.png"])


@pytest.mark.parametrize("name", ["link.png", "../private.png", "PRIVATE", "file://PRIVATE", "a.png/../../private.png", "", 7])
def test_an_event_opens_nothing_outside_of_the_folder(name: Any, server: Server) -> None:
    """Whatever a page is made to say."""
    wanted = name.replace("PRIVATE", str(server.secret)) if isinstance(name, str) else name
    answer = server.call("photo-name", "select", [wanted])
    assert "process_completed" in answer
    assert "data:image" not in answer


def test_gradios_own_words_for_files_open_nothing(server: Server) -> None:
    """gradio copies a file that a payload names, and fetches an address: such a payload does not reach it."""
    for path in (str(server.secret), "/etc/passwd", "http://127.0.0.1:9/x.png"):
        payload = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        assert server.call("photo-name", "select", [payload]) == "an event holds no files"
        assert server.call("photo-name", "select", [[{"deep": payload}]]) == "an event holds no files"
        assert server.call("stage", "dropped", [None], token=payload, name="x") == "an event holds no files"
        assert "data:image" not in server.call("stage", "dropped", [None], token=path, name="x")
    escaped = json.dumps({"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}).replace(
        "path", "p\\u0061th"
    )
    assert server.ask("POST", "/gradio_api/queue/join", escaped.encode())[0] == 400
    assert server.ask("POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400


def test_dropped_photos_are_limited_in_bytes_and_pixels(server: Server) -> None:
    """The bytes before they are read, the pixels before they are decoded, both in words for a person."""
    origin = server.url.rstrip("/")
    status, token = server.ask("POST", "/photo", to_png(50, 50), origin=origin)
    assert status == 200
    assert "data:image/jpeg" in server.call("stage", "dropped", [None], token=token, name="x.png")
    status, text = server.ask("POST", "/photo", bytes((1 << 20) + 1))
    assert status == 413
    assert "1,048,576 are allowed" in text
    token = server.ask("POST", "/photo", to_png(101, 50))[1]
    answer = html.unescape(server.call("stage", "dropped", [None], token=token, name="large.png"))
    assert "large.png can't be opened: 101 x 50 pixels" in answer
    token = server.ask("POST", "/photo", b"no photo")[1]
    assert "&lt;b&gt;.png can" in server.call("stage", "dropped", [None], token=token, name="<b>.png")
    assert server.ask("POST", "/gradio_api/queue/join", bytes((1 << 20) + 1))[0] == 413
    for more in ({}, {"content_length": "1"}):
        status, _ = server.ask("POST", "/photo", iter([b"x"]), transfer_encoding="chunked", **more)  # type: ignore[arg-type]
        assert status == 411


def test_other_websites_can_not_use_it(server: Server) -> None:
    """Neither by a name of their own that leads here, nor from a page of theirs."""
    port = urlsplit(server.url).port
    assert server.ask("GET", "/", host=f"evil.example:{port}")[0] == 421
    assert server.ask("GET", "/", host=f"localhost:{port}")[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        assert server.ask("POST", "/photo", b"x", origin=origin)[0] == 403
        assert server.ask("POST", "/gradio_api/queue/join", b"{}", origin=origin)[0] == 403


def knock(listens_on: str, **headers: str) -> tuple[int, dict[bytes, bytes]]:
    """What the gate of a server on this address answers to one who asks for the page: status and headers."""
    serve = pytest.importorskip("labeler.pages.serve", reason="needs the extra serve")
    sent: list[dict[str, Any]] = []

    async def page(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def keep(message: dict[str, Any]) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": "/", "method": "GET", "headers": named}
    asyncio.run(serve.Gate(page, host=listens_on, known_as=["Proxy.example"], max_upload_bytes=1)(scope, None, keep))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "Labels.example"])
def test_it_answers_to_this_machines_names_alone(host: str) -> None:
    """To its addresses, its own names and the one it was given: a website whose DNS leads here is somebody else."""
    for name in ("192.168.1.5", "[fe80::1]", "localhost", socket.gethostname().upper(), host, host.lower(), "proxy.example"):
        assert knock(host, host=f"{name}:7860")[0] == 200
    for name in ("evil.example", "1.evil.example", "", "192.168.1.5.evil.example"):
        assert knock(host, host=f"{name}:7860")[0] == 421


def test_a_proxy_may_ask_by_a_name_of_its_own() -> None:
    """The browser's name for the page then stands in the origin alone, and has to be one that it was told to answer to."""
    for origin, status in (("https://proxy.example", 200), ("https://Proxy.Example:8443", 200), ("https://evil.example", 403)):
        assert knock("127.0.0.1", host="127.0.0.1:7860", origin=origin.lower())[0] == status


def test_other_websites_can_not_frame_it() -> None:
    """The page says so in every answer, and a browser that says it is for a frame gets none."""
    name = "127.0.0.1:7860"
    for status, more in ((200, {"sec_fetch_dest": "document"}), (403, {"sec_fetch_dest": "iframe"}), (403, {"origin": "null"})):
        answered, headers = knock("127.0.0.1", host=name, **more)
        assert answered == status
        assert headers[b"content-security-policy"] == b"frame-ancestors 'none'"


def test_nonsense_does_no_harm(server: Server) -> None:
    """A click without numbers, beside the photo, or before there is one: the server goes on."""
    for data in ({"x": "a", "y": 1}, {"x": float("inf"), "y": 0}, {}, {"x": 1e300, "y": -5}):
        server.call("stage", "clicked", [None, "Add"], **data)
    assert "data:image/jpeg" in server.call("photo-name", "select", ["a.png"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model MODEL"),
        (["--model", "m", "--run", "r", "--images", "i"], "--run OUTPUT"),
        (["--model", "no such model"], "no such model"),
        (["--run", "."], "run.json"),
        (["--model", "MODEL", "--images", "no such folder"], "is not a folder"),
        (["--model", "MODEL", "--host", "192.0.2.1"], "192.0.2.1"),
        (["--model", "MODEL", "--port", "70000"], "--port"),
    ],
)
def test_misuse_is_said_before_anything_is_served(
    arguments: list[str], words: str, prototype_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One sentence, and an exit code that is not 0."""
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *(a.replace("MODEL", str(prototype_folder)) for a in arguments)]) in (1, 2)
    assert words in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(prototype_folder: Path) -> None:
    """The extra is named; everything else works without it."""
    call = f"main(['serve', '--model', {str(prototype_folder)!r}])"
    code = f"import sys; sys.modules['gradio'] = None; from labeler.cli import main; {call}"
    said = subprocess.run([sys.executable, "-c", code], cwd=page_server.ROOT, capture_output=True, text=True, check=True)
    assert "pip install '.[serve]'" in said.stderr
