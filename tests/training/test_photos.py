"""Regions of photographs."""

import numpy as np

from training.photos import Photo, list_cutouts
from training.scenes import PhotoBank


def test_walls_of_one_colour_are_found_at_every_level(bank: PhotoBank) -> None:
    """Regions that every setting of the segmentation agrees on are kept, one id a wall."""
    levels = bank.photos[0].levels
    assert levels.shape == (3, 96, 120)
    corners = levels[:, [10, 10, 85, 85], [10, 110, 10, 110]]
    assert (corners > 0).all()
    assert all(len(set(level)) == 4 for level in corners)


def test_cutouts_lie_in_their_box_and_are_no_backgrounds() -> None:
    """A cut-out is compact and covers no large part of its photograph."""
    levels = np.ones((3, 100, 100), dtype=np.uint16)
    levels[:, 10:50, 20:70] = 2
    photo = Photo(name="card", sha256="", pixels=np.zeros((100, 100, 3), np.uint8), levels=levels)
    cutouts = list_cutouts([photo])
    assert {cutout.region for cutout in cutouts} == {2}
    assert {cutout.box_xyxy for cutout in cutouts} == {(20, 10, 70, 50)}
