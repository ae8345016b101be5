"""The classical method a trained model is measured against: felzenszwalb's segments at many scales, pooled.

Must not know models.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_masks
from skimage.segmentation import felzenszwalb

SCALES = (50, 100, 200, 400, 800, 1600)
MIN_SIZE = 100


def segment_pooled(pixels: NDArray[np.uint8], *, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All segments of (H, W, 3) uint8 at all scales as COCO RLE dicts: the largest first, and in random order."""
    rles: list[dict[str, Any]] = []
    areas: list[int] = []
    for scale in SCALES:
        labels = felzenszwalb(pixels, scale=scale, min_size=MIN_SIZE)
        rles += [coco_masks.encode(np.asfortranarray(labels == i, dtype=np.uint8)) for i in range(int(labels.max()) + 1)]
        areas += np.bincount(labels.ravel()).tolist()
    order = np.argsort(-np.array(areas), kind="stable")
    return [rles[i] for i in order], [rles[i] for i in np.random.default_rng(seed).permutation(len(rles))]
