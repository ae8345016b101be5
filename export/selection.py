"""A run's images with the masks that are asked for: filters, split, frame, names, categories, the same for every format.

Must not know any format. What is left out is counted by the option that did it; memory holds one image's masks.
"""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from export import frames
from export.filters import filter_masks
from export.options import Frame, SelectionOptions
from labeler import rle, storage
from labeler.errors import OptionsError
from labeler.orientation import TURNING, invert, turn_hw, turn_points
from labeler.runs import Row, Run, iterate_images
from labeler.stores import means_itself
from labeler.types import Size

Split = Literal["train", "val"]

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}
"""SAM's masks have no classes: everything is an object, unless it was asked for by a prompt that has one."""

_IMAGE_COLUMNS = (
    "image_id", "source_id", "uri", "file_name", "size_bytes", "width", "height", "exif_orientation", "status",
)  # fmt: skip
_MASK_COLUMNS = (
    "image_id", "mask_id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "point_coords", "crop_box",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExportMask:
    """One mask that is exported: a row of the masks table, in the frame that was asked for. Boxes are XYWH.

    Attributes:
        category_id: one of ``list_categories``.
        prompt_id: the prompt that asked for it, if one did.
    """

    mask_id: int
    counts: str
    bbox: list[float]
    area: int
    predicted_iou: float
    stability_score: float
    point_coords: list[list[float]]
    crop_box: list[float]
    category_id: int
    prompt_id: int | None = None


@dataclass(frozen=True, slots=True)
class ExportImage:
    """One image that is exported.

    Attributes:
        source_id: its id in the list or COCO file that named it.
        uri: where its picture is read.
        size_bytes: how large it was when it was planned, where that was known.
        name: how the export calls it; real characters (see ``storage.decode_name``), ``/`` between folders.
        image_hw: the frame of its masks.
    """

    image_id: int
    source_id: str | None
    uri: str
    size_bytes: int | None
    name: str
    image_hw: Size
    split: Split
    masks: tuple[ExportMask, ...]


@dataclass(slots=True)
class Report:
    """What an export wrote and what it left out.

    Attributes:
        num_images: images written, with masks or without.
        num_val: those of them set aside for validation.
        num_masks: masks written.
        filtered: masks left out, by the option that did it.
        num_bare: images written without any mask.
        num_empty: images left out because no mask stayed on them.
        num_failed: images left out because they could not be labeled.
        num_oriented: images written whose EXIF orientation turns them: upright and stored frame differ.
        num_rle: masks that no polygon carries within the allowed loss, written as run lengths.
        polygon_losses: how many masks written as polygons lose how much: 1 - IoU, in units of 1/10 000, rounded up.
        num_hidden: masks of which nothing can be seen in a picture of ids, for smaller ones lie over them.
        num_stale_files: files of an earlier export in as many files, under numbers that this one did not need.
        num_pictures_missing: pictures that can't be put beside their labels, for they are not there any more.
        num_pictures_changed: pictures that are not as large, in bytes, as when they were planned.
        num_labels_kept: labels that stand as somebody changed them, instead of being written again.
        unread_suffixes: pictures that are written, but not read by what the format is for: how many end so.
    """

    num_images: int = 0
    num_val: int = 0
    num_masks: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    num_bare: int = 0
    num_empty: int = 0
    num_failed: int = 0
    num_oriented: int = 0
    num_rle: int = 0
    polygon_losses: Counter[int] = field(default_factory=Counter)
    num_hidden: int = 0
    num_stale_files: int = 0
    num_pictures_missing: int = 0
    num_pictures_changed: int = 0
    num_labels_kept: int = 0
    unread_suffixes: Counter[str] = field(default_factory=Counter)

    @property
    def num_seen(self) -> int:
        """Images of the run that are dealt with."""
        return self.num_images + self.num_empty + self.num_failed

    def count_polygons(self, loss: float) -> None:
        """A mask was written as polygons that lose so much of its IoU."""
        self.polygon_losses[math.ceil(loss * 1e4 - 1e-9)] += 1

    @property
    def median_polygon_loss(self) -> float:
        """What half of the masks written as polygons lose at most."""
        steps = sorted(self.polygon_losses)
        reached = np.cumsum([self.polygon_losses[step] for step in steps])
        return steps[int(np.searchsorted(reached, reached[-1] / 2))] / 1e4

    @property
    def worst_polygon_loss(self) -> float:
        """What no mask written as polygons exceeds."""
        return max(self.polygon_losses) / 1e4


Watch = Callable[[Report], None]
"""Is told how it stands after every image."""


def select_images(run: Run, *, options: SelectionOptions, report: Report, watch: Watch | None = None) -> Iterator[ExportImage]:
    """The images to export, in order of image_id, each with the masks that stay, in order of mask_id."""
    mask_columns = (*_MASK_COLUMNS, *(("prompt_id", "category_id") if run.prompts else ()))
    other_id = _find_other_id(run)
    for row, rows in iterate_images(run, columns=_IMAGE_COLUMNS, mask_columns=mask_columns):
        image = _select_image(row, rows, run, options, report, other_id=other_id)
        if image is not None:
            report.num_images += 1
            report.num_masks += len(image.masks)
            report.num_bare += not image.masks
            report.num_val += image.split == "val"
            report.num_oriented += row["exif_orientation"] in TURNING
            yield image
        if watch is not None:
            watch(report)


def list_categories(run: Run) -> list[dict[str, Any]]:
    """The categories of the prompts, as COCO writes them, and last that of masks without one, if there are any."""
    if run.prompts is None:
        return [CATEGORY]
    given = list(run.prompts.categories)
    has_others = run.prompts.num_without_category or run.reviews.count()["drawn"]
    other_id = _find_other_id(run)
    if not has_others or any(category["id"] == other_id for category in given):
        return given
    return [*given, CATEGORY | {"id": other_id}]


def _find_other_id(run: Run) -> int:
    """The category of masks without one: the prompts' own of the same name, where they have it, or the first free number."""
    given = run.prompts.categories if run.prompts else ()
    ids = {category["id"]: category.get("name") for category in given}
    same = (number for number, name in ids.items() if name == CATEGORY["name"])
    return next(same, next(number for number in itertools.count(1) if number not in ids))


def name_categories(run: Run) -> dict[int, str]:
    """Their names by their ids, in that order; one that was given no name is called by its number."""
    return {category["id"]: str(category.get("name", category["id"])) for category in list_categories(run)}


def name_image(row: Row, *, options: SelectionOptions) -> str:
    """How an image is called in the export.

    Raises:
        OptionsError: it is not below ``relative_to``.
    """
    if options.relative_to is None:
        return storage.decode_name(row["file_name"])
    uri, root = row["uri"], storage.path_to_uri(options.relative_to)
    root = root if root.endswith("/") else root + "/"
    if not uri.startswith(root):
        raise OptionsError(f"--relative-to: {uri} does not lie below {root}")
    below = uri.removeprefix(root)
    # Addresses of the web and chained ones stand for themselves; all others are percent-encoded, keys of buckets, too.
    return below if means_itself(uri) else storage.decode_name(below)


def choose_split(file_name: str, *, options: SelectionOptions) -> Split:
    """The side of an image, by a hash of its name in the run: no other image has a say in it."""
    digest = hashlib.sha256(f"{options.seed}\0{file_name}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < options.val_fraction * 2.0**64 else "train"


def _select_image(
    row: Row, rows: list[Row], run: Run, options: SelectionOptions, report: Report, *, other_id: int
) -> ExportImage | None:
    if row["status"] != "ok":
        report.num_failed += 1
        return None
    image_hw = row["height"], row["width"]
    kept = filter_masks(rows, image_hw=image_hw, options=options, filtered=report.filtered)
    if options.drop_empty and not kept:
        report.num_empty += 1
        return None
    image = ExportImage(
        image_id=row["image_id"],
        source_id=row["source_id"],
        uri=row["uri"],
        size_bytes=row["size_bytes"],
        name=name_image(row, options=options),
        image_hw=image_hw,
        split=choose_split(row["file_name"], options=options),
        masks=tuple(_to_mask(r, other_id=other_id) for r in kept),
    )
    labeled_in: Frame = "upright" if run.options.exif == "apply" else "stored"
    if row["exif_orientation"] in TURNING and options.frame not in (None, labeled_in):
        return _turn_image(image, orientation=row["exif_orientation"], upright=options.frame == "upright")
    return image


def _to_mask(row: Row, *, other_id: int) -> ExportMask:
    category_id = row.get("category_id")
    return ExportMask(
        mask_id=row["mask_id"],
        counts=row["segmentation"]["counts"],
        bbox=row["bbox"],
        area=row["area"],
        predicted_iou=row["predicted_iou"],
        stability_score=row["stability_score"],
        point_coords=row["point_coords"],
        crop_box=row["crop_box"],
        category_id=other_id if category_id is None else category_id,
        prompt_id=row.get("prompt_id"),
    )


def _turn_image(image: ExportImage, *, orientation: int, upright: bool) -> ExportImage:
    way, image_hw = orientation if upright else invert(orientation), image.image_hw
    turned_hw = turn_hw(image_hw, way)
    counts = [frames.turn_counts(mask.counts, way, image_hw=image_hw) for mask in image.masks]
    boxes = rle.measure_boxes_xywh(counts, image_hw=turned_hw).tolist()
    masks = tuple(
        replace(
            mask,
            counts=c,
            bbox=box,
            point_coords=turn_points(np.reshape(mask.point_coords, (-1, 2)), way, image_hw=image_hw).tolist(),
            crop_box=frames.turn_box(mask.crop_box, way, image_hw=image_hw),
        )
        for mask, c, box in zip(image.masks, counts, boxes, strict=True)
    )
    return replace(image, image_hw=turned_hw, masks=masks)
