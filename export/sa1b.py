"""A run -> SA-1B's own layout: one JSON beside each picture, with that dataset's fields. Must not know pixels.

    {"image": {"image_id", "width", "height", "file_name"},
     "annotations": [{"id", "segmentation": {"size", "counts"}, "bbox", "area", "predicted_iou", "stability_score",
                      "point_coords", "crop_box"}, ...]}

``file_name`` is the picture's, in the JSON's own folder. Ids of annotations count through the whole export.
"""

import json

from export.folders import Pictures, open_folder
from export.runs import Run
from export.selection import ExportImage, Report, SelectionOptions, Watch, select_images


class Sa1bOptions(SelectionOptions):
    """What goes into the folder."""

    images: Pictures = "link"
    """Put the pictures in by a symbolic link, as a copy (where a link is not possible, too) or not at all."""


def export_sa1b(run: Run, target: str, *, options: Sa1bOptions, watch: Watch | None = None) -> Report:
    """Write the committed shards of a run as a folder like SA-1B's.

    Raises:
        OptionsError: the folder is not empty, or a name does not fit into it.
        StorageError: a part can't be read, or a file can't be written.
    """
    report = Report()
    with open_folder(run, target, kind="sa1b", options=options) as folder:
        for image in select_images(run, options=options, report=report, watch=watch):
            name = f"{image.split}/{image.name}" if options.val_fraction else image.name
            record = _describe_image(image, first_id=report.num_masks - len(image.masks) + 1)
            folder.write(folder.name_label(name, ".json"), _to_json(record).encode("ascii") + b"\n")
            folder.place_picture(image, name, how=options.images, report=report)
    return report


def _describe_image(image: ExportImage, *, first_id: int) -> dict[str, object]:
    height, width = image.image_hw
    file_name = image.name.rpartition("/")[2]
    return {
        "image": {"image_id": image.image_id, "width": width, "height": height, "file_name": file_name},
        "annotations": [
            {
                "id": annotation_id,
                "segmentation": {"size": [height, width], "counts": mask.counts},
                "bbox": mask.bbox,
                "area": mask.area,
                "predicted_iou": mask.predicted_iou,
                "stability_score": mask.stability_score,
                "point_coords": mask.point_coords,
                "crop_box": mask.crop_box,
            }
            for annotation_id, mask in enumerate(image.masks, start=first_id)
        ],
    }


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
