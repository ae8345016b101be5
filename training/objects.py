"""Pictures of single things on nothing (an alpha channel), to lay into scenes: whole, whatever colours they are made of.

Must not know scenes, prompts or models.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import felzenszwalb

logger = logging.getLogger(__name__)

LONGEST_SIDE_PX = 160
PART_SCALE, MIN_PART_PX = 200.0, 60


@dataclass(frozen=True)
class Object:
    """A thing's picture (h, w, 3) uint8 and its mask (h, w) uint8, 1 where it is."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]

    @functools.cached_property
    def parts(self) -> NDArray[np.uint16]:
        """Ids (h, w) of its parts from 1, as felzenszwalb's segmentation finds them; 0 outside, or if there is but one."""
        labels = felzenszwalb(self.pixels, scale=PART_SCALE, sigma=0.6, min_size=MIN_PART_PX)
        _, ids = np.unique(np.where(self.mask > 0, labels + 1, 0), return_inverse=True)
        ids = ids.reshape(self.mask.shape) + (1 if self.mask.all() else 0)
        return np.asarray(ids if ids.max() > 1 else 0 * ids, dtype=np.uint16)


def load_objects(folder: Path | None) -> Sequence[Object]:
    """Every picture with an alpha channel in a folder; none without one."""
    if folder is None:
        return ()
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".webp"})
    objects = [_read_object(path) for path in files]
    logger.info("%d things from %s", len(objects), folder)
    return objects


def _read_object(path: Path) -> Object:
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
    image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    rgba = np.asarray(image)
    return Object(pixels=np.ascontiguousarray(rgba[:, :, :3]), mask=(rgba[:, :, 3] > 127).astype(np.uint8))
