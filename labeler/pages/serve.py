"""A page over HTTP: on this machine alone unless asked, and nothing but what the page itself needs. With ``widgets``
and the pages the gradio seam.

Must not know what is on the page. Of gradio's own routes only those are let through that carry events: none that reads or
takes files, fetches addresses or lists endpoints. What comes from another website, into a frame of one, or to another
name than this server's, is refused, and so is more than a bounded number of bytes.
"""

import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from labeler import storage
from labeler.errors import OptionsError
from labeler.pages.click_page import ClickPage
from labeler.pages.review_desk import ReviewDesk
from labeler.pages.review_page import ReviewPage
from labeler.pages.session import Desk
from labeler.pages.shelf import Shelf
from labeler.pages.widgets import read_asset
from labeler.predictor import Predictor
from labeler.runs import read_run
from labeler.temporary import temporary_folder

MAX_EVENT_BYTES = 1 << 20

MAX_TABS = 200
"""Tabs whose state is kept; the one that was quiet for longest begins anew."""

PHOTO_ROUTE = "/photo"
HTTP_TOO_LARGE = 413

_FRAMES = frozenset({"iframe", "frame", "fencedframe", "embed", "object"})
_UNFRAMED = (b"content-security-policy", b"frame-ancestors 'none'")
_OPEN = re.compile(r"/(?:|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(?:assets|static|svelte)/.+)")
_JOIN = "/gradio_api/queue/join"
_EVENTS = re.compile(r"/gradio_api/(?:queue/join|queue/data|heartbeat/[\w-]+|startup-events|app_id|cancel|reset/?)")


def make_app(page: gr.Blocks, shelf: Shelf | None, *, host: str, known_as: Sequence[str], max_upload_bytes: int) -> FastAPI:
    """The page as an application.

    Args:
        page: what to show.
        shelf: takes photos that are dropped; None: none are taken.
        host: the address it will listen on.
        known_as: other names that it answers to.
        max_upload_bytes: larger photos are refused.
    """
    page.state_session_capacity = MAX_TABS
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if shelf is not None:

        @app.post(PHOTO_ROUTE)
        async def take_photo(request: Request) -> PlainTextResponse:
            return PlainTextResponse(await run_in_threadpool(shelf.keep, await request.body()))

    gr.mount_gradio_app(
        app,
        page,
        path="",
        server_name=host,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=read_asset("page.css"),
    )
    app.add_middleware(Gate, host=host, known_as=known_as, max_upload_bytes=max_upload_bytes)
    return app


class Gate:
    """Lets through what the page needs, from the page itself. A piece of ASGI."""

    def __init__(self, app: Any, *, host: str, known_as: Sequence[str], max_upload_bytes: int) -> None:
        self._app = app
        self._names = _list_names(host) | {name.lower() for name in known_as}
        self._known_as = {name.lower() for name in known_as}
        self._takes_numbers = not is_loopback(host)
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return

        async def send_unframed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _UNFRAMED]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        refusal = self._refuse(scope, headers)
        if refusal is None and scope["path"] == _JOIN:
            body = await _read_body(receive)
            refusal = (400, "an event holds no files") if _names_file(body) else None
            receive = _replay(body, receive)
        if refusal is None:
            await self._app(scope, receive, send_unframed)
            return
        status, reason = refusal
        if status == HTTP_TOO_LARGE:
            await _skip_body(receive)
        await PlainTextResponse(reason, status_code=status, headers={"connection": "close"})(scope, receive, send_unframed)

    def _refuse(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the words of a refusal; None: it may pass."""
        host = headers.get("host", "")
        name = _drop_port(host)
        if name not in self._names and not (self._takes_numbers and _is_number(name)):
            return 421, f"this page is not called {host}; start it with --known-as {name}"
        origin = headers.get("origin")
        site = None if origin is None else origin.partition("://")[2]
        # A proxy that asks by a name of its own leaves the browser's in the origin.
        if site is not None and site != host and _drop_port(site) not in self._known_as:
            return 403, "this page takes nothing from other websites"
        if headers.get("sec-fetch-dest") in _FRAMES:
            return 403, "this page is not shown within others"
        path, method = scope["path"], scope.get("method", "")
        is_upload = path == PHOTO_ROUTE and method == "POST"
        if not (is_upload or _OPEN.fullmatch(path) or _EVENTS.fullmatch(path)) or ".." in path:
            return 404, "there is nothing here"
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return 405, "that is not done here"
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:  # Which would hold, and names no length.
            return 411, "say how many bytes there are"
        most = self._max_upload_bytes if is_upload else MAX_EVENT_BYTES
        if int(length) > most:
            return HTTP_TOO_LARGE, f"it has {int(length):,} bytes; {most:,} are allowed"
        return None


async def _skip_body(receive: Callable[..., Any]) -> None:
    """Let a body pass without keeping it: a browser that is cut off while it sends never sees the answer."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass


async def _read_body(receive: Callable[..., Any]) -> bytes:
    """The whole body; as many bytes as the request said, which are not too many."""
    body, is_more = b"", True
    while is_more:
        message = await receive()
        body += message.get("body", b"")
        is_more = message["type"] == "http.request" and message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Callable[..., Any]) -> Callable[..., Any]:
    """What gives the body once more, and then whatever comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def read_again() -> Any:
        return messages.pop() if messages else await receive()

    return read_again


def _names_file(body: bytes) -> bool:
    """Whether there is anything in it that gradio would take for a file of this machine, or an address to fetch.

    It copies such files into its folder, whoever names them, and has fetched the addresses before any listener is asked.
    """
    try:
        unseen = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict):
            if "meta" in value or "path" in value:
                return True
            unseen += value.values()
        elif isinstance(value, list):
            unseen += value
    return False


def serve_page(
    predictor: Predictor | None,
    *,
    title: str,
    images: str | None,
    run: str | None,
    host: str,
    known_as: Sequence[str],
    port: int,
    max_upload_bytes: int,
    max_pixels: int,
    say: Callable[[str], None],
) -> None:
    """Serve a page until interrupted.

    Args:
        predictor: the model, or None: then a run can be looked at.
        title: what stands at the head.
        images: a folder of photos to choose from.
        run: the output of a run to review, instead of photos.
        host, known_as, port: where it listens, and which other names it answers to.
        max_upload_bytes, max_pixels: larger photos are refused.
        say: is told where the page is, when it can be opened.

    Raises:
        OptionsError: there is no such folder or run, or the address can't be listened on.
    """
    desk = Desk(predictor)
    with _listen(host, port) as listener, _quiet_gradio():
        if run is not None:
            shelf = None
            page = ReviewPage(desk, ReviewDesk(read_run(storage.path_to_uri(run))), title=f"{run}, {title}").build()
        else:
            shelf = Shelf(images, max_pixels=max_pixels)
            page = ClickPage(desk, shelf, title=title).build()
        if predictor is not None:
            threading.Thread(target=desk.warm_up, daemon=True).start()
        app = make_app(page, shelf, host=host, known_as=known_as, max_upload_bytes=max_upload_bytes)
        _run_server(app, host=host, listener=listener, say=say)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OptionsError(f"--host {host} --port {port} can't be listened on: {error.strerror or error}") from error


def _run_server(app: FastAPI, *, host: str, listener: socket.socket, say: Callable[[str], None]) -> None:
    shown = f"[{host}]" if ":" in host else host
    say(f"open http://{shown}:{listener.getsockname()[1]}/ in a browser (Ctrl+C ends it)")
    if not is_loopback(host):
        say("WARNING: everybody who reaches this address can open these photos and use this page")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends well, and then says how it was told to.
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _quiet_gradio() -> Iterator[None]:
    """gradio calls nobody, and has a folder of its own, which goes with the server."""
    with temporary_folder("labeler-page-") as folder:
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        yield


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _list_names(host: str) -> frozenset[str]:
    """What the page may be called: few names, this machine's, so that no website can pose as it by its DNS."""
    names = {"localhost", "127.0.0.1", "[::1]", host.lower(), f"[{host.lower()}]"}
    return frozenset(names if is_loopback(host) else {*names, socket.gethostname().lower(), socket.getfqdn().lower()})


def _is_number(name: str) -> bool:
    """Whether that is an IP address, which no DNS leads anywhere."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _drop_port(host: str) -> str:
    return re.sub(r":\d+$", "", host).lower()
