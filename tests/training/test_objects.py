"""Pictures of single things, and scenes with them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.objects import load_objects
from training.scenes import PhotoBank, _draw_thing, draw_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture: a red roof on a blue wall, with nothing around it; and a note that is no picture."""
    rgba = np.zeros((120, 100, 4), dtype=np.uint8)
    rgba[20:60, 10:90] = (200, 30, 30, 255)
    rgba[60:110, 10:90] = (30, 30, 200, 255)
    rgba[15:20, 10:90] = (200, 30, 30, 60)  # hardly there
    path = tmp_path_factory.mktemp("objects")
    Image.fromarray(rgba).save(path / "house.png")
    (path / "note.txt").write_text("no picture")
    return path


def test_a_thing_is_what_is_opaque(folder: Path) -> None:
    """The picture is cut to what is opaque; its parts are its colours."""
    (house,) = load_objects(folder)
    assert house.mask.shape == (90, 80)
    assert house.mask.all()
    roof, wall = house.parts[10, 40], house.parts[70, 40]
    assert 0 < roof != wall > 0
    assert (house.parts[5:30, 5:75] == roof).all()
    assert (house.parts[50:85, 5:75] == wall).all()


def test_without_a_folder_there_are_no_things() -> None:
    """Scenes can be drawn without."""
    assert load_objects(None) == ()


def test_a_thing_is_whole_in_a_scene_whatever_its_colours(folder: Path, bank: PhotoBank) -> None:
    """Roof and wall are parts of one thing."""
    stocked = PhotoBank(photos=bank.photos, cutouts=(), objects=load_objects(folder), photo_chance=0.0)
    whole = set()
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed), size=128, bank=stocked)
        parts, things = scene.levels[0], scene.levels[1]
        for thing in np.unique(things):
            mask = things == thing
            if len(np.unique(parts[mask])) >= 2 and thing not in parts[mask]:  # nothing of it but its parts
                whole.add((seed, int(thing)))
    assert len(whole) > 10


def test_the_grain_of_a_thing_is_on_its_parts_too(folder: Path, bank: PhotoBank) -> None:
    """A part shows what the whole shows there: laying it on must not wipe anything out."""
    stocked = PhotoBank(photos=bank.photos, cutouts=(), objects=load_objects(folder), photo_chance=0.0)
    grained = 0
    for seed in range(20):
        mask, fill, parts = _draw_thing(np.random.default_rng(seed), extent_px=60.0, bank=stocked)
        for part, picture, top, left in parts:
            window = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
            assert mask[window][part > 0].all()
            assert np.array_equal(picture, fill[window])
            grained += picture[part > 0].std() > 2.0
    assert grained > 0
