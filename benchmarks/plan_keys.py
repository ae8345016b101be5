"""How long a listing of millions of keys takes to become a frozen plan, and how much memory: ``plan_keys.py 10000000``.

Then the same keys and a hundredth more are listed again, as ``--extend`` does, and what is new is added.

The keys are made up here, in no order, as a store's pages would bring them; everything after that is the job's own code.
"""

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jobs.extension import find_new_images
from jobs.ordering import sort_refs
from jobs.parts import PlanPart, write_plan
from jobs.refs import ImageRef, Listing

_STEP = 7_368_787  # A prime, so that stepping by it meets every number once, in an order that is none.


def make_refs(count: int) -> Iterator[ImageRef]:
    """``count`` images of a bucket, in the order of a hash."""
    for index in range(count):
        number = index * _STEP % count
        name = f"camera-{number % 97:02d}/2025-{number % 12 + 1:02d}/frame-{number:012d}.jpg"
        yield ImageRef(uri=f"s3://bucket/photos/{name}", file_name=name, size_bytes=number, etag=f"{number:032x}")


def extend(folder: str, parts: tuple[PlanPart, ...], count: int) -> tuple[int, float]:
    """The same keys and one more in a hundred, listed again and added to the plan; how many were new, and seconds."""
    start = time.perf_counter()
    more = (ImageRef(uri=f"s3://bucket/new/{number}.jpg", file_name=f"new/{number}.jpg") for number in range(count // 100))
    source, num_images = sort_refs(itertools.chain(make_refs(count), more))
    listing = Listing(num_images=num_images, skipped={}, num_not_selected=0, source=source)
    record: Any = SimpleNamespace(plan=parts, extensions=(), num_images=count)
    new = find_new_images(listing, output=folder, record=record)
    added = sum(part.num_images for part in write_plan(folder, new, images_per_shard=64, after=parts))
    return added, time.perf_counter() - start


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
        parts = tuple(write_plan(folder, listing, images_per_shard=64))
        planned_s = time.perf_counter() - start
        num_new, extended_s = extend(folder, parts, count)
        size_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    figures = {
        "keys": num_images,
        "seconds_listed_and_sorted": round(sorted_s, 1),
        "seconds": round(planned_s, 1),
        "keys_per_s": round(num_images / planned_s),
        "new_keys": num_new,
        "seconds_listed_again_and_extended": round(extended_s, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "plan_parts": len(parts),
        "plan_mib": round(size_bytes / 2**20),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
