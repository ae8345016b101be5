"""FiftyOne's COCO reader, as far as it goes without its MongoDB: ``check_fiftyone.py FOLDER``."""

import os
import sys

os.environ["FIFTYONE_DO_NOT_TRACK"] = "1"

import fiftyone
import fiftyone.utils.coco as coco
import numpy as np
from truth import Truth, say

truth = Truth(sys.argv[1])
for form in ("rle", "uncompressed", "polygon"):
    path = str(truth.folder / f"coco_{form}.json")
    _info, classes, _supercategories, images, annotations, *_ = coco.load_coco_detection_annotations(path, extra_attrs=True)
    worst, num_masks = 1.0, 0
    for image_id, objects in annotations.items():
        image = images[image_id]
        size = image["width"], image["height"]
        found = []
        for one in objects:
            detection = one.to_detection(size, classes_map=classes, load_segmentation=True)
            assert detection.label == "object"
            assert "predicted_iou" in detection.attributes or detection.get_attribute_value("predicted_iou") is not None
            x, y = (round(share * side) for share, side in zip(detection.bounding_box[:2], size, strict=True))
            mask = np.zeros((size[1], size[0]), bool)
            mask[y : y + detection.mask.shape[0], x : x + detection.mask.shape[1]] = detection.mask
            found.append(mask)
        num_masks += len(found)
        worst = min(worst, truth.compare(image["file_name"], found))
    assert num_masks == truth.num_masks
    assert worst == 1.0 if form != "polygon" else worst > 0.9, (form, worst)
    say(f"coco {form}", f"fiftyone {fiftyone.__version__}", f"{num_masks} masks, lowest IoU {worst:.3f}")
