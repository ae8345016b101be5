"""What handing out very many shards costs beside labeling them: seconds a shard, and whether the driver's memory stays flat.

    python benchmarks/schedule_shards.py [--shards 100000] [--images-per-shard 1] [--workers 2] [--commit]

Everything is the job's own, but for the workers: they label nothing and only tell of their images. With ``--commit`` each
writes both parts of its shard as a worker does, right to write looked up first: the difference is what committing costs.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from many_shards import make_record

import jobs.crew
from jobs.events import Event, ImageDone, ImageStarted, ShardCommitted, WorkerInfo
from jobs.lease import LeaseHolder, name_process
from jobs.options import JobOptions
from jobs.report import Watch
from jobs.run import label_shards
from jobs.shards import Tally, commit_shard, tally_rows
from labeler.tables import ImageRow


class Idler(jobs.crew.NodeLabeler):
    """A worker without a model: tells of the images of a shard as if they were labeled, commits it or says so."""

    def load(self) -> WorkerInfo:
        """Nothing is loaded."""
        return WorkerInfo("here", name_process(), 0, node=self.find_node())

    def label_shard(self, shard: int, *, permit: Any = None, **_how: Any) -> Iterator[Event]:
        """The events of a shard."""
        commit, _, number = self._engine.partition(":")
        rows = [
            ImageRow(image_id=image_id, uri="file:///nowhere/a.png", file_name="a.png", width=8, height=8)
            for image_id in range(shard * int(number) + 1, (shard + 1) * int(number) + 1)
        ]
        for row in rows:
            yield ImageStarted(row.image_id)
            yield ImageDone(row.image_id, 0, None)
        if commit == "commit":
            metadata = {"labeler.schema_version": "1"}
            commit_shard(self._output, shard, masks=[], rows=rows, metadata=metadata, permit=permit)
        yield ShardCommitted(shard, tally_rows(rows), 0)


def measure_memory() -> float:
    """What this process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class MeasuringWatch(Watch):
    """Says how it stands every tenth of the way."""

    figures: list[dict[str, float]]
    num_shards: int = 0

    def say(self, text: str) -> None:
        """Nothing: a line a shard is too many here."""

    def count_shard(self, committed: ShardCommitted, *, worker: str = "") -> None:
        """See ``Watch``."""
        super().count_shard(committed, worker=worker)
        self.num_shards += 1
        done, total = self.num_shards, self._record.num_shards
        if done % max(1, total // 10) == 0:
            figures = {"shards": done, "seconds": round(time.perf_counter(), 1), "driver_mib": round(measure_memory(), 1)}
            self.figures.append(figures)
            print(f"{done} shards, driver {figures['driver_mib']:.0f} MiB", file=sys.stderr, flush=True)


def main() -> None:
    """Run it, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--images-per-shard", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--commit", action="store_true")
    given = parser.parse_args()
    jobs.crew.NodeLabeler = Idler  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as output, LeaseHolder(output, say=print) as lease:
        (Path(output) / "model").mkdir()
        lease.take()
        watch = MeasuringWatch(
            output, record=make_record(given.shards, images_per_shard=given.images_per_shard), before=Tally()
        )
        watch.figures = []
        label_shards(
            range(given.shards),
            output=output,
            options=JobOptions(workers=given.workers),
            watch=watch,
            engine=f"{'commit' if given.commit else 'none'}:{given.images_per_shard}",
            lease=lease,
        )
        first, last = watch.figures[0], watch.figures[-1]
        seconds = last["seconds"] - first["seconds"]
        print(
            json.dumps(
                {
                    "shards": given.shards,
                    "images_per_shard": given.images_per_shard,
                    "workers": given.workers,
                    "commit": given.commit,
                    "ms_a_shard": round(1000 * seconds / (last["shards"] - first["shards"]), 3),
                    "images_per_s": round(given.images_per_shard * (last["shards"] - first["shards"]) / seconds),
                    "driver_mib": [figures["driver_mib"] for figures in watch.figures],
                }
            )
        )


if __name__ == "__main__":
    main()
