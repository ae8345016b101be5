"""How long a listing of millions of keys takes to become a frozen plan, and how much memory: ``plan_keys.py 10000000``.

The keys are made up here, in no order, as a store's pages would bring them; everything after that is the job's own code.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.ordering import sort_refs
from jobs.parts import write_plan
from jobs.refs import ImageRef, Listing

_STEP = 7_368_787  # A prime, so that stepping by it meets every number once, in an order that is none.


def make_refs(count: int) -> Iterator[ImageRef]:
    """``count`` images of a bucket, in the order of a hash."""
    for index in range(count):
        number = index * _STEP % count
        name = f"camera-{number % 97:02d}/2025-{number % 12 + 1:02d}/frame-{number:012d}.jpg"
        yield ImageRef(uri=f"s3://bucket/photos/{name}", file_name=name, size_bytes=number, etag=f"{number:032x}")


def main() -> int:
    """Plan, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000_000)
    count = parser.parse_args().count

    def say(done: int) -> None:
        print(f"{done} of {count} keys, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    start = time.perf_counter()
    source, num_images = sort_refs(make_refs(count), on_progress=say)
    sorted_s = time.perf_counter() - start
    listing = Listing(num_images=num_images, skipped={}, num_not_selected=0, source=source)
    with tempfile.TemporaryDirectory() as folder:
        num_parts = sum(1 for _part in write_plan(folder, listing, images_per_shard=64))
        size_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    figures = {
        "keys": num_images,
        "seconds_listed_and_sorted": round(sorted_s, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "keys_per_s": round(num_images / (time.perf_counter() - start)),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "plan_parts": num_parts,
        "plan_mib": round(size_bytes / 2**20),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
