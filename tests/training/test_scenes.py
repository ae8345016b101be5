"""Drawn scenes."""

from dataclasses import replace

import numpy as np
import pytest

from training.scenes import Canvas, PhotoBank, draw_scene
from training.shapes import draw_outline


def test_a_scene_is_decided_by_its_seed(bank: PhotoBank) -> None:
    """Equal seeds draw equal scenes, other seeds others."""
    first, again, other = (draw_scene(np.random.default_rng(seed), size=96, bank=bank) for seed in (5, 5, 6))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.levels, again.levels)
    assert first.pixels.shape != other.pixels.shape or not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("seed", range(12))
def test_scenes_fit_their_size(seed: int, bank: PhotoBank) -> None:
    """The longer side is the size asked for, and the three levels cover the picture."""
    scene = draw_scene(np.random.default_rng(seed), size=96, bank=bank)
    height, width = scene.pixels.shape[:2]
    assert max(height, width) == 96
    assert scene.pixels.dtype == np.uint8
    assert scene.levels.shape == (3, height, width)
    assert len(np.unique(scene.levels)) > 1


@pytest.mark.parametrize("seed", range(40))
def test_outlines_touch_all_four_sides_of_their_patch(seed: int) -> None:
    """An outline's patch is its bounding box, near the extent asked for."""
    mask = draw_outline(np.random.default_rng(seed), extent_px=30.0)
    assert set(np.unique(mask)) <= {0, 1}
    assert all(side.any() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert 3 <= max(mask.shape) <= 70


def test_what_is_painted_later_hides_what_lies_below() -> None:
    """The later thing owns the pixels of an overlap at every level; a patch may hang over the edge."""
    canvas = Canvas(np.zeros((20, 20, 3), np.float32), np.ones((3, 20, 20), np.uint16))
    patch, red = np.ones((10, 10), np.uint8), np.full((10, 10, 3), [255.0, 0.0, 0.0], np.float32)
    canvas.paint(patch, red, top=2, left=2, ids=(2, 2, 2))
    canvas.paint(patch, red, top=8, left=-4, ids=(3, 4, 5))
    assert canvas.levels[:, 10, 4].tolist() == [3, 4, 5]
    assert canvas.levels[:, 4, 4].tolist() == [2, 2, 2]
    assert canvas.pixels[9, 0].tolist() == [255.0, 0.0, 0.0]


@pytest.mark.parametrize(("photo_chance", "on_photos"), [(0.0, 0), (1.0, 20)])
def test_as_many_scenes_lie_on_photographs_as_asked_for(photo_chance: float, on_photos: int, bank: PhotoBank) -> None:
    """None or all of them: regions that were found in a photograph are those up to ``last_found``."""
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    scenes = [draw_scene(rng, size=96, bank=replace(bank, photo_chance=photo_chance)) for rng in rngs]
    assert sum(scene.last_found > 0 for scene in scenes) == on_photos
