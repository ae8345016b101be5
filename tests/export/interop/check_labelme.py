"""labelme's own reader, which checks its schema and the picture's size: ``check_labelme.py FOLDER``."""

import sys
from importlib.metadata import version

import numpy as np
from labelme._label_file import LabelFile
from labelme.utils import shape_to_mask
from truth import Truth, say

truth = Truth(sys.argv[1])
names = {name.rpartition(".")[0]: name for name in truth.masks}
ious, num_masks = [], 0
for stem, name in names.items():
    image = next(image for image in truth.images.values() if image["file_name"] == name)
    file = LabelFile(str(truth.folder / "labelme" / f"{stem}.json"))  # Opens the picture beside it, too.
    assert file.imageData
    pieces: dict[int, np.ndarray] = {}
    for shape in file.shapes:
        mask = shape_to_mask((image["height"], image["width"]), shape["points"], shape_type=shape["shape_type"])
        pieces[shape["group_id"]] = pieces.get(shape["group_id"], np.zeros_like(mask)) | mask
    true = truth.decode(name)
    assert len(pieces) == len(true), name
    num_masks += len(pieces)
    ious += [(a & b).sum() / (a | b).sum() for a, b in zip(true, (pieces[i] for i in sorted(pieces)), strict=True)]
assert num_masks == truth.num_masks
assert np.median(ious) > 0.93, np.median(ious)
say("labelme", f"labelme {version('labelme')}", f"{num_masks} masks, median IoU {np.median(ious):.3f}, lowest {min(ious):.3f}")
