"""supervision's own loaders: ``check_supervision.py FOLDER``."""

import sys

import supervision as sv
from truth import Truth, say

truth = Truth(sys.argv[1])
photos = str(truth.folder / "photos")
for form in ("rle", "uncompressed", "polygon"):
    path = str(truth.folder / f"coco_{form}.json")
    dataset = sv.DetectionDataset.from_coco(images_directory_path=photos, annotations_path=path, force_masks=True)
    worst = 1.0
    for photo, _pixels, detections in dataset:
        name = photo.removeprefix(photos + "/")
        if truth.masks[name]:
            worst = min(worst, truth.compare(name, detections.mask))
    assert len(dataset) == len(truth.images)
    # It fills polygons with OpenCV, border line and all, so small masks grow; run lengths are exact.
    assert worst == 1.0 if form != "polygon" else worst > 0.7, (form, worst)
    say(f"coco {form}", f"supervision {sv.__version__}", f"{truth.num_masks} masks, lowest IoU {worst:.3f}")
total = 0
for split in ("train", "val"):
    dataset = sv.DetectionDataset.from_yolo(
        images_directory_path=str(truth.folder / "yolo" / "images" / split),
        annotations_directory_path=str(truth.folder / "yolo" / "labels" / split),
        data_yaml_path=str(truth.folder / "yolo" / "data.yaml"),
        force_masks=True,
    )
    assert dataset.classes == ["object"]
    total += sum(len(detections) for detections in dataset.annotations.values())
assert total == truth.num_masks, total
say("yolo", f"supervision {sv.__version__}", f"{total} masks")
