"""A job from bucket to bucket, through a proxy that can do harm, and how it should end."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stores
from fakes import freeze, label_arguments, label_shards, make_slow, read_masks, start_jobs, wait_until

from jobs.events import ImageDone
from labeler import tables
from labeler.stores import use_store_options

OUTPUT = "s3://labels/run"


def label(output: str, shards: range, *, retries: int = 0) -> list[str | None]:
    """Label in this process; the kinds of error of the images, in order."""
    events = label_shards(output, shards, retries=retries)
    return [event.error_kind for event in events if isinstance(event, ImageDone)]


def label_undisturbed(folder: Path, model: Path) -> Path:
    """Eight slow pictures in ``in``, four shards of masks in ``out``."""
    make_slow(folder / "in")
    record = freeze(folder / "in", folder / "out", model, images_per_shard=2)
    label(str(folder / "out"), range(record.num_shards))
    return folder


@contextmanager
def serve_bench(folder: Path, *, undisturbed: Path, model: Path, client: Any, endpoint: str) -> Iterator["Bench"]:
    """The pictures in a bucket, and this process's own way to it, through a proxy."""
    for path in sorted((undisturbed / "in").iterdir()):
        client.upload_file(str(path), "photos", f"in/{path.name}")
    bench = Bench(folder, model, client, stores.Proxy(folder, endpoint), read_masks(undisturbed / "out"))
    bench.proxy.start()
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": bench.proxy.endpoint}})
    try:
        yield bench
    finally:
        bench.proxy.stop()


class Bench:
    """What a test of a fault needs. ``client`` is another tool's way to the store, past the proxy."""

    def __init__(self, folder: Path, model: Path, client: Any, proxy: stores.Proxy, undisturbed: dict[str, bytes]) -> None:
        self.folder, self.model, self.client, self.proxy, self.undisturbed = folder, model, client, proxy, undisturbed

    def start(self) -> subprocess.Popen[str]:
        """A job from bucket to bucket, through the proxy."""
        options = {**stores.S3_KEYS, "endpoint_url": self.proxy.endpoint}  # A worker has the cluster's environment, not ours.
        more = [text for key, value in options.items() for text in ("--storage-options", f"{key}={value}")]
        common = ("--workers", 1, "--images-per-shard", 2)
        arguments = label_arguments("s3://photos/in", OUTPUT, self.model, *common, *more)  # type: ignore[arg-type]
        return start_jobs(*arguments, cwd=self.folder)

    def list_parts(self, table: str) -> list[str]:
        """The keys of the parts that are committed."""
        found = self.client.list_objects_v2(Bucket="labels", Prefix=f"run/{table}/")
        return [item["Key"] for item in found.get("Contents", ())]

    def wait_for_the_first_shard(self) -> None:
        wait_until(lambda: self.list_parts("images"))

    def check(self, *, num_shards: int = 4) -> None:
        """Every image has its row and no error, and the masks are an undisturbed run's."""
        shards = range(num_shards)
        rows = [row for shard in shards for row in tables.read_part(OUTPUT, table="images", number=shard).to_pylist()]
        assert [row["image_id"] for row in rows] == list(range(1, len(rows) + 1))
        assert {row["error_kind"] for row in rows} == {None}
        keys = self.list_parts("masks")
        masks = {key.rpartition("/")[2]: self.client.get_object(Bucket="labels", Key=key)["Body"].read() for key in keys}
        assert masks == dict(list(self.undisturbed.items())[:num_shards])

    def check_gone(self, *, seconds: float) -> None:
        """Connections are refused for so long in mid-run, and the job ends as if nothing had been."""
        job = self.start()
        self.wait_for_the_first_shard()
        self.proxy.stop()
        time.sleep(seconds)
        assert len(self.list_parts("images")) < len(self.undisturbed)
        self.proxy.start()
        _, err = job.communicate(timeout=240)
        assert job.returncode == 0, err
        self.check()
