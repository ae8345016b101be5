"""A run -> SA-1B's own layout: one JSON beside each picture, with that dataset's fields. Must not know pixels.

    {"image": {"image_id", "width", "height", "file_name"},
     "annotations": [{"id", "segmentation": {"size", "counts"}, "bbox", "area", "predicted_iou", "stability_score",
                      "point_coords", "crop_box"}, ...]}

``file_name`` is the picture's, in the JSON's own folder. Ids of annotations count through the whole export.
"""

import json

from export.folders import FolderOptions, write_beside_pictures
from export.selection import ExportImage, Report, Watch
from labeler.runs import Run


def export_sa1b(run: Run, target: str, *, options: FolderOptions, watch: Watch | None = None) -> Report:
    """Write the committed shards of a run as a folder like SA-1B's.

    Raises:
        OptionsError: the folder is not empty, or a name does not fit into it.
        StorageError: a part can't be read, or a file can't be written.
    """
    return write_beside_pictures(run, target, kind="sa1b", options=options, describe=_describe_image, watch=watch)


def _describe_image(image: ExportImage, picture: str, report: Report) -> bytes:
    height, width = image.image_hw
    first_id = report.num_masks - len(image.masks) + 1
    record: dict[str, object] = {
        "image": {"image_id": image.image_id, "width": width, "height": height, "file_name": picture},
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
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii")
