"""A run -> pictures people look at: each photo with its masks painted over it, and one contact sheet of all of them.

Must not know training formats. Shows a sample spread evenly over the run, failed images included: a gray tile says why.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from export.photos import choose_images, join_masks, read_small_photo
from labeler import rle, storage
from labeler.draw import (
    MAX_JPEG_SIDE_PX,
    Tile,
    contact_sheet,
    contact_sheet_hw,
    encode_jpeg,
    paint_masks,
    shrink_to_fit,
)
from labeler.errors import ImageError, OptionsError
from labeler.runs import Row, Run

CONTACT_SHEET = "contact_sheet.jpg"
OVERLAYS = "overlays"
DEFAULT_LIMIT = 60

_OVERLAY_SIDE_PX = 1600
_TILE_PX = 320


class PreviewOptions(BaseModel):
    """Which images are shown, and how many in a row."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    limit: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Show at most this many images, spread evenly over the run. Not set: 60, or 1000 with --html."""

    columns: Annotated[int, Field(ge=1, le=100)] = 6
    """Images in a row of the contact sheet."""


@dataclass(slots=True)
class PreviewReport:
    """What was drawn.

    Attributes:
        num_overlays: photos painted.
        num_masks: masks on them.
        num_failed: gray tiles of images that could not be labeled.
        num_unreadable: gray tiles of images that are labeled, but whose photo could not be shown now.
    """

    num_overlays: int = 0
    num_masks: int = 0
    num_failed: int = 0
    num_unreadable: int = 0


def export_preview(run: Run, target: str, *, options: PreviewOptions) -> PreviewReport:
    """Write overlay pictures and a contact sheet of some committed images into a folder.

    Raises:
        OptionsError: no image is committed yet, or the sheet would be larger than a JPEG file can be.
        StorageError: a part or a photo can't be read, or a picture can't be written.
    """
    chosen = choose_images(run, limit=options.limit or DEFAULT_LIMIT)
    if not chosen:
        raise OptionsError(f"{run.output} has no committed images to show")
    if max(contact_sheet_hw(len(chosen), columns=options.columns, tile_px=_TILE_PX)) > MAX_JPEG_SIDE_PX:
        raise OptionsError(f"{len(chosen)} images in {options.columns} columns do not fit one picture; use more --columns")
    report = PreviewReport()
    tiles = [_show_image(row, counts, run, target, report=report) for row, counts in _iterate_counts(run, chosen)]
    sheet = contact_sheet(tiles, columns=options.columns, tile_px=_TILE_PX)
    storage.write_bytes(storage.join(target, CONTACT_SHEET), encode_jpeg(sheet))
    return report


def _iterate_counts(run: Run, chosen: Sequence[tuple[int, Row]]) -> Iterator[tuple[Row, list[str]]]:
    for row, masks in join_masks(run, chosen):
        yield row, [mask["segmentation"]["counts"] for mask in masks]


def _show_image(row: Row, counts: Sequence[str], run: Run, target: str, *, report: PreviewReport) -> Tile:
    """Paint one image into its file; its tile for the sheet."""
    name = storage.decode_name(row["file_name"])
    if row["status"] != "ok":
        report.num_failed += 1
        return Tile(name, f"{row['error_kind']}: {row['error_message']}")
    try:
        photo = read_small_photo(row, run, max_side_px=_OVERLAY_SIDE_PX)
    except ImageError as error:
        report.num_unreadable += 1
        return Tile(name, f"labeled with {len(counts)} masks, but can't be shown: {error.reason}")
    report.num_overlays += 1
    report.num_masks += len(counts)
    painted = paint_masks(photo, [rle.counts_to_runs(c) for c in counts], image_hw=(row["height"], row["width"]))
    storage.write_bytes(storage.join(target, OVERLAYS, _name_overlay(row)), encode_jpeg(painted))
    return Tile(name, "1 mask" if len(counts) == 1 else f"{len(counts)} masks", shrink_to_fit(painted, max_side_px=_TILE_PX))


def _name_overlay(row: Row) -> str:
    """A name any file system takes, in the table's order and unlike any other's: the id, then what names the photo."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", row["file_name"])[-80:]
    return f"{row['image_id']:07d}_{stem}.jpg"
