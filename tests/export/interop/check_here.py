"""The light consumers, on the same real exports: pycocotools, COCOeval, torchvision, Pillow: ``check_here.py FOLDER``."""

import sys
from importlib.metadata import version

import numpy as np
import torchvision
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from truth import MAX_POLYGON_LOSS, Truth, say

truth = Truth(sys.argv[1])
for form in ("rle", "uncompressed", "polygon"):
    coco = COCO(truth.folder / f"coco_{form}.json")
    worst = min(
        truth.compare(image["file_name"], [coco.annToMask(a).astype(bool) for a in coco.imgToAnns[image["id"]]])
        for image in coco.imgs.values()
    )
    assert worst >= (1 - MAX_POLYGON_LOSS - 1e-6 if form == "polygon" else 1), worst
    say(f"coco {form}", f"pycocotools {version('pycocotools')}", f"{len(coco.anns)} masks, lowest IoU {worst:.3f}")
    dataset = torchvision.datasets.CocoDetection(truth.folder / "photos", truth.folder / f"coco_{form}.json")
    assert sum(len(annotations) for _photo, annotations in dataset) == truth.num_masks
    say(f"coco {form}", f"torchvision {torchvision.__version__}", f"{len(dataset)} pictures with their annotations")
coco = COCO(truth.folder / "coco_rle.json")
judge = COCOeval(coco, coco.loadRes([{**a, "score": a["predicted_iou"]} for a in coco.dataset["annotations"]]), "segm")
judge.evaluate()
judge.accumulate()
judge.summarize()
assert judge.stats[0] > 0.999, judge.stats[0]
say("coco rle", "COCOeval against itself", f"AP {judge.stats[0]:.4f}")
total = 0
for name, masks in truth.masks.items():
    ids = np.asarray(Image.open(truth.folder / "masks" / f"{name.rpartition('.')[0]}.png"))
    union = np.any(truth.decode(name), axis=0) if masks else np.zeros(ids.shape, bool)
    assert np.array_equal(ids > 0, union), name
    total += len(np.unique(ids)) - 1
say("masks", f"pillow {version('pillow')}", f"{total} of {truth.num_masks} masks in sight, the rest below smaller ones")
