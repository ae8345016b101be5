"""Prompts of scenes."""

import numpy as np
import pytest

from training.prompts import MEASURED, TRAINED, ExampleStream, make_example
from training.scenes import PhotoBank, Scene, draw_scene


@pytest.mark.parametrize("seed", range(8))
def test_a_click_lies_in_all_that_it_may_mean(seed: int, bank: PhotoBank) -> None:
    """Each click is inside the picture and inside every region it names, the one it was drawn for among them."""
    rng = np.random.default_rng(seed)
    example = make_example(draw_scene(rng, size=96, bank=bank), rng, size=96, num_clicks=6, num_boxes=2, asking=MEASURED)
    for (x, y), ids, pick in zip(example.points_xy[:6, 0].astype(int), example.ids, example.pick, strict=False):
        assert ids[pick] > 0
        assert all(ids[level] in (0, example.levels[level, y, x]) for level in range(3))
        assert y < example.size_hw[0]
        assert x < example.size_hw[1]
    assert example.labels[:6].tolist() == [[1, -1]] * 6


def test_a_box_without_shake_is_the_regions_own() -> None:
    """Corners of a box prompt are the first and last pixels of its region."""
    levels = np.zeros((3, 40, 60), np.uint16)
    levels[:, 10:20, 30:50] = 7
    scene = Scene(pixels=np.zeros((40, 60, 3), np.uint8), levels=levels, last_found=0)
    example = make_example(scene, np.random.default_rng(0), size=64, num_clicks=0, num_boxes=1, asking=MEASURED, box_shake=0.0)
    assert example.points_xy[0].tolist() == [[30.0, 10.0], [49.0, 19.0]]
    assert example.labels.tolist() == [[2, 3]]
    assert sorted(example.ids[0].tolist()) == [0, 0, 7]


def test_padding_is_black_and_holds_nothing() -> None:
    """Beyond the picture there are no pixels and no regions."""
    scene = Scene(pixels=np.full((40, 60, 3), 9, np.uint8), levels=np.full((3, 40, 60), 1, np.uint16), last_found=0)
    scene.levels[:, :9] = 2
    example = make_example(scene, np.random.default_rng(0), size=64, num_clicks=1, num_boxes=0, asking=MEASURED)
    assert example.pixels[:40, :60].min() == 9
    assert example.pixels[40:].max() == example.pixels[:, 60:].max() == 0
    assert example.levels[:, 40:].max() == example.levels[:, :, 60:].max() == 0


def test_a_scene_without_anything_to_ask_for_is_refused() -> None:
    """Sooner an error than an example without prompts."""
    scene = Scene(pixels=np.zeros((64, 64, 3), np.uint8), levels=np.zeros((3, 64, 64), np.uint16), last_found=0)
    with pytest.raises(ValueError, match="large enough"):
        make_example(scene, np.random.default_rng(0), size=64, num_clicks=1, num_boxes=0, asking=MEASURED)


def test_training_asks_for_smaller_things_than_are_measured() -> None:
    """A speck of 36 of 256 x 256 pixels beside a wall: asked for often in training, never when scenes are measured."""
    levels = np.ones((3, 256, 256), np.uint16)
    levels[:, :, 128:], levels[:, 100:106, 50:56] = 3, 2
    scene, rng = Scene(pixels=np.zeros((256, 256, 3), np.uint8), levels=levels, last_found=0), np.random.default_rng(0)
    picked = {
        asking: make_example(scene, rng, size=256, num_clicks=300, num_boxes=0, asking=asking).ids.max(axis=1)
        for asking in (TRAINED, MEASURED)
    }
    assert np.count_nonzero(picked[TRAINED] == 2) > 10
    assert set(picked[MEASURED]) == {1, 3}


def test_a_mirrored_scene_keeps_its_regions_under_its_clicks(bank: PhotoBank) -> None:
    """Scenes that are asked again come mirrored and turned, picture and regions alike."""
    stream = iter(ExampleStream(bank, size=64, num_clicks=4, num_boxes=0, seed=1, reuse=5))
    for _ in range(20):
        example = next(stream)
        height, width = example["size_hw"]
        x, y = example["points_xy"][0, 0].astype(int)
        assert x < width
        assert y < height
        pick = example["pick"][0]
        assert example["levels"][pick, y, x] == example["ids"][0, pick]
