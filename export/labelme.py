"""A run -> labelme: one JSON beside each picture, to correct masks by hand. Must not know pixels.

A mask in several pieces is several polygons of one ``group_id``, which is its ``mask_id`` in the run: corrected masks find
their way back. Holes are cut open (``export.polygons``).
"""

import json
from typing import Annotated

from pydantic import Field

from export.folders import Pictures, open_folder
from export.polygons import counts_to_polygons
from export.runs import Run
from export.selection import ExportImage, ExportMask, Report, SelectionOptions, Watch, select_images

LABEL = "object"
_FORMAT_VERSION = "5.5.0"


class LabelmeOptions(SelectionOptions):
    """What goes into the folder."""

    max_polygon_loss: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """The IoU a mask may lose as polygons; one that loses more is left out. 0 follows every pixel."""

    images: Pictures = "link"
    """Put the pictures in by a symbolic link, as a copy (where a link is not possible, too) or not at all."""


def export_labelme(run: Run, target: str, *, options: LabelmeOptions, watch: Watch | None = None) -> Report:
    """Write the committed shards of a run as a folder that labelme opens.

    Raises:
        OptionsError: the folder is not empty, or a name does not fit into it.
        StorageError: a part can't be read, or a file can't be written.
    """
    report = Report()
    with open_folder(run, target, kind="labelme", options=options) as folder:
        for image in select_images(run, options=options, report=report, watch=watch):
            name = f"{image.split}/{image.name}" if options.val_fraction else image.name
            record = _describe_image(image, options, report)
            folder.write(
                folder.name_label(name, ".json"), json.dumps(record, indent=1, allow_nan=False).encode("ascii") + b"\n"
            )
            folder.place_picture(image, name, how=options.images, report=report)
    return report


def _describe_image(image: ExportImage, options: LabelmeOptions, report: Report) -> dict[str, object]:
    height, width = image.image_hw
    return {
        "version": _FORMAT_VERSION,
        "flags": {},
        "shapes": [shape for mask in image.masks for shape in _to_shapes(mask, image, options, report)],
        "imagePath": image.name.rpartition("/")[2],
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _to_shapes(mask: ExportMask, image: ExportImage, options: LabelmeOptions, report: Report) -> list[dict[str, object]]:
    polygons = counts_to_polygons(mask.counts, image_hw=image.image_hw, max_loss=options.max_polygon_loss)
    if polygons is None:
        report.filtered["max_polygon_loss"] += 1
        report.num_masks -= 1
        return []
    report.count_polygons(polygons.loss)
    return [
        {
            "label": LABEL,
            "points": ring.tolist(),
            "group_id": mask.mask_id,
            "description": f"predicted IoU {mask.predicted_iou:.3f}, stability {mask.stability_score:.3f}",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for ring in polygons.rings
    ]
