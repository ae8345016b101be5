"""Freeze many prompts: seconds and peak memory of matching a COCO file with a listing and writing the plan of prompts.

    python benchmarks/plan_prompts.py [--prompts 1000000] [--prompts-per-image 10]

No image is read.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from jobs.ordering import sort_refs
from jobs.prompts import describe_prompts, match_prompts, read_shard_prompts
from jobs.refs import ImageRef, Listing

IMAGES_PER_SHARD = 64


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--prompts-per-image", type=int, default=10)
    given = parser.parse_args()
    num_images = given.prompts // given.prompts_per_image
    with tempfile.TemporaryDirectory() as folder:
        boxes = write_boxes(Path(folder) / "boxes.json", num_images=num_images, num_prompts=given.prompts)
        refs = (ImageRef(uri=f"file:///photos/{i:08d}.jpg", file_name=f"{i:08d}.jpg") for i in range(num_images))
        source, count = sort_refs(refs)
        listing = Listing(num_images=count, skipped={}, num_not_selected=0, source=source)
        before = measure_peak_mib()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        spec = describe_prompts(str(boxes), options=None, frozen=None)
        num_shards = -(-num_images // IMAGES_PER_SHARD)
        sizes = [min(1024, num_shards - first) for first in range(0, num_shards, 1024)]
        with match_prompts(spec, listing=listing, say=print) as matched:
            assert matched is not None
            matched.write(folder, images_per_shard=IMAGES_PER_SHARD, shards_of_parts=sizes)
        seconds, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
        print(f"{seconds:.1f} s, {cpu_s:.1f} s of CPU; peak memory {measure_peak_mib():.0f} MiB, {before:.0f} MiB before")
        print(f"file of {boxes.stat().st_size / 1e6:.0f} MB, plan of ", end="")
        print(f"{sum(p.stat().st_size for p in Path(folder, 'prompts_plan').iterdir()) / 1e6:.0f} MB")
        begin = time.perf_counter()
        prompts = read_shard_prompts(folder, part=0, group=num_shards // 2 % 1024)
        print(f"one shard's {len(prompts)} prompts read in {1e3 * (time.perf_counter() - begin):.0f} ms")


def write_boxes(path: Path, *, num_images: int, num_prompts: int) -> Path:
    """A COCO file whose prompts come in another order than the images."""
    with path.open("w") as file:
        file.write('{"images":[')
        file.write(
            ",".join(json.dumps({"id": i, "file_name": f"{i:08d}.jpg", "width": 640, "height": 480}) for i in range(num_images))
        )
        file.write('],"annotations":[')
        for number in range(num_prompts):
            box = [number % 600, number % 400, 30.5, 40.25]
            record = {"id": number + 1, "image_id": number * 7919 % num_images, "category_id": 1 + number % 80, "bbox": box}
            file.write(("," if number else "") + json.dumps(record))
        file.write("]}")
    return path


def measure_peak_mib() -> float:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
