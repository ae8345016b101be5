"""Photographs with regions that people drew: a folder with ``instances.json`` (COCO, RLE) and ``images/``, read and made.

    python -m training.coco --images DIR --annotations FILE... --output REGIONS

Must not know what the regions are for.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_masks

from labeler.images import decode_image
from labeler.rle import mask_to_runs, polygons_to_counts, runs_to_counts

LEAST_STUFF_PX, LEAST_STUFF_RATIO = 64, 0.001

Json = dict[str, Any]
Found = Iterator[tuple[int, Any, str]]  # image id, an id of the region's own, counts


@dataclass(frozen=True)
class LabeledPhoto:
    """A photograph (H, W, 3) uint8 and its human-made regions, as COCO RLE dicts."""

    name: str
    pixels: NDArray[np.uint8]
    regions: list[Json]


def read_labeled_photos(folder: Path) -> Iterator[LabeledPhoto]:
    """The photographs of a folder with ``instances.json`` (COCO, RLE) and ``images/``."""
    content = json.loads((folder / "instances.json").read_text())
    for image in content["images"]:
        regions = [_as_rle(row["segmentation"]) for row in content["annotations"] if row["image_id"] == image["id"]]
        pixels = decode_image((folder / "images" / image["file_name"]).read_bytes(), exif="ignore").pixels
        yield LabeledPhoto(name=image["file_name"], pixels=pixels, regions=regions)


def _as_rle(segmentation: Json) -> Json:
    if isinstance(segmentation["counts"], list):
        return dict(coco_masks.frPyObjects(segmentation, *segmentation["size"]))
    return segmentation


def collect_regions(images: Path, annotations: Sequence[Path]) -> Json:
    """COCO's dict of the regions of every photograph in a folder; crowds are left out.

    Args:
        annotations: COCO's ``instances_*.json``, or ``panoptic_*.json`` with its folder of the same name beside it. Where a
            photograph is in several, panoptic ones are taken, of which stuff falls into its connected pieces.
    """
    here = {path.name for path in images.iterdir()}
    described: dict[int, Json] = {}
    instances: dict[int, dict[Any, str]] = {}
    panoptic: dict[int, dict[Any, str]] = {}
    for path in annotations:
        content = json.loads(path.read_text())
        wanted = {image["id"]: image for image in content["images"] if image["file_name"] in here}
        described |= wanted
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in wanted]
        is_panoptic = path.stem.startswith("panoptic")
        found = _list_segments(content, path.with_suffix("")) if is_panoptic else _list_instances(content, wanted)
        for image, region, counts in found:
            (panoptic if is_panoptic else instances).setdefault(image, {})[region] = counts
    regions = instances | panoptic
    rows = [
        {"image_id": image, "segmentation": {"size": [described[image]["height"], described[image]["width"]], "counts": counts}}
        for image in sorted(regions)
        for counts in regions[image].values()
    ]
    return {
        "images": [described[image] for image in sorted(regions)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
    }


def _list_instances(content: Json, images: dict[int, Json]) -> Found:
    for row in content["annotations"]:
        if not row["iscrowd"]:
            image = images[row["image_id"]]
            yield (
                row["image_id"],
                row["id"],
                polygons_to_counts(row["segmentation"], image_hw=(image["height"], image["width"])),
            )


def _list_segments(content: Json, pngs: Path) -> Found:
    """Things as they are; stuff in its connected pieces, without specks."""
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    for row in content["annotations"]:
        colours = np.asarray(Image.open(pngs / row["file_name"]).convert("RGB"), dtype=np.uint32)
        ids = colours @ np.array([1, 256, 65536], dtype=np.uint32)
        for segment in row["segments_info"]:
            if not segment["iscrowd"]:
                mask = ids == segment["id"]
                for number, piece in enumerate([mask] if segment["category_id"] in things else _split_pieces(mask)):
                    counts = runs_to_counts(mask_to_runs(piece), image_hw=(mask.shape[0], mask.shape[1]))
                    yield row["image_id"], (segment["id"], number), counts


def _split_pieces(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    count, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for piece in range(1, count):
        part: NDArray[np.bool_] = pieces == piece
        if part.sum() >= max(LEAST_STUFF_PX, LEAST_STUFF_RATIO * mask.size):
            yield part


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
