"""A run -> an Ultralytics YOLO segmentation dataset: one text file an image, one line a mask.

    data.yaml
    images/train/<file_name>      labels/train/<file_name, its extension .txt>      (and val, where it is asked for)

A line is ``0 x0 y0 x1 y1 ...``: the class, and fractions of the image's width and height. Classes are the categories of the
prompts in the order of their ids, counted from 0, else one for all. An object is one ring in this format: pieces and holes
are connected by slits of no width. Must not know pixels; the rule that leads from a picture to its labels is Ultralytics' own.

Ultralytics writes a JPEG that does not end with its end marker anew where it lies (``verify_image``): through a link that would
be the photo that was labeled, so these are copied.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import Field

from export.folders import FolderOptions, open_folder
from export.names import has_image_extension
from export.polygons import counts_to_polygons
from export.selection import ExportImage, Report, Watch, name_categories, select_images
from labeler.runs import Run

_READ_SUFFIXES = frozenset({".bmp", ".dng", ".heic", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
"""Of pictures that Ultralytics 8.3 and 8.4 list; all others they pass by without a word."""
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that readers of YAML refuse or take for the end of a line; JSON itself escapes those below a space."""
_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class YoloOptions(FolderOptions):
    """What goes into the dataset."""

    max_polygon_loss: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """The IoU a mask may lose as a polygon; one that loses more is left out. 0 follows every pixel."""


def export_yolo(run: Run, target: str, *, options: YoloOptions, watch: Watch | None = None) -> Report:
    """Write the committed shards of a run as a YOLO dataset.

    Raises:
        OptionsError: the folder is not empty, or two images share all but their extension, so they'd share their labels.
        StorageError: a part can't be read, or a file can't be written.
    """
    report = Report()
    names = name_categories(run)
    classes = {category_id: number for number, category_id in enumerate(names)}
    has_pictures = options.images != "none"
    with open_folder(
        run, target, kind="yolo", options=options, label_suffix=".txt", has_pictures=has_pictures, by_stem=True
    ) as folder:
        for image in select_images(run, options=options, report=report, watch=watch):
            picture = f"images/{image.split}/{image.name}"
            num_missing = report.num_pictures_missing
            picture = folder.place_picture(image, picture, how=options.images, report=report, may_link=_stays_as_it_is)
            if has_image_extension(picture):
                suffix = PurePosixPath(picture).suffix.lower()
                report.unread_suffixes[suffix] += suffix not in _READ_SUFFIXES
            else:  # Not there, or of no usual format: as if it came as a JPEG.
                picture += ".jpg"
                report.unread_suffixes["without extension"] += has_pictures and report.num_pictures_missing == num_missing
            folder.write(name_labels(picture), "".join(_to_lines(image, classes, options, report)).encode("ascii"))
        folder.write("data.yaml", _describe(names.values(), report).encode())
    return report


def name_labels(picture: str) -> str:
    """Where Ultralytics looks for the labels of a picture: in place of the last ``/images/`` of its path."""
    before, _, after = f"/{picture}".rpartition("/images/")
    stem, dot, extension = after.rpartition(".")
    # As there: everything behind the last dot goes, even a folder's.
    return f"{before}/labels/{stem if dot else extension}.txt".removeprefix("/")


def _to_lines(image: ExportImage, classes: Mapping[int, int], options: YoloOptions, report: Report) -> Iterator[str]:
    height, width = image.image_hw
    for mask in image.masks:
        polygons = counts_to_polygons(mask.counts, image_hw=image.image_hw, max_loss=options.max_polygon_loss, joined=True)
        if polygons is None:
            report.filtered["max_polygon_loss"] += 1
            report.num_masks -= 1
            continue
        report.count_polygons(polygons.loss)
        corners = (polygons.rings[0] / np.array([width, height])).ravel()
        yield f"{classes[mask.category_id]} " + " ".join(f"{value:.6g}" for value in corners) + "\n"


def _stays_as_it_is(path: Path) -> bool:
    """Whether Ultralytics leaves a picture alone: it is no JPEG, or ends as one."""
    with path.open("rb") as file:
        if file.read(2) != _JPEG_BEGIN:
            return True
        file.seek(-2, os.SEEK_END)
        return file.read(2) == _JPEG_END


def _describe(names: Iterable[str], report: Report) -> str:
    """``data.yaml``. A side on which no image fell has no folder, which Ultralytics does not take: the other stands for it."""
    has_train, has_val = report.num_val < report.num_images, report.num_val > 0
    train, val = "train" if has_train or not has_val else "val", "val" if has_val else "train"
    note = "" if has_val else "  # none was set aside (--val-fraction)"
    lines = [f"train: images/{train}\nval: images/{val}{note}\nnames:\n"]
    lines += [f"  {number}: {_quote(name)}\n" for number, name in enumerate(names)]
    return "".join(lines)


def _quote(name: str) -> str:
    """JSON's texts are YAML's, once these are escaped, too; and none of them is taken for a number or for "no"."""
    # Not all of ASCII alone: JSON has two escapes for one rare character, and YAML reads them as two.
    text = json.dumps(name.encode(errors="replace").decode(), ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
