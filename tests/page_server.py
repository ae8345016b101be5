"""``python -m labeler serve`` in a process of its own, on a free port; a browser to open it with."""

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image as PillowImage

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def serve(*arguments: Any, port: int = 0) -> Iterator[str]:
    """The page's address, once it can be opened; the server is gone after the block. Port 0: one that is free."""
    pytest.importorskip("gradio", reason="needs the extra serve")
    command = [sys.executable, "-m", "labeler", "serve", "--port", str(port), "--threads", "1", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:  # A pipe that nobody reads would stop a server that says much.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        watchdog = threading.Timer(240, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+/", line)
            assert found, line + _read(errors)
            yield found[0]
            assert process.poll() is None, "the server died: " + _read(errors)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A chromium of the system's (apt-get install chromium) or playwright's own; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as driver:
        if CHROMIUM is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("needs a browser: apt-get install chromium, or playwright install chromium")
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Tab:
    """One tab of a browser with the page in it. Anything it asks of another machine, and any error, fails the test.

    Args:
        browser: an open browser.
        url: the page's address.
    """

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.on("request", lambda request: self._check(request.url, url))
        self.page.on("dialog", lambda dialog: self.faults.append("a name was run as a script"))
        self.page.goto(url)
        self.wait_for("data-version", "")

    def _check(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.faults.append(f"asked for {asked}")

    @property
    def version(self) -> str:
        """Changes with all that the stage shows."""
        found = self.page.locator(".stage")
        return (found.get_attribute("data-version") or "") if found.count() else ""

    def wait_for(self, what: str, before: str) -> None:
        """Until the stage shows something else."""
        for _ in range(600):
            if self.version != before:
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"the stage never changed: {what}; {self.faults}")

    def act(self, action: Any) -> None:
        """Do something, and wait until the stage shows what came of it."""
        before = self.version
        action()
        self.wait_for("action", before)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the photo as a place of the window."""
        area = self.page.locator(".stage .frame").bounding_box()
        width, height = self.size
        return area["x"] + area["width"] * x / width, area["y"] + area["height"] * y / height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the photo."""
        width, height = self.page.locator(".stage").get_attribute("data-size").split(",")
        return int(width), int(height)

    def click(self, x: float, y: float, **more: Any) -> None:
        """Click on a pixel of the photo."""
        self.act(lambda: self.page.mouse.click(*self.place(x, y), **more))

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drag from pixel to pixel."""

        def move() -> None:
            self.page.mouse.move(*self.place(x0, y0))
            self.page.mouse.down()
            self.page.mouse.move(*self.place((x0 + x1) / 2, (y0 + y1) / 2))
            self.page.mouse.move(*self.place(x1, y1))
            self.page.mouse.up()

        self.act(move)

    def choose(self, group: str, choice: str) -> None:
        """Choose of a group of radio buttons."""
        self.page.locator(f"#{group}").get_by_text(choice, exact=True).click()

    def choose_photo(self, name: str) -> None:
        """Choose of the list of photos."""
        self.page.locator("#photo-name input").click()
        self.act(lambda: self.page.get_by_role("option", name=name).first.click())

    @property
    def status(self) -> str:
        """The line that says what is shown."""
        return str(self.page.locator(".status").first.inner_text()).replace("\xa0", " ")

    def says(self, words: str) -> bool:
        """Whether that line comes to hold these words; it changes a moment after the stage."""
        for _ in range(300):
            if words in self.status:
                return True
            self.page.wait_for_timeout(50)
        return False

    def read_layer(self) -> Any:
        """(h, w) bool: where masks are drawn over the photo. None where no mask is."""
        if self.page.locator(".stage .layer").is_hidden():
            return None
        source = self.page.locator(".stage .layer").get_attribute("src")
        with PillowImage.open(BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            return np.asarray(picture.convert("RGBA"))[..., 3] > 0

    def drop(self, path: Path) -> None:
        """Drop a file of this machine on the stage, as the hand does."""
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        dropped = self.page.evaluate_handle(
            """([name, data]) => {
              const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
              const carried = new DataTransfer();
              carried.items.add(new File([bytes], name));
              return carried;
            }""",
            [path.name, data],
        )
        self.act(lambda: self.page.dispatch_event(".stage", "drop", {"dataTransfer": dropped}))

    @contextlib.contextmanager
    def unanswered(self) -> Iterator[None]:
        """What is done in the block reaches the server, whose answers come after it: what was shown stays until then."""
        self.page.wait_for_timeout(1500)  # Until nothing is on its way any more.
        held: list[Any] = []
        self.page.route("**/queue/data*", lambda route: held.append(route))
        yield
        self.page.wait_for_timeout(1000)
        for route in held:
            route.continue_()
        self.page.unroute("**/queue/data*")

    def count_events(self, seconds: float) -> int:
        """How many events the page sends while nobody touches it."""
        sent: list[str] = []
        self.page.on("request", lambda request: sent.append(request.url) if "queue/join" in request.url else None)
        self.page.wait_for_timeout(1000 * seconds)
        return len(sent)

    def close(self) -> None:
        """Close it; nothing may have gone wrong in it."""
        self.page.close()
        assert self.faults == []
