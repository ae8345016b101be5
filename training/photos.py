"""Photographs to train on: regions that a classical segmentation finds again at several scales, and those that people drew.

Must not know scenes, prompts or models.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_masks
from scipy.ndimage import find_objects
from skimage import data as bundled
from skimage.segmentation import felzenszwalb

from training.coco import read_labeled_photos

logger = logging.getLogger(__name__)

LONGEST_SIDE_PX = 640
# Those in scikit-image's wheel, without the ones that the demo labels.
BUNDLED_NAMES = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coins",
    "grass",
    "gravel",
    "immunohistochemistry",
    "retina",
    "rocket",
)
# Per level: the run whose regions are kept, then the runs that must find them again. (scale, sigma)
LEVEL_RUNS = (
    ((80.0, 0.8), ((50.0, 0.5), (130.0, 0.8), (130.0, 1.2))),
    ((300.0, 0.8), ((200.0, 0.8), (450.0, 0.8), (300.0, 1.4))),
    ((1000.0, 0.8), ((650.0, 0.8), (1600.0, 0.8), (1000.0, 1.4))),
)
MEASURING = ("kodak_", "skimage_")
"""How the names of the photographs begin that scenes to measure with are drawn of: what was decided before any training."""
DRAWN_WEIGHT = 2.0  # of a photograph with people's regions, in the mean; of any other 1
MIN_REGION_PX = 100
SAME_REGION_IOU = 0.7

Pixels = NDArray[np.uint8]
Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class Photo:
    """One photograph: pixels (H, W, 3) uint8; levels (3, H, W) of region ids, fine to coarse, 0 where none is trusted.

    num_drawn: how many of its regions people drew.
    """

    name: str
    sha256: str
    pixels: Pixels
    levels: Ids
    num_drawn: int = 0


def load_photos(folder: Path | None = None, *, cache: Path | None = None, begins: Sequence[str] = ("",)) -> list[Photo]:
    """The photographs of a folder, or scikit-image's own without one. Regions are found once and kept in ``cache``.

    Args:
        begins: of a folder only those whose names begin so.

    Raises:
        FileNotFoundError: there is none of them.
    """
    return [_find_levels(name, pixels, cache) for name, pixels in _read_all(folder, begins=begins)]


def load_drawn_photos(folder: Path, *, cache: Path | None = None) -> list[Photo]:
    """The photographs of ``instances.json`` (COCO, RLE) and ``images/`` with the regions that people drew in them.

    levels: people's alone at the two finer ones; people's and around them a coarse classical segmentation's at the last.
    Inside what people drew nothing else is right.
    """
    photos = []
    for labeled in read_labeled_photos(folder):
        photo = _find_levels(labeled.name, _shrink(labeled.pixels), cache)
        levels = lay_over(photo.levels, [coco_masks.decode(region) for region in labeled.regions])
        photos.append(replace(photo, levels=levels, num_drawn=len(labeled.regions)))
    logger.info("%d photos with regions that people drew", len(photos))
    return photos


def weigh_photos(photos: Sequence[Photo]) -> NDArray[np.float64]:
    """How often each is to be taken: those with people's regions in the mean twice as often, and by how many these are."""
    num_drawn = np.array([photo.num_drawn for photo in photos], dtype=np.float64)
    usual = num_drawn.sum() / max(1, np.count_nonzero(num_drawn))
    weights = np.where(num_drawn > 0, DRAWN_WEIGHT * num_drawn / max(1.0, usual), 1.0)
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


def _find_levels(name: str, pixels: Pixels, cache: Path | None) -> Photo:
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    levels = _cached_levels(pixels, sha256, cache)
    logger.info("photo %s: %d regions", name, sum(len(np.unique(level)) - 1 for level in levels))
    return Photo(name=name, sha256=sha256, pixels=pixels, levels=levels)


def lay_over(found: Ids, masks: Sequence[NDArray[np.uint8]]) -> Ids:
    """Levels (3, H, W) from those of a segmentation and people's masks (h, w) of any size; small ones lie above large ones."""
    height, width = found.shape[1:]
    drawn = np.zeros((height, width), dtype=np.uint16)
    first = int(found.max()) + 1
    for index, mask in enumerate(sorted(masks, key=lambda mask: -float(mask.mean()))):
        drawn[cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) > 0] = first + index
    return np.stack([drawn, drawn, np.where(drawn > 0, drawn, found[2])])


def _read_all(folder: Path | None, *, begins: Sequence[str]) -> list[tuple[str, Pixels]]:
    if folder is None:
        return [(name, _shrink(np.asarray(getattr(bundled, name)()))) for name in BUNDLED_NAMES]
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    files = [path for path in files if path.name.startswith(tuple(begins))]
    if not files:
        raise FileNotFoundError(f"{folder} has no photographs, or none called {' or '.join(begins)}...")
    return [(path.name, _shrink(np.asarray(Image.open(path).convert("RGB")))) for path in files]


def _shrink(pixels: NDArray[np.uint8]) -> Pixels:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    scale = min(1.0, LONGEST_SIDE_PX / max(pixels.shape[:2]))
    size_wh = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.ascontiguousarray(cv2.resize(pixels[:, :, :3], size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _cached_levels(pixels: Pixels, sha256: str, cache: Path | None) -> Ids:
    path = cache / f"regions-{sha256[:16]}.npz" if cache else None
    if path is not None and path.exists():
        with np.load(path) as stored:
            return np.asarray(stored["levels"], dtype=np.uint16)
    levels = find_regions(pixels)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, levels=levels)
    return levels


def find_regions(pixels: Pixels) -> Ids:
    """Regions (3, H, W) uint16 of a photograph, fine to coarse; 0 where the segmentation changes with its settings."""
    levels = []
    for (scale, sigma), witnesses in LEVEL_RUNS:
        labels = _segment(pixels, scale, sigma)
        seen_again = np.zeros(labels.max() + 1, dtype=bool)
        for witness in witnesses:
            seen_again |= _best_iou(labels, _segment(pixels, *witness)) >= SAME_REGION_IOU
        kept = np.where(seen_again, np.arange(1, len(seen_again) + 1), 0)
        levels.append(kept[labels])
    return np.stack(levels).astype(np.uint16)


def _segment(pixels: Pixels, scale: float, sigma: float) -> NDArray[np.int64]:
    return np.asarray(felzenszwalb(pixels, scale=scale, sigma=sigma, min_size=MIN_REGION_PX), dtype=np.int64)


def _best_iou(labels: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each region of ``labels`` the IoU with the region of ``others`` that fits it best."""
    num_others = int(others.max()) + 1
    pairs, overlaps = np.unique(labels.ravel() * num_others + others.ravel(), return_counts=True)
    first, second = pairs // num_others, pairs % num_others
    union = np.bincount(labels.ravel())[first] + np.bincount(others.ravel())[second] - overlaps
    best = np.zeros(int(labels.max()) + 1)
    np.maximum.at(best, first, overlaps / union)
    return best


@dataclass(frozen=True)
class Cutout:
    """Where a region lies: photo index, level, id, box (x0, y0, x1, y1; x1 and y1 outside)."""

    photo: int
    level: int
    region: int
    box_xyxy: tuple[int, int, int, int]


def list_cutouts(photos: Sequence[Photo], *, min_area_px: int = 900, max_area_ratio: float = 0.4) -> list[Cutout]:
    """Trusted regions of the two coarser levels that are compact enough to pass for an object elsewhere."""
    found = []
    for index, photo in enumerate(photos):
        for level in (1, 2):
            ids = photo.levels[level]
            for region, window in enumerate(find_objects(ids), start=1):
                if window is None:
                    continue
                rows, columns = window
                area, box_area = int((ids[window] == region).sum()), (rows.stop - rows.start) * (columns.stop - columns.start)
                if area >= min_area_px and area > 0.4 * box_area and area < max_area_ratio * ids.size:
                    box = (columns.start, rows.start, columns.stop, rows.stop)
                    found.append(Cutout(photo=index, level=level, region=region, box_xyxy=box))
    return found
