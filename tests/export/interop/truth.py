"""What is in the exports, by pycocotools alone: for the checks beside this file, each in its consumer's environment."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

MAX_POLYGON_LOSS = 0.02


class Truth:
    """The masks of ``coco_rle.json``: by file name, in order."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).resolve()
        coco = json.loads((self.folder / "coco_rle.json").read_text())
        self.images: dict[int, dict[str, Any]] = {image["id"]: image for image in coco["images"]}
        self.masks: dict[str, list[dict[str, Any]]] = {image["file_name"]: [] for image in coco["images"]}
        for annotation in coco["annotations"]:
            self.masks[self.images[annotation["image_id"]]["file_name"]].append(annotation)
        self.num_masks = len(coco["annotations"])

    def decode(self, name: str) -> list[np.ndarray]:
        """(H, W) bool each."""
        return [coco_mask.decode(a["segmentation"]).astype(bool) for a in self.masks[name]]

    def compare(self, name: str, found: Iterable[np.ndarray]) -> float:
        """The lowest IoU of the masks a consumer gives for an image, in order, with the true ones."""
        pairs = zip(self.decode(name), found, strict=True)
        return min((float((a & b).sum() / max(1, (a | b).sum())) for a, b in pairs), default=1.0)


def say(form: str, consumer: str, words: str) -> None:
    """One cell of the table."""
    print(f"OK  {form:18} {consumer:26} {words}", flush=True)
