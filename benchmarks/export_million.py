"""Seconds, peak memory and size of exporting a million masks: a real run's rows, repeated as further shards.

``python benchmarks/export_million.py RUN FOLDER [--masks 1000000] [-- options of export coco]``. Must not know formats: it
starts ``python -m export`` as a person does.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from labeler import tables


def repeat_run(run: Path, target: Path, *, num_masks: int) -> int:
    """Write a run of the first shard of ``run`` again and again, under new image ids; returns its number of masks."""
    record = json.loads((run / "run.json").read_text())
    masks = tables.read_part(str(run), table="masks", number=0)
    images = tables.read_part(str(run), table="images", number=0)
    num_shards = -(-num_masks // len(masks))
    for table in ("masks", "images"):
        (target / table).mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        for name, rows in (("masks", masks), ("images", images)):
            ids = pc.add(rows["image_id"], pa.scalar(shard * len(images), pa.int64()))
            shifted = rows.set_column(0, "image_id", ids).cast(tables.SCHEMAS[name])
            part = tables.encode_part(shifted.to_batches(), table=name, metadata={})
            (target / tables.part_name(name, shard)).write_bytes(part)
    record |= {"num_images": num_shards * len(images), "num_shards": num_shards}
    (target / "run.json").write_text(json.dumps(record))
    return num_shards * len(masks)


def main() -> None:
    """Prepare the run if it is not there yet, export it, say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--masks", type=int, default=1_000_000)
    known, options = parser.parse_known_args()
    repeated, target = known.folder / f"run-{known.masks}", known.folder / "coco.json"
    if not (repeated / "run.json").exists():
        repeat_run(known.run, repeated, num_masks=known.masks)
    start_s = time.perf_counter()
    command = [sys.executable, "-m", "export", "coco", str(repeated), str(target), *(o for o in options if o != "--")]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start_s
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{seconds:.1f} s, peak memory {peak_bytes / 2**20:.0f} MiB, file {target.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
