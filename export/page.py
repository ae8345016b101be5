"""A run -> one HTML page to look at it: every photo of a sample with its masks, the run's figures at the head.

Works from a file, without a network: pictures, outlines, styles and script are all inside. What the page does stands in
``page.html``; this fills in the data. Must not know training formats.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from export.photos import choose_images, join_masks, read_small_photo, spread
from export.polygons import trace_rings
from labeler import rle, storage
from labeler.draw import encode_jpeg, mask_color, sample_positions
from labeler.errors import ImageError, OptionsError
from labeler.runs import Row, Run, iterate_images, iterate_rows
from labeler.tables import STAGES
from labeler.types import Size, UInt8

PAGE = "index.html"
MAX_IMAGES = 1000

_OUTLINE_TOLERANCE_PX = 1.0
_NUM_COLORS = 96
_MAX_BARS = 25
_MAX_MEASURED_SHARDS = 200
"""Masks are measured in so many shards, spread evenly over the run: those of a million images are 50 GB to read."""
_PICTURE_SIDES_PX = ((100, 960), (300, 640), (MAX_IMAGES, 448))
"""(images, side): the more images, the smaller their pictures, so that a page of the most stays below 100 MB."""


@dataclass(slots=True)
class PageReport:
    """What is on the page.

    Attributes:
        num_images: images, failed ones among them.
        num_masks: masks on them.
        num_bytes: the size of the page.
        is_sample: whether the run holds more images.
    """

    num_images: int = 0
    num_masks: int = 0
    num_bytes: int = 0
    is_sample: bool = False


def export_page(run: Run, target: str, *, limit: int = MAX_IMAGES) -> PageReport:
    """Write the page of some committed images into a folder.

    Raises:
        OptionsError: no image is committed yet.
        StorageError: a part or a photo can't be read, or the page can't be written.
    """
    chosen = choose_images(run, limit=limit)
    if not chosen:
        raise OptionsError(f"{run.output} has no committed images to show")
    side_px = next(side for most, side in _PICTURE_SIDES_PX if len(chosen) <= most)
    images, pictures = [], []
    for row, masks in join_masks(run, chosen):
        about, picture = _describe_image(row, masks, run, side_px=side_px)
        images.append(about)
        pictures.append(picture)
    statistics = _measure_run(run)
    data = {
        "run": _describe_run(run, statistics, num_shown=len(chosen)),
        "histograms": statistics.to_histograms(),
        "colors": ["#{:02x}{:02x}{:02x}".format(*mask_color(i)) for i in range(_NUM_COLORS)],
        "images": images,
    }
    page = _fill_template(data, pictures).encode("utf-8")
    uri = storage.join(target, PAGE)
    storage.write_bytes(uri, page)
    num_masks = sum(len(about["masks"]) for about in images)
    return PageReport(len(chosen), num_masks, len(page), is_sample=statistics.num_images > len(chosen))


def _describe_image(row: Row, masks: Sequence[Row], run: Run, *, side_px: int) -> tuple[dict[str, Any], bytes]:
    """What the page says of one image, and its picture; without one where it failed or can't be shown."""
    name = storage.printable_name(row["file_name"])
    about: dict[str, Any] = {"id": row["image_id"], "name": name, "masks": []}
    if row["status"] != "ok":
        return {**about, "error": f"{row['error_kind']}: {row['error_message']}"}, b""
    about["size"] = [row["width"], row["height"]]
    try:
        photo = read_small_photo(row, run, max_side_px=side_px)
    except ImageError as error:
        return {**about, "gone": f"labeled with {len(masks)} masks, but can't be shown: {error.reason}"}, b""
    about["picture"] = [photo.shape[1], photo.shape[0]]
    about["masks"] = [_describe_mask(mask, photo) for mask in masks]
    return about, encode_jpeg(photo, quality=80)


def _describe_mask(mask: Row, photo: UInt8) -> list[Any]:
    """[mask_id, predicted IoU, stability, area, outlines]; each outline is x0, y0, x1, y1 ... in pixels of the picture."""
    scores = [round(mask["predicted_iou"], 3), round(mask["stability_score"], 3)]
    picture_hw = (photo.shape[0], photo.shape[1])
    return [mask["mask_id"], *scores, mask["area"], _outline(mask, picture_hw=picture_hw)]


def _outline(mask: Row, *, picture_hw: Size) -> list[list[int]]:
    image_hw = (mask["segmentation"]["size"][0], mask["segmentation"]["size"][1])
    x, y, w, h = (int(side) for side in mask["bbox"])
    crop = rle.runs_to_crop(rle.counts_to_runs(mask["segmentation"]["counts"]), image_hw=image_hw, box_xywh=(x, y, w, h))
    rows, columns = (sample_positions(full, num_samples=side) for full, side in zip(image_hw, picture_hw, strict=True))
    top, bottom = np.searchsorted(rows, [y, y + h])
    left, right = np.searchsorted(columns, [x, x + w])
    small = crop[np.ix_(rows[top:bottom] - y, columns[left:right] - x)]
    rings = trace_rings(small, tolerance_px=_OUTLINE_TOLERANCE_PX) if small.any() else []
    if rings:
        return [(ring + np.array([left, top])).ravel().tolist() for ring in rings]
    # Too small to be met by the picture's pixels: its box, so that it is there to be seen.
    down, right = (small / full for small, full in zip(picture_hw, image_hw, strict=True))
    x0, y0 = math.floor(x * right), math.floor(y * down)
    x1, y1 = max(x0 + 1, math.ceil((x + w) * right)), max(y0 + 1, math.ceil((y + h) * down))
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


@dataclass(slots=True)
class _Statistics:
    """Counts over all committed images, not only those that are shown; masks are measured in ``num_measured`` of them."""

    num_images: int = 0
    num_masks: int = 0
    num_measured: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    seconds_per_image: Counter[int] = field(default_factory=Counter)
    masks_per_image: Counter[int] = field(default_factory=Counter)
    areas: Counter[int] = field(default_factory=Counter)
    ious: Counter[int] = field(default_factory=Counter)
    stabilities: Counter[int] = field(default_factory=Counter)

    def count_image(self, row: Row, *, num_masks: int) -> None:
        """One image and how many masks it has."""
        self.num_images += 1
        self.num_masks += num_masks
        seconds = {stage: row[f"seconds_{stage}"] or 0.0 for stage in STAGES}
        for stage in STAGES:
            self.seconds[stage] += seconds[stage]
        if row["status"] != "ok":
            self.errors[row["error_kind"]] += 1
            return
        self.masks_per_image[num_masks] += 1
        self.seconds_per_image[math.floor(sum(seconds.values()) * 100)] += 1

    def measure_masks(self, masks: Sequence[Row]) -> None:
        """One image's masks."""
        self.num_measured += 1
        for mask in masks:
            self.areas[int(math.log2(mask["area"]))] += 1
            self.ious[math.floor(mask["predicted_iou"] * 50)] += 1
            self.stabilities[math.floor(mask["stability_score"] * 50)] += 1

    def to_histograms(self) -> list[dict[str, Any]]:
        """Each with its bars from left to right: [from, up to, how many]."""
        return [
            {"title": "seconds an image", "unit": "images", "bars": _widen(self.seconds_per_image, unit=0.01)},
            {"title": "masks an image", "unit": "images", "bars": _widen(self.masks_per_image, unit=1)},
            {"title": "mask area, pixels", "unit": "masks", "bars": _to_bars(self.areas, lambda i: 2**i)},
            {"title": "predicted IoU", "unit": "masks", "bars": _to_bars(self.ious, lambda i: i / 50)},
            {"title": "stability score", "unit": "masks", "bars": _to_bars(self.stabilities, lambda i: i / 50)},
        ]


def _widen(counts: Counter[int], *, unit: float) -> list[list[float]]:
    """Bars of so many numbers each that they fit the plot; ``unit`` is what one of the numbers counts."""
    width = max(1, -(-(max(counts, default=0) + 1) // _MAX_BARS))
    wide: Counter[int] = Counter()
    for number, images in counts.items():
        wide[number // width] += images
    return _to_bars(wide, lambda i: round(i * width * unit, 2))


def _to_bars(counts: Counter[int], to_value: Any) -> list[list[float]]:
    if not counts:
        return []
    return [[to_value(i), to_value(i + 1), counts[i]] for i in range(min(counts), max(counts) + 1)]


def _measure_run(run: Run) -> _Statistics:
    statistics = _Statistics()
    columns = ["image_id", "status", "error_kind", "num_masks", *(f"seconds_{stage}" for stage in STAGES)]
    mask_columns = ["image_id", "area", "predicted_iou", "stability_score"]
    measured = spread(run.shards, _MAX_MEASURED_SHARDS)
    for row, masks in iterate_images(run, columns=columns, mask_columns=mask_columns, shards=measured):
        statistics.count_image(row, num_masks=len(masks))
        statistics.measure_masks(masks)
    others = sorted(set(run.shards) - set(measured))
    for row in iterate_rows(run, table="images", columns=columns, shards=others):
        statistics.count_image(row, num_masks=run.reviews.count_masks(row))
    return statistics


def _name_run(run: Run) -> str:
    name = run.output.rstrip("/").rpartition("/")[2]
    return name if storage.uri_to_path(run.output) is None else storage.printable_name(name)


def _describe_run(run: Run, statistics: _Statistics, *, num_shown: int) -> dict[str, Any]:
    """The figures at the page's head. Counts and stages come from the tables, rates from the run's own report, if any."""
    report = _read_report(run)
    num_failed = statistics.errors.total()
    labeled = max(1, statistics.num_images - num_failed)
    return {
        "name": _name_run(run),
        "model": run.model_type,
        "num_planned": run.num_images,
        "num_done": statistics.num_images,
        "num_failed": num_failed,
        "num_masks": statistics.num_masks,
        "num_shown": num_shown,
        "num_measured": statistics.num_measured,
        "errors": dict(sorted(statistics.errors.items(), key=lambda item: (-item[1], item[0]))),
        "seconds_per_stage": {stage: round(statistics.seconds[stage] / labeled, 4) for stage in STAGES},
        **{key: report.get(key) for key in ("images_per_s", "masks_per_s", "num_workers", "seconds", "peak_memory_bytes")},
    }


def _read_report(run: Run) -> dict[str, Any]:
    for name in ("report.json", "progress.json"):
        try:
            found = json.loads(storage.read_bytes(storage.join(run.output, name)))
        except (FileNotFoundError, PermissionError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _fill_template(data: dict[str, Any], pictures: Sequence[bytes]) -> str:
    template = resources.files("export").joinpath("page.html").read_text(encoding="utf-8")
    before, after = template.split("<!-- DATA -->")
    blocks = [_to_block("data", json.dumps(data, separators=(",", ":"), allow_nan=False))]
    # A block a picture: the browser keeps them as text and decodes those in sight.
    blocks += [_to_block(f"picture-{i}", base64.b64encode(p).decode("ascii")) for i, p in enumerate(pictures) if p]
    return before + "\n".join(blocks) + after


def _to_block(name: str, text: str) -> str:
    # "<" is all that could end the block or open a comment in it, and only ever stands within JSON's strings.
    return f'<script type="text/plain" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'
