"""A photograph to draw with, small enough to segment in no time."""

import cv2
import numpy as np
import pytest

from training.photos import Photo, find_regions
from training.scenes import PhotoBank


@pytest.fixture(scope="session")
def bank() -> PhotoBank:
    """One made-up photograph: four walls of different colour, some grain."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 255, (2, 2, 3), dtype=np.uint8), (120, 96), interpolation=cv2.INTER_NEAREST)
    pixels = np.clip(pixels + rng.normal(0.0, 3.0, pixels.shape), 0, 255).astype(np.uint8)
    return PhotoBank.of([Photo(name="walls", sha256="", pixels=pixels, levels=find_regions(pixels))])
