"""COCO's annotations of some photographs to the folder that ``--regions`` reads: ``instances.json`` and ``images/``.

    python -m training.coco --images DIR --annotations FILE... --output REGIONS

Must not know what the regions are for.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

LEAST_STUFF_PX, LEAST_STUFF_RATIO = 64, 0.001

Json = dict[str, Any]


def collect_regions(images: Path, annotations: Sequence[Path]) -> Json:
    """COCO's dict of the regions of every photograph in a folder; crowds are left out.

    Args:
        annotations: COCO's ``instances_*.json``, or ``panoptic_*.json`` with its folder of the same name beside it. Where a
            photograph is in several, panoptic ones are taken, of which stuff falls into its connected pieces.
    """
    here = {path.name for path in images.iterdir()}
    described: dict[int, Json] = {}
    regions: dict[int, dict[Any, Json]] = {}
    for path in sorted(annotations, key=lambda path: path.stem.startswith("panoptic")):
        content = json.loads(path.read_text())
        wanted = {image["id"]: image for image in content["images"] if image["file_name"] in here}
        described |= wanted
        if path.stem.startswith("panoptic"):
            things = {category["id"] for category in content["categories"] if category["isthing"]}
            for annotation in content["annotations"]:
                if annotation["image_id"] in wanted:
                    segments = _split_segments(annotation, path.with_suffix("") / annotation["file_name"], things)
                    regions[annotation["image_id"]] = dict(enumerate(segments))
        else:
            for annotation in content["annotations"]:
                if annotation["image_id"] in wanted and not annotation["iscrowd"]:
                    rle = _to_rle(annotation["segmentation"], wanted[annotation["image_id"]])
                    regions.setdefault(annotation["image_id"], {})[annotation["id"]] = rle
    rows = [{"image_id": image, "segmentation": rle} for image in sorted(regions) for rle in regions[image].values()]
    return {
        "images": [described[image] for image in sorted(regions)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
    }


def _to_rle(polygons: list[list[float]], image: Json) -> Json:
    return _readable(coco_masks.merge(coco_masks.frPyObjects(polygons, image["height"], image["width"])))


def _split_segments(annotation: Json, png: Path, things: set[int]) -> Iterator[Json]:
    """The RLEs of one photograph's panoptic segments."""
    colours = np.asarray(Image.open(png).convert("RGB"), dtype=np.uint32)
    ids = colours @ np.array([1, 256, 65536], dtype=np.uint32)
    for segment in annotation["segments_info"]:
        mask = (ids == segment["id"]).astype(np.uint8)
        if segment["iscrowd"]:
            continue
        if segment["category_id"] in things:
            yield _readable(coco_masks.encode(np.asfortranarray(mask)))
            continue
        count, pieces = cv2.connectedComponents(mask, connectivity=8)
        for piece in range(1, count):
            part = np.asfortranarray(pieces == piece, dtype=np.uint8)
            if part.sum() >= max(LEAST_STUFF_PX, LEAST_STUFF_RATIO * mask.size):
                yield _readable(coco_masks.encode(part))


def _readable(rle: Json) -> Json:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def main() -> None:
    """Read the flags and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs under COCO's names")
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, help="instances_*.json, panoptic_*.json")
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    collected = collect_regions(flags.images, flags.annotations)
    (flags.output / "images").mkdir(parents=True, exist_ok=True)
    for image in collected["images"]:
        shutil.copyfile(flags.images / image["file_name"], flags.output / "images" / image["file_name"])
    (flags.output / "instances.json").write_text(json.dumps(collected))
    print(f"{len(collected['images'])} photographs, {len(collected['annotations'])} regions")


if __name__ == "__main__":
    main()
