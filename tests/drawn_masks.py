"""Masks that tests draw."""

import numpy as np


def draw_box(hw: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    """(H, W) bool: a rectangle, its end left out."""
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask
