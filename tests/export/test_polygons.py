"""Polygons, judged by pycocotools' filling of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from export import polygons
from export.polygons import counts_to_polygons
from labeler import rle


def to_counts(mask: np.ndarray) -> str:
    return rle.runs_to_counts(rle.mask_to_runs(mask), image_hw=mask.shape)


def fill(rings: Sequence[np.ndarray], image_hw: tuple[int, int]) -> np.ndarray:
    rles = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *image_hw)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def draw(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("mask", "num_pieces"),
    [
        (draw("#"), 1),
        (draw("...", ".#.", "..."), 1),
        (draw("##", "##"), 1),
        (draw("#.#"), 2),
        (draw("#.", ".#"), 1),  # Pieces that touch at a corner are one.
        (draw("###", "#.#", "###"), 1),
        (draw("#####", "#.#.#", "#####", "#...#", "#####"), 1),
        (draw("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"), 2),
        (draw("##########"), 1),
        (np.ones((40, 1), bool), 1),
        (np.indices((9, 9)).sum(axis=0) % 2 == 0, 1),  # A chess board.
    ],
)
def test_pieces_and_holes_come_back_exactly(mask: np.ndarray, num_pieces: int, joined: bool) -> None:
    """With no loss allowed, the union of the polygons is the mask: pieces apart or as one ring, holes cut out."""
    found = counts_to_polygons(to_counts(mask), image_hw=mask.shape, max_loss=0.0, joined=joined)
    assert found is not None
    np.testing.assert_array_equal(fill(found.rings, mask.shape), mask)
    assert len(found.rings) == (1 if joined else num_pieces)
    assert found.loss == 0
    assert all(ring.shape[0] >= 3 for ring in found.rings)


def test_a_slit_goes_to_the_nearest_corner() -> None:
    """From the hole's left side; a longer one would cross what a reader draws with a line of its own."""
    mask = np.ones((40, 60), bool)
    mask[30:34, 50:55] = False
    found = counts_to_polygons(to_counts(mask), image_hw=mask.shape, max_loss=0.0)
    assert found is not None
    (ring,) = found.rings
    corners = {tuple(corner) for corner in ring.tolist()}
    assert {(0, 0), (0, 40), (60, 0), (60, 40), (50, 30), (50, 34)} <= corners
    steps = [(tuple(a), tuple(b)) for a, b in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True)]
    slits = [step for step in steps if (step[::-1] in steps)]
    assert slits
    assert all({(60, 40)} & set(slit) for slit in slits)  # Of the picture's corners the nearest one.


@pytest.mark.parametrize("joined", [False, True])
def test_noise_comes_back_exactly(joined: bool, random_masks: Callable[..., Any]) -> None:
    """Hundreds of holes and pieces, at every edge of the image."""
    rng = np.random.default_rng(5)
    masks = [rng.random((int(rng.integers(1, 50)), int(rng.integers(1, 50)))) < rng.random() for _ in range(100)]
    for mask in [mask for mask in masks if mask.any()] + random_masks((60, 80), 20):
        found = counts_to_polygons(to_counts(mask), image_hw=mask.shape, max_loss=0.0, joined=joined)
        assert found is not None
        np.testing.assert_array_equal(fill(found.rings, mask.shape), mask)


def test_loss_is_measured_and_bounded() -> None:
    """More loss allowed, fewer corners; the loss said is the loss measured, and never more than was allowed."""
    y, x = np.mgrid[:120, :160]
    disc = (x - 70) ** 2 + (y - 60) ** 2 < 45**2
    disc &= (x - 60) ** 2 + (y - 50) ** 2 > 12**2
    corners = []
    for max_loss in (0.0, 0.005, 0.02, 0.1):
        found = counts_to_polygons(to_counts(disc), image_hw=disc.shape, max_loss=max_loss)
        assert found is not None
        filled = fill(found.rings, disc.shape)
        assert found.loss == pytest.approx(1 - (filled & disc).sum() / (filled | disc).sum())
        assert found.loss <= max_loss
        corners.append(sum(len(ring) for ring in found.rings))
    assert corners[0] >= corners[1] > corners[2] >= corners[3]
    assert corners[2] < corners[0] / 4


def test_a_mask_no_polygon_carries_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """None, where all that may be tried loses too much, or vanishes."""
    monkeypatch.setattr(polygons, "TOLERANCES_PX", (3.0,))
    assert counts_to_polygons(to_counts(draw("#.", ".#", "#.")), image_hw=(3, 2), max_loss=0.01) is None


def test_corners_lie_on_pixel_edges() -> None:
    """A pixel at column 3, row 1 spans x 3 to 4 and y 1 to 2."""
    mask = np.zeros((4, 6), bool)
    mask[1, 3] = True
    found = counts_to_polygons(to_counts(mask), image_hw=(4, 6), max_loss=0.0)
    assert found is not None
    assert sorted(map(tuple, found.rings[0].tolist())) == [(3, 1), (3, 2), (4, 1), (4, 2)]
