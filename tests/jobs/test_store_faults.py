"""A store that stumbles, goes away or refuses, over HTTP: the job ends as undisturbed, or stops and goes on; no image pays."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stores
from bucket_jobs import OUTPUT, Bench, label, label_undisturbed, serve_bench
from fakes import FAKE_ENGINE, freeze, label_arguments, make_tar, start_jobs, wait_until, write_picture

import jobs.cli
from jobs.options import Selection
from jobs.reading import read_image
from jobs.sources import list_images
from jobs.worker import ShardLabeler
from labeler import retries, storage
from labeler.errors import ImageError, StorageError, StorageRefusedError
from labeler.stores import use_store_options


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Eight slow pictures, labeled without a store."""
    return label_undisturbed(tmp_path_factory.mktemp("undisturbed"), model_folder)


@pytest.fixture
def bench(tmp_path: Path, undisturbed: Path, model_folder: Path, s3: Any, endpoint: str) -> Iterator[Bench]:
    """The same pictures in a bucket, behind a proxy."""
    with serve_bench(tmp_path, undisturbed=undisturbed, model=model_folder, client=s3, endpoint=endpoint) as bench:
        yield bench


def test_a_store_that_is_overloaded(cluster: object, bench: Bench) -> None:
    """503 to one call in five, from the first listing to the last report: nobody notices but the clock."""
    bench.proxy.set_faults(rate=0.2, seed=5)
    job = bench.start()
    _, err = job.communicate(timeout=240)
    assert bench.proxy.count_faults() > 10
    bench.proxy.set_faults()
    assert job.returncode == 0, err
    bench.check()


def test_a_store_that_goes_away_and_comes_back(cluster: object, bench: Bench) -> None:
    """Connections refused for twenty seconds in mid-run."""
    bench.check_gone(seconds=20)


def test_whoever_asks_a_store_that_is_gone_waits_for_it(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A worker that begins, a driver that lists and writes, status and verify: longer than the store's library would."""
    freeze("s3://photos/in", OUTPUT, bench.model, images_per_shard=8)  # type: ignore[arg-type]
    label(OUTPUT, range(1))
    options = [*_list_keys(), "--storage-options", f"endpoint_url={bench.proxy.endpoint}"]
    labeler = ShardLabeler(OUTPUT, threads=1, retries=8, engine=FAKE_ENGINE)
    monkeypatch.setenv("SAM_LABELER_CACHE", str(bench.folder / "cache"))  # Where no model is.
    asks: list[Callable[[], Any]] = [
        labeler.load,
        lambda: sum(1 for _ in storage.list_files("s3://photos/in")),
        lambda: storage.write_bytes("s3://labels/other", b"data"),
        lambda: jobs.cli.main(["status", OUTPUT, *options]),
        lambda: jobs.cli.main(["verify", OUTPUT, *options]),
    ]
    pause = retries._pause
    paused: set[int] = set()  # The threads in which the store's library has given up.

    def note_pause(seconds: float) -> None:
        paused.add(threading.get_ident())
        pause(seconds)

    monkeypatch.setattr(retries, "_pause", note_pause)
    bench.proxy.stop()
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = [pool.submit(ask) for ask in asks]
        wait_until(lambda: len(paused) >= len(asks) or any(answer.done() for answer in answers))
        bench.proxy.start()
    assert [answer.result() for answer in answers][1:] == [8, None, 0, 0]
    assert "8 of 8 images done" in capsys.readouterr().out


def test_a_driver_that_waits_for_a_store_can_be_stopped(tmp_path: Path, model_folder: Path) -> None:
    """Without another try, with the signal's exit code: it asks more often than the store's library, but not for a person."""
    proxy = stores.Proxy(tmp_path, f"http://127.0.0.1:{stores.find_port()}")
    proxy.start()
    try:
        proxy.set_faults(code="SlowDown")
        once = f"config_kwargs={json.dumps(stores.ONE_TRY['config_kwargs'])}"
        more = [*_list_keys(), "--storage-options", f"endpoint_url={proxy.endpoint}", "--storage-options", once]
        job = start_jobs(*label_arguments("s3://photos/in", OUTPUT, model_folder, *more), cwd=tmp_path)  # type: ignore[arg-type]
        wait_until(lambda: proxy.count_faults() > 2 * stores.count_tries())
        before = proxy.count_faults()
        job.terminate()
        _, err = job.communicate(timeout=60)
        assert proxy.count_faults() - before <= stores.count_tries()
    finally:
        proxy.stop()
    assert job.returncode == 143, err
    assert "stopped by SIGTERM" in err


def test_a_tar_that_was_replaced_by_a_shorter_one(bench: Bench) -> None:
    """Its images are changed, though there is nothing any more at their place in it."""
    members = [(f"{number}.png", bytes(5000)) for number in range(20)]
    bench.client.upload_file(str(make_tar(bench.folder / "long.tar", *members)), "photos", "a.tar")
    *_, last = list_images("s3://photos/a.tar", selection=Selection()).read_refs()
    bench.client.upload_file(str(make_tar(bench.folder / "short.tar", *members[:1])), "photos", "a.tar")
    with pytest.raises(ImageError, match="changed"):
        read_image(last)
    assert storage.read_bytes("s3://photos/a.tar", offset=10**9) == b""


def test_credentials_that_expire(cluster: object, bench: Bench) -> None:
    """Exit 1 and a sentence, no image blamed; with new ones the same command goes on to an undisturbed run's masks.

    No picture is asked for again, and no part sent again: it would be refused again.
    """
    job = bench.start()
    bench.wait_for_the_first_shard()
    bench.proxy.set_faults(status=400, code="ExpiredToken")
    _, err = job.communicate(timeout=240)
    assert job.returncode == 1, err
    asked = [fault for fault in bench.proxy.list_faults() if re.search("/(in|masks|images)/", fault)]
    assert len(asked) == len(set(asked))
    assert "does not accept the credentials (ExpiredToken)" in err
    assert "Traceback" not in err
    assert len(bench.list_parts("images")) < len(bench.undisturbed)
    bench.proxy.set_faults()
    again = bench.start()
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    bench.check()


@pytest.mark.parametrize(
    ("match", "status", "code", "words"),
    [
        ("GET .*/in/", 400, "ExpiredToken", "does not accept the credentials (ExpiredToken)"),
        ("GET .*/in/", 403, "InvalidAccessKeyId", "does not accept the credentials (InvalidAccessKeyId)"),
        ("GET .*/in/", 404, "NoSuchBucket", "no such bucket"),
        ("GET .*/in/", 503, "SlowDown", "answered SlowDown"),
        ("GET .*/in/", 500, "InternalError", "answered InternalError"),
        ("PUT .*/images/", 400, "ExpiredToken", "does not accept the credentials (ExpiredToken)"),
        ("PUT .*/images/", 503, "ServiceUnavailable", "answered ServiceUnavailable"),
    ],
)
def test_a_store_s_fault_is_no_image_s(bench: Bench, match: str, status: int, code: str, words: str) -> None:
    """While images are read and while a shard is written: nothing is committed, and afterwards all is as it should be.

    What the store refuses is asked once, whatever the patience; what it can't do now, as often as its own library asks.
    """
    freeze("s3://photos/in", OUTPUT, bench.model, images_per_shard=2)  # type: ignore[arg-type]
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": bench.proxy.endpoint, **stores.ONE_TRY}})
    bench.proxy.set_faults(match=match, status=status, code=code)
    with pytest.raises(StorageError) as fault:
        label(OUTPUT, range(1), retries=8 if status < 500 else 0)
    assert isinstance(fault.value, StorageRefusedError) == (status < 500)
    assert max(Counter(bench.proxy.list_faults()).values()) <= (1 if status < 500 else stores.count_tries())
    assert words in str(fault.value)
    assert bench.list_parts("images") == []
    bench.proxy.set_faults()
    assert label(OUTPUT, range(1)) == [None] * 2
    bench.check(num_shards=1)


def test_one_key_that_is_forbidden(bench: Bench) -> None:
    """An error row of that image; the others have their masks."""
    freeze("s3://photos/in", OUTPUT, bench.model, images_per_shard=4)  # type: ignore[arg-type]
    bench.proxy.set_faults(match="GET .*/in/5.png", status=403, code="AccessDenied")
    assert label(OUTPUT, range(2)) == [None] * 5 + ["forbidden"] + [None] * 2


def test_ten_keys_in_a_row_that_are_forbidden(bench: Bench) -> None:
    """By then it is not the images: a sentence about permissions, and the shard is not committed."""
    for number in range(12):
        bench.client.upload_file(str(write_picture(bench.folder / "x.png", seed=number)), "photos", f"many/{number}.png")
    freeze("s3://photos/many", OUTPUT, bench.model, images_per_shard=12)  # type: ignore[arg-type]
    bench.proxy.set_faults(match="GET .*/many/", status=403, code="AccessDenied")
    with pytest.raises(StorageError, match=r"10 images in a row could not be had, .* nor could any other"):
        label(OUTPUT, range(1))
    assert bench.list_parts("images") == []


def test_a_folder_that_is_archived(bench: Bench) -> None:
    """As many as it holds are rows, while other images of the run can be read."""
    for number in range(25):
        bench.client.upload_file(str(write_picture(bench.folder / "x.png", seed=number)), "photos", f"in/old/{number}.png")
    freeze("s3://photos/in", OUTPUT, bench.model, images_per_shard=40)  # type: ignore[arg-type]
    bench.proxy.set_faults(match="GET .*/in/old/", status=403, code="InvalidObjectState")
    assert sorted(map(str, label(OUTPUT, range(1)))) == ["None"] * 8 + ["forbidden"] * 25


@pytest.mark.parametrize(("place", "expected"), [("s3://nobody-made-it/in", 1), ("s3://photos/none", 2), ("s3://photos", 1)])
def test_a_first_start_without_an_input_or_an_output(
    bench: Bench, model_folder: Path, capsys: Any, place: str, expected: int
) -> None:
    """A bucket that is not there stops the job (1) by its name; nothing below a prefix is nothing to do (2)."""
    output = "s3://nobody-made-it/out" if place == "s3://photos" else OUTPUT
    more = ["--storage-options", f"endpoint_url={bench.proxy.endpoint}", *_list_keys()]
    arguments = label_arguments(place, output, model_folder, *more)  # type: ignore[arg-type]
    assert jobs.cli.main([str(argument) for argument in arguments]) == expected
    error = capsys.readouterr().err
    assert ("nobody-made-it" if expected == 1 else "photos/none") in error
    assert ("no such bucket" in error) == (expected == 1)
    assert "Traceback" not in error


def _list_keys() -> list[str]:
    return [text for key, value in stores.S3_KEYS.items() for text in ("--storage-options", f"{key}={value}")]
