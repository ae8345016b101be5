"""Pictures are judged by eye; what a machine can judge of them stands here."""

from io import BytesIO

import numpy as np
import pytest
from drawn_masks import draw_box
from PIL import Image as PillowImage

from labeler import draw, rle


def box_mask(hw: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    return rle.mask_to_runs(draw_box(hw, y0, x0, y1, x1))


def test_only_masks_are_painted() -> None:
    """The photo stays as it is where no mask is, and the array that was given is not touched."""
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    before = photo.copy()
    painted = draw.paint_masks(photo, [box_mask((60, 80), 10, 20, 40, 50)])
    inside = np.zeros((60, 80), bool)
    inside[10:40, 20:50] = True
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(painted[~inside], photo[~inside])
    assert (painted[inside] != photo[inside]).any(axis=1).mean() > 0.95
    np.testing.assert_array_equal(draw.paint_masks(photo, []), photo)


def test_a_mask_keeps_its_color_whatever_the_others_are() -> None:
    """Mask 1 looks the same alone (after an empty mask 0) as beside others, and neighbours in number differ clearly."""
    photo = np.full((60, 80, 3), 128, np.uint8)
    hw = (60, 80)
    left, right, nothing = box_mask(hw, 5, 5, 50, 30), box_mask(hw, 5, 40, 50, 70), box_mask(hw, 0, 0, 0, 0)
    both, alone = draw.paint_masks(photo, [left, right]), draw.paint_masks(photo, [nothing, right])
    np.testing.assert_array_equal(both[:, 35:], alone[:, 35:])
    colors = np.array([draw.mask_color(i) for i in range(200)])
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 150


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_small_masks_lie_on_top_of_large_ones(order: tuple[int, int]) -> None:
    """A mask inside another one is in sight, whichever comes first, and its tint does not mix with the other's."""
    photo = np.full((100, 100, 3), 90, np.uint8)
    masks = [box_mask((100, 100), 0, 0, 100, 100), box_mask((100, 100), 40, 40, 60, 60)]
    painted = draw.paint_masks(photo, [masks[i] for i in order])
    expected = 90 * (1 - draw.FILL_ALPHA) + np.array(draw.mask_color(order.index(1))) * draw.FILL_ALPHA
    np.testing.assert_allclose(painted[50, 50], expected, atol=1)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_outlines_can_be_seen_on_any_photo(level: int) -> None:
    """Between a mask's tint and the photo there is a line far brighter or far darker than the photo."""
    photo = np.full((100, 100, 3), level, np.uint8)
    for index in range(12):
        masks = [box_mask((100, 100), 0, 0, 0, 0)] * index + [box_mask((100, 100), 20, 20, 80, 80)]
        edge = draw.paint_masks(photo, masks)[50, 20:23].astype(int)
        assert np.abs(edge - level).mean(axis=1).max() > 60


def test_masks_fit_a_smaller_copy_of_the_photo() -> None:
    """On a photo shrunk to a quarter, masks given in the photo's own frame lie where they belong."""
    photo = np.full((100, 150, 3), 77, np.uint8)
    painted = draw.paint_masks(photo, [box_mask((400, 600), 80, 120, 200, 360)], image_hw=(400, 600))
    rows, columns = np.nonzero((painted != photo).any(axis=2))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (20, 50, 30, 90)


def test_the_smallest_masks_show() -> None:
    """A mask of one pixel is a light dot, not a dark one; an empty mask is nothing."""
    photo = np.zeros((50, 50, 3), np.uint8)
    painted = draw.paint_masks(photo, [box_mask((50, 50), 10, 10, 11, 11), box_mask((50, 50), 0, 0, 0, 0)])
    assert painted[10, 10].max() > 60
    assert np.count_nonzero(painted.any(axis=2)) == 1


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    """The longer side becomes the one asked for; a strip keeps a pixel; a small picture is left alone."""
    assert draw.shrink_to_fit(np.zeros((3000, 4000, 3), np.uint8), max_side_px=400).shape == (300, 400, 3)
    assert draw.shrink_to_fit(np.zeros((2, 4000, 3), np.uint8), max_side_px=400).shape == (1, 400, 3)
    small = np.zeros((30, 40, 3), np.uint8)
    assert draw.shrink_to_fit(small, max_side_px=400) is small


def test_a_sheet_has_a_place_for_every_tile() -> None:
    """Pictures, reasons and captions stand in their own cells, however long the names and whatever bytes they hold."""
    red = np.full((50, 200, 3), (250, 10, 10), np.uint8)
    tiles = [
        draw.Tile("a.jpg", "3 masks", red),
        draw.Tile("deep/folder/" + "long" * 50 + ".jpg", "12 masks", np.full((900, 300, 3), (10, 250, 10), np.uint8)),
        draw.Tile("caf\udce9.jpg", "truncated: " + "the file ends too early " * 40),
        draw.Tile("", ""),
    ]
    sheet = draw.contact_sheet(tiles, columns=3, tile_px=120)
    assert sheet.shape == (*draw.contact_sheet_hw(4, columns=3, tile_px=120), 3)
    assert np.count_nonzero((sheet == (250, 10, 10)).all(axis=2)) > 100 * 30
    assert np.count_nonzero((sheet == (10, 250, 10)).all(axis=2)) > 30 * 100
    gray = sheet[4:124, 252:372]
    assert (gray[0, 0] == gray[-1, -1]).all()
    assert len(np.unique(gray)) > 10  # The reason is written on it.
    assert (sheet[:, 124:128] == sheet[0, 0]).all(), "something spills out of the first column"
    assert (sheet[:, 248:252] == sheet[0, 0]).all(), "something spills out of the second column"


def test_a_jpeg_holds_the_picture() -> None:
    """The encoded picture opens again at its size, near its colours, and equal pixels give equal bytes."""
    photo = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    data = draw.encode_jpeg(photo)
    assert data == draw.encode_jpeg(photo)
    opened = np.asarray(PillowImage.open(BytesIO(data)))
    assert opened.shape == photo.shape
    assert np.abs(opened.astype(int) - photo).max() < 10


def test_of_a_rejected_mask_the_outline_is_drawn() -> None:
    """On all others, so that it can be taken back; within it they are seen as if it were not there."""
    hw = (120, 160)
    masks = [box_mask(hw, *corners) for corners in [(10, 20, 110, 150), (40, 60, 70, 90)]]
    layers = {}
    for color in (draw.REJECTED, 3):
        data = draw.encode_layer(masks, colors=[7, color], image_hw=hw, picture_hw=hw)
        with PillowImage.open(BytesIO(data)) as opened:
            layers[color] = np.asarray(opened.convert("RGBA"))
    assert tuple(layers[draw.REJECTED][55, 75, :3]) == draw.mask_color(7)
    assert tuple(layers[3][55, 75, :3]) == draw.mask_color(3)
    for y, x in ((40, 75), (41, 75), (69, 75), (55, 60), (55, 61), (55, 89)):
        assert tuple(layers[draw.REJECTED][y, x, :3]) != draw.mask_color(7)


@pytest.mark.parametrize("picture_hw", [(120, 160), (60, 80), (41, 33)])
def test_a_layer_is_clear_where_no_mask_is(picture_hw: tuple[int, int]) -> None:
    """At the photo's size and smaller; small masks on top; a colour a mask, the same for a chosen and a rejected one always."""
    hw = (120, 160)
    boxes = [(10, 20, 110, 150), (40, 60, 70, 90), (80, 100, 81, 101), (0, 0, 0, 0)]
    masks = [box_mask(hw, *corners) for corners in boxes]
    colors = [7, draw.CHOSEN, draw.REJECTED, 3]
    with PillowImage.open(BytesIO(draw.encode_layer(masks, colors=colors, image_hw=hw, picture_hw=picture_hw))) as opened:
        layer = np.asarray(opened.convert("RGBA"))
    pixels = [draw.sample_mask(rle.runs_to_mask(runs, image_hw=hw), picture_hw=picture_hw) for runs in masks]
    np.testing.assert_array_equal(layer[..., 3] > 0, np.logical_or.reduce(pixels))
    numbers = draw.paint_numbers(masks, image_hw=hw, picture_hw=picture_hw)
    for number in (0, 1, 2):
        seen = pixels[number] & ~np.logical_or.reduce(pixels[number + 1 :])
        np.testing.assert_array_equal(numbers == number, seen)
    y, x = (55 * picture_hw[0]) // 120, (75 * picture_hw[1]) // 160
    assert tuple(layer[y, x, :3]) == (255, 196, 0)
    y, x = (100 * picture_hw[0]) // 120, (130 * picture_hw[1]) // 160
    assert tuple(layer[y, x, :3]) == draw.mask_color(7)
    assert layer[y, x, 3] == round(255 * draw.FILL_ALPHA)
