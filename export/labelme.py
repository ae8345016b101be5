"""A run -> labelme: one JSON beside each picture, to correct masks by hand. Must not know pixels.

A mask in several pieces is several polygons of one ``group_id``, which is its ``mask_id`` in the run: corrected masks find
their way back. Its label is the name of its category. Holes are cut open (``export.polygons``). labelme saves into the same
file, so one that is not as this export writes it stays as it is.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import Field

from export.folders import FolderOptions, write_beside_pictures
from export.polygons import counts_to_polygons
from export.selection import ExportImage, ExportMask, Report, Watch, name_categories
from labeler.runs import Run

_FORMAT_VERSION = "5.5.0"


class LabelmeOptions(FolderOptions):
    """What goes into the folder."""

    max_polygon_loss: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """The IoU a mask may lose as polygons; one that loses more is left out. 0 follows every pixel."""

    overwrite: bool = False
    """Write labels again that stand there and differ: corrections made in labelme are lost."""


def export_labelme(run: Run, target: str, *, options: LabelmeOptions, watch: Watch | None = None) -> Report:
    """Write the committed shards of a run as a folder that labelme opens.

    Raises:
        OptionsError: the folder is not empty, a name does not fit into it, or two images share all but their extension, for
            labelme would save the labels of both in one file.
        StorageError: a part can't be read, or a file can't be written.
    """
    describe = partial(_describe_image, names=name_categories(run), options=options)
    return write_beside_pictures(
        run,
        target,
        kind="labelme",
        options=options,
        describe=describe,
        watch=watch,
        by_stem=True,
        overwrite=options.overwrite,
    )


def _describe_image(
    image: ExportImage, picture: str, report: Report, *, names: Mapping[int, str], options: LabelmeOptions
) -> bytes:
    height, width = image.image_hw
    record: dict[str, object] = {
        "version": _FORMAT_VERSION,
        "flags": {},
        "shapes": [
            {"label": names[mask.category_id], **shape}
            for mask in image.masks
            for shape in _to_shapes(mask, image, options, report)
        ],
        "imagePath": picture,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    return json.dumps(record, indent=1, allow_nan=False).encode("ascii")


def _to_shapes(mask: ExportMask, image: ExportImage, options: LabelmeOptions, report: Report) -> list[dict[str, object]]:
    polygons = counts_to_polygons(mask.counts, image_hw=image.image_hw, max_loss=options.max_polygon_loss)
    if polygons is None:
        report.filtered["max_polygon_loss"] += 1
        report.num_masks -= 1
        return []
    report.count_polygons(polygons.loss)
    return [
        {
            "points": ring.tolist(),
            "group_id": mask.mask_id,
            "description": f"predicted IoU {mask.predicted_iou:.3f}, stability {mask.stability_score:.3f}",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for ring in polygons.rings
    ]
