"""How long ``status`` and the check of a resume take on a run of very many finished shards.

    python benchmarks/many_shards.py [--shards 100000] [--folder FOLDER]

The shards are made of one labeled image's parts, written again and again: neither listing nor counting looks inside
those that ``progress.json`` has counted. What is timed runs in processes of its own, as a person would start it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs.events import ShardCommitted
from jobs.options import Selection
from jobs.parts import PlanPart
from jobs.plan import RunRecord
from jobs.report import Watch
from jobs.shards import Tally, commit_shard, tally_rows
from labeler import storage, tables
from labeler.options import MaskOptions
from labeler.tables import ImageRow

ROOT = Path(__file__).resolve().parent.parent


def make_record(num_shards: int, *, images_per_shard: int = 1) -> RunRecord:
    """A run that nobody planned."""
    num_images = num_shards * images_per_shard
    return RunRecord.model_construct(
        schema_version=tables.SCHEMA_VERSION,
        input="file:///nowhere",
        selection=Selection(),
        options=MaskOptions(),
        model={"name": "stub", "model_type": "stub", "sha256": "0" * 64, "checkpoint_sha256": None, "weights": "f32"},
        images_per_shard=images_per_shard,
        num_images=num_images,
        num_shards=num_shards,
        skipped={},
        fingerprint="0" * 64,
        plan=(PlanPart(first_shard=0, num_shards=num_shards, num_images=num_images, sha256="0" * 64),),
        plan_sha256="0" * 64,
        tools={},
    )


def make_run(folder: Path, *, num_shards: int, num_newer: int) -> None:
    """A finished run of one image a shard, the last ones newer than ``progress.json``."""
    record = make_record(num_shards)
    row = ImageRow(image_id=1, uri="file:///nowhere/a.png", file_name="a.png", width=8, height=8, seconds_encode=1.0)
    commit_shard(str(folder), 0, masks=[], rows=[row], metadata={"labeler.schema_version": "1"})
    for table in ("masks", "images"):
        data = (folder / tables.part_name(table, 0)).read_bytes()  # type: ignore[arg-type]
        for number in range(1, num_shards):
            (folder / tables.part_name(table, number)).write_bytes(data)  # type: ignore[arg-type]
    watch = Watch(str(folder), record=record, before=Tally())
    for number in range(num_shards - num_newer):
        watch.count_shard(ShardCommitted(number, tally_rows([row]), 0))
    watch.save("finished")
    (folder / "run.json").write_text(record.model_dump_json(indent=2, warnings=False))


def time_command(*arguments: object) -> float:
    """Seconds a command takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, arguments)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Make the run, time the commands, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    check = (
        "import sys; from labeler import tables; from jobs.tallies import read_tally; from jobs.report import read_report;"
        "o = sys.argv[1]; s = tables.list_committed_shards(o);"
        "t = read_tally(o, s, progress=read_report(o, 'progress.json'));"
        "assert t.num_images == len(s), t"
    )
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        Watch.say = lambda self, text: None  # type: ignore[method-assign]
        make_run(folder, num_shards=given.shards, num_newer=100)
        print(f"{given.shards} shards made in {time.perf_counter() - start:.1f} s")
        print(f"status, 100 shards newer than progress.json: {time_command('-m', 'jobs', 'status', folder):.1f} s")
        print(f"check of a resume, the same:                 {time_command('-c', check, folder):.1f} s")
        storage.delete(str(folder / "progress.json"))
        print(f"status without progress.json:                {time_command('-m', 'jobs', 'status', folder):.1f} s")


if __name__ == "__main__":
    main()
