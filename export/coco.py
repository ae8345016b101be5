"""A run -> one COCO JSON file of instance masks, streamed. Must not know pixels: the tables already hold COCO's lengths.

    {"info": {...}, "images": [...], "annotations": [...], "categories": [{"id": 1, "name": "object", ...}]}

The images table is read through once, then the masks table, shard by shard, and every row is written as it comes: memory
does not grow with the run. Nothing but the run and the options goes into the file, so exporting again gives equal bytes.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from export.runs import Run, iterate_rows
from labeler import rle, storage
from labeler.errors import StorageError

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}
"""SAM's masks have no classes: everything is an object."""

Segmentation = Literal["rle", "rle-uncompressed"]


class CocoOptions(BaseModel):
    """What goes into the file, and how masks are written."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    segmentation: Segmentation = "rle"
    """How masks are written: 'rle', COCO's compressed run lengths, or 'rle-uncompressed', a list of numbers. Both exact."""

    min_predicted_iou: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    """Leave out masks whose predicted IoU is lower than this. Not set: none."""

    min_area: Annotated[int, Field(ge=0)] = 0
    """Leave out masks of fewer pixels than this."""


@dataclass(slots=True)
class CocoReport:
    """What an export wrote and what it left out.

    Attributes:
        num_images: images written, with masks or without.
        num_masks: masks written.
        num_filtered: masks that the options left out.
        num_failed: images left out because they could not be labeled.
        num_turned: images whose masks fit the photo turned upright by its EXIF orientation, not the stored pixels.
    """

    num_images: int = 0
    num_masks: int = 0
    num_filtered: int = 0
    num_failed: int = 0
    num_turned: int = 0


def export_coco(run: Run, target: Path, *, options: CocoOptions) -> CocoReport:
    """Write the committed shards of a run as one COCO file; it has its final name only when it is complete.

    Raises:
        StorageError: a part can't be read, or the file can't be written.
    """
    report = CocoReport()
    with _open_whole(target) as file:
        file.write('{"info":' + _to_json(_describe_export(run, options)))
        _write_list(file, "images", _iterate_images(run, report))
        _write_list(file, "annotations", _iterate_annotations(run, report, options=options))
        _write_list(file, "categories", iter([CATEGORY]))
        file.write("}\n")
    return report


def _iterate_images(run: Run, report: CocoReport) -> Iterator[dict[str, Any]]:
    columns = ["image_id", "file_name", "width", "height", "exif_orientation", "status"]
    for row in iterate_rows(run, table="images", columns=columns):
        if row["status"] != "ok":
            report.num_failed += 1
            continue
        report.num_images += 1
        report.num_turned += run.options.exif == "apply" and row["exif_orientation"] not in (None, 1)
        yield {
            "id": row["image_id"],
            "file_name": storage.decode_name(row["file_name"]),
            "width": row["width"],
            "height": row["height"],
        }


def _iterate_annotations(run: Run, report: CocoReport, *, options: CocoOptions) -> Iterator[dict[str, Any]]:
    # Compared as the table holds it: 0.9 as float32 is a little less than 0.9, and a mask of just that is not "lower".
    # Where nothing is asked nothing may go, and a model may predict less than 0.
    lowest = -math.inf if options.min_predicted_iou is None else float(np.float32(options.min_predicted_iou))
    columns = ["image_id", "segmentation", "bbox", "area", "predicted_iou", "stability_score"]
    to_segmentation = _SEGMENTATIONS[options.segmentation]
    for row in iterate_rows(run, table="masks", columns=columns):
        if row["predicted_iou"] < lowest or row["area"] < options.min_area:
            report.num_filtered += 1
            continue
        report.num_masks += 1
        yield {
            "id": report.num_masks,
            "image_id": row["image_id"],
            "category_id": CATEGORY["id"],
            "segmentation": to_segmentation(row["segmentation"]),
            "area": row["area"],
            "bbox": row["bbox"],
            "iscrowd": 0,
            "predicted_iou": row["predicted_iou"],
            "stability_score": row["stability_score"],
        }


def _keep_compressed(segmentation: dict[str, Any]) -> dict[str, Any]:
    return segmentation


def _uncompress(segmentation: dict[str, Any]) -> dict[str, Any]:
    return {"size": segmentation["size"], "counts": rle.counts_to_runs(segmentation["counts"]).tolist()}


_SEGMENTATIONS: dict[Segmentation, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "rle": _keep_compressed,
    "rle-uncompressed": _uncompress,
}


def _describe_export(run: Run, options: CocoOptions) -> dict[str, Any]:
    """How the file came to be, without a clock or a path: equal runs give equal bytes."""
    return {
        "description": "masks of Segment Anything, without classes",
        "model": {"type": run.model_type, "sha256": run.model_sha256},
        "mask_options": run.options.model_dump(mode="json"),
        "export_options": options.model_dump(mode="json"),
        "num_shards_missing": run.num_missing_shards,
    }


def _write_list(file: TextIO, name: str, items: Iterator[dict[str, Any]]) -> None:
    file.write(f',\n"{name}":[')
    separator = "\n"
    for item in items:
        file.write(separator + _to_json(item))
        separator = ",\n"
    file.write("\n]")


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@contextmanager
def _open_whole(target: Path) -> Iterator[TextIO]:
    """A text file that gets its name when all is written, and leaves nothing behind when that fails."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="ascii", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise StorageError(f"{target} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # Renamed, or never made.
            part.unlink()
