"""A run -> one 16-bit PNG of instance ids an image: 0 is background, else ``mask_id + 1`` of the run's masks table.

Must not know training formats. A pixel holds one id: larger masks are painted first, so that small ones lie on top.
"""

import numpy as np

from export.folders import open_folder
from export.options import SelectionOptions
from export.selection import ExportImage, Report, Watch, select_images
from labeler import rle
from labeler.errors import OptionsError
from labeler.images import encode_png
from labeler.runs import Run
from labeler.types import UInt16

_MAX_ID = np.iinfo(np.uint16).max


def export_masks(run: Run, target: str, *, options: SelectionOptions, watch: Watch | None = None) -> Report:
    """Write the committed shards of a run as pictures of instance ids.

    Raises:
        OptionsError: the folder is not empty, a name does not fit into it, or an image has too many masks for 16 bits.
        StorageError: a part can't be read, or a file can't be written.
    """
    report = Report()
    with open_folder(run, target, kind="masks", options=options, label_suffix=".png", has_pictures=False) as folder:
        for image in select_images(run, options=options, report=report, watch=watch):
            name = folder.name_label(image, ".png", options=options)
            folder.write(name, encode_png(paint_ids(image, report=report)))
    return report


def paint_ids(image: ExportImage, *, report: Report) -> UInt16:
    """(H, W) uint16: the ids of an image's masks, the smallest on top."""
    height, width = image.image_hw
    columns = np.zeros(height * width, np.uint16)  # One below the other, as run lengths go.
    for mask in sorted(image.masks, key=lambda mask: -mask.area):
        if mask.mask_id >= _MAX_ID:
            raise OptionsError(f"{image.name} has a mask {mask.mask_id}, but 16 bits end at {_MAX_ID}: filter masks out")
        ends = np.cumsum(rle.counts_to_runs(mask.counts), dtype=np.int64).tolist()
        for start, end in zip(ends[0::2], ends[1::2], strict=False):
            columns[start:end] = mask.mask_id + 1
    report.num_hidden += len(image.masks) - int(np.count_nonzero(np.bincount(columns)[1:]))
    return np.ascontiguousarray(columns.reshape(width, height).T)
