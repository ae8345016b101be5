"""Lists of web addresses: a server that is gone costs its own images, a network that is gone stops the job."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes import freeze, label_arguments, load_worker, write_picture
from stores import find_port

from jobs.outages import MAX_IN_A_ROW, OutageWatch
from labeler.errors import ImageError, StorageError

pytest.importorskip("aiohttp")

SAID = {"/broken": 500, "/refused": 403, "/login": 401, "/gone": 410}


@contextlib.contextmanager
def serve_folder(folder: Path, *, port: int = 0) -> Iterator[str]:
    """A web server's address; some paths it answers with an error."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            if (status := SAID.get(self.path)) is not None:
                self.send_error(status)
            else:
                super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    for number in range(3):
        write_picture(folder / f"{number}.png", seed=number)
    return folder


def write_list(path: Path, addresses: list[str]) -> Path:
    path.write_text("\n".join(addresses))
    return path


def fail(outages: OutageWatch, uri: str, error: Exception) -> None:
    with pytest.raises(ImageError) as caught, outages.watching(uri):
        raise error
    assert caught.value.kind == "missing"


def test_each_server_answers_for_its_own_images(
    cluster: object, run_jobs: Any, web: Path, model_folder: Path, tmp_path: Path
) -> None:
    """A server that is not there, one that breaks, refuses or has lost it: rows that say so; the others get their masks.

    When the server is back, ``--retry-failed missing`` finds its images.
    """
    later = find_port()
    with serve_folder(web) as address:
        addresses = [
            *(f"{address}/{name}" for name in ("0.png", "broken", "refused", "login", "gone", "nothing.png", "1.png")),
            *(f"http://127.0.0.1:{later}/{number}.png" for number in range(3)),
            "http://[1/2.png",
        ]
        photos = write_list(tmp_path / "list.txt", addresses)
        common = label_arguments(photos, tmp_path / "out", model_folder, "--workers", 1, "--retries", 0, "--max-error-rate", 1)
        answer = run_jobs(*common)
        assert answer.returncode == 0, answer.stderr
        rows = pd.read_parquet(tmp_path / "out" / "images").sort_values("image_id")
        kinds = dict(zip(rows["uri"], rows["error_kind"].where(rows["error_kind"].notna(), ""), strict=True))
        wanted = ["", "missing", "forbidden", "forbidden", *["missing"] * 2, "", *["missing"] * 4]
        assert kinds == dict(zip(addresses, wanted, strict=True))
        messages = dict(zip(rows["uri"], rows["error_message"], strict=True))
        assert all(str(status) in messages[uri] for uri, status in zip(addresses[1:4], (500, 403, 401), strict=True))

        with serve_folder(web, port=later):
            assert run_jobs(*common, "--retry-failed", "missing").returncode == 0
    rows = pd.read_parquet(tmp_path / "out" / "images")
    assert set(rows.loc[rows["status"] == "ok", "uri"]) == {addresses[0], *addresses[6:10]}
    assert run_jobs("verify", tmp_path / "out").returncode == 0


def test_a_web_that_is_gone_stops_the_job(
    cluster: object, run_jobs: Any, web: Path, model_folder: Path, tmp_path: Path
) -> None:
    """No address answers: exit 1 and not one row; with the network back the same command finishes."""
    port = find_port()
    addresses = [f"http://127.0.0.1:{port}/{number % 3}.png?{number}" for number in range(MAX_IN_A_ROW)]
    photos = write_list(tmp_path / "list.txt", addresses)
    common = label_arguments(photos, tmp_path / "out", model_folder, "--workers", 1, "--retries", 0)
    answer = run_jobs(*common)
    assert answer.returncode == 1, answer.stderr
    assert f"{MAX_IN_A_ROW} images in a row could not be had" in answer.stderr
    assert not list((tmp_path / "out").glob("images/part-*"))
    with serve_folder(web, port=port):
        answer = run_jobs(*common)
    assert answer.returncode == 0, answer.stderr
    assert (pd.read_parquet(tmp_path / "out" / "images")["status"] == "ok").all()


def test_a_server_that_stops_in_the_middle_is_no_images_fault(web: Path, model_folder: Path, tmp_path: Path) -> None:
    with serve_folder(web) as address:
        photos = write_list(tmp_path / "list.txt", [f"{address}/{n % 3}.png?{n}" for n in range(2 * MAX_IN_A_ROW)])
        record = freeze(photos, tmp_path / "out", model_folder, images_per_shard=MAX_IN_A_ROW)
        labeler = load_worker(tmp_path / "out")
        list(labeler.label_shard(0))
    assert record.num_shards == 2
    with pytest.raises(StorageError, match=f"{MAX_IN_A_ROW} images in a row could not be had"):
        list(labeler.label_shard(1))


def test_while_anything_can_be_read_each_image_is_alone(web: Path) -> None:
    """Also one that is not there any more: its server answers. Where nothing answers, the tenth image ends it."""
    dead = f"http://127.0.0.1:{find_port()}/0.png"
    with serve_folder(web) as address:
        outages = OutageWatch(lambda: [dead, f"{address}/nothing.png"])
        for number in range(3 * MAX_IN_A_ROW):
            fail(outages, f"http://dead{number}/0.jpg", StorageError("no answer"))

    outages = OutageWatch(lambda: [dead])
    for number in range(MAX_IN_A_ROW - 1):
        fail(outages, f"http://dead/{number}.jpg", StorageError("no answer"))
    with pytest.raises(StorageError, match="the network"), outages.watching("http://dead/0.jpg"):
        raise StorageError("no answer")

    with pytest.raises(StorageError, match=r"^no answer$"), OutageWatch().watching("s3://bucket/0.jpg"):
        raise StorageError("no answer")


def test_a_server_that_never_answered_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from labeler import retries

    monkeypatch.setattr(retries, "_pause", lambda _: None)
    retries.use_retries(3)
    asked: list[str] = []

    @retries.retried
    def read(uri: str) -> None:
        asked.append(uri)
        raise StorageError("no answer")

    outages = OutageWatch()
    for uri in ("http://dead/0.jpg", "http://dead/1.jpg"):
        with pytest.raises(ImageError), outages.watching(uri):
            read(uri)
    assert asked == ["http://dead/0.jpg"] * 4 + ["http://dead/1.jpg"]
