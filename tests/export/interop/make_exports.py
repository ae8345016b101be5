"""Every form of export of one real run, for the consumers beside this file to read: ``make_exports.py RUN FOLDER``."""

import shutil
import sys
from pathlib import Path

from export.cli import main
from labeler import storage
from labeler.runs import iterate_rows, read_run

FILTERS = ["--max-masks-per-image", "20", "--max-area-ratio", "0.95"]


def make_exports(run: str, folder: Path) -> None:
    """COCO three ways, and each folder format; the pictures in ``photos/``."""
    shutil.rmtree(folder, ignore_errors=True)
    forms = {
        "rle": ["coco", "coco_rle.json"],
        "uncompressed": ["coco", "coco_uncompressed.json", "--segmentation", "rle-uncompressed"],
        "polygon": ["coco", "coco_polygon.json", "--segmentation", "polygon"],
        "yolo": ["yolo", "yolo", "--val-fraction", "0.3"],
        "sa1b": ["sa1b", "sa1b", "--images", "copy"],  # Datumaro follows no link that leads out of its folder.
        "labelme": ["labelme", "labelme"],
        "masks": ["masks", "masks"],
    }
    for command, target, *options in forms.values():
        if main([command, run, str(folder / target), *options, *FILTERS]) != 0:
            sys.exit(f"{command} failed")
    for row in iterate_rows(read_run(run), table="images", columns=["uri", "file_name", "status"]):
        if row["status"] == "ok":
            photo = folder / "photos" / storage.decode_name(row["file_name"])
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(storage.read_bytes(row["uri"]))


if __name__ == "__main__":
    make_exports(sys.argv[1], Path(sys.argv[2]))
