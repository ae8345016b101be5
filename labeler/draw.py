"""Pictures for people: masks painted over their photo, and a contact sheet of many.

Must not know models, files or tables: pixels and run lengths in, pixels out. (With ``labeler.images`` the Pillow seam.)
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from labeler import rle
from labeler.types import Bool, Float32, Int64, Size, UInt8, UInt32

FILL_ALPHA = 0.38
"""How much of a mask's colour covers the photo: enough to tell neighbours apart, little enough to judge the edges."""

MAX_JPEG_SIDE_PX = 65_500

REJECTED, CHOSEN = -1, -2
"""Colours of a layer's masks that stand out: gone, of which only the outline is seen, and the one that a person is at."""

_GOLDEN_RATIO = 0.6180339887498949
_SHEET = (24, 24, 27)
_EMPTY_TILE = (104, 104, 110)
_TITLE = (244, 244, 245)
_NOTE = (182, 182, 190)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a contact sheet.

    Attributes:
        title: the line below the picture, shortened in its middle where it is too long.
        note: the line below that one.
        pixels: (H, W, 3) uint8 of any size, or None: the note then stands on gray in the picture's place.
    """

    title: str
    note: str
    pixels: UInt8 | None = None


def mask_color(index: int) -> tuple[int, int, int]:
    """The RGB colour of the mask of this number: always the same, and far from its neighbours' on the colour wheel."""
    hue = (0.58 + index * _GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.78))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


_NUM_LAYER_COLORS = 80
_LAYER_STYLES = [(mask_color(number), FILL_ALPHA) for number in range(_NUM_LAYER_COLORS)]
_LAYER_STYLES += [((255, 196, 0), 0.5), ((150, 150, 156), 0.5)]  # CHOSEN and REJECTED; a palette has 256 slots.


def paint_masks(pixels: UInt8, masks: Sequence[UInt32], *, image_hw: Size | None = None) -> UInt8:
    """The photo with each mask tinted and outlined, the largest first so that small ones stay in sight.

    An outline is a dark line beside a light one: one of the two shows on any photo. It scales with the picture.

    Args:
        pixels: (H, W, 3) uint8; not changed.
        masks: each mask's run lengths (``labeler.rle``); mask i has ``mask_color(i)`` whatever the others are.
        image_hw: the masks' frame where ``pixels`` is a smaller copy of the photo: masks are then sampled to its size.

    Returns:
        (H, W, 3) uint8.
    """
    picture_hw = (pixels.shape[0], pixels.shape[1])
    line_px = max(1, round(max(picture_hw) / 900))
    painted = pixels.copy()
    for index in sort_by_area(masks):
        mask = sample_mask(rle.runs_to_mask(masks[index], image_hw=image_hw or picture_hw), picture_hw=picture_hw)
        box = _find_box(mask)
        if box is not None:
            _paint_mask(painted[box], pixels[box], mask[box], color=mask_color(int(index)), line_px=line_px)
    return painted


def encode_layer(masks: Sequence[UInt32], *, colors: Sequence[int], image_hw: Size, picture_hw: Size) -> bytes:
    """Masks to lay over a photo: a PNG of ``picture_hw``, clear where no mask is; tinted and outlined as ``paint_masks`` does.

    Args:
        masks: each mask's run lengths, in the frame ``image_hw``. Small ones lie on large ones, the rejected's outlines on all.
        colors: each mask's number for ``mask_color``, or ``REJECTED`` or ``CHOSEN``.
    """
    slots = np.zeros(picture_hw, np.uint8)
    line_px = max(1, round(max(picture_hw) / 900))
    for index in sorted(sort_by_area(masks), key=lambda index: colors[index] == REJECTED):
        left, small = _sample_runs(masks[index], image_hw=image_hw, picture_hw=picture_hw)
        box = _find_box(small)
        if box is None:
            continue
        mask, color = small[box], colors[index]
        first = 1 + 3 * (len(_LAYER_STYLES) + color if color < 0 else color % _NUM_LAYER_COLORS)  # Three slots a colour.
        core = _erode(mask, line_px)
        inner = _erode(core, line_px)
        rings = np.where(inner | ~core.any(), first, np.where(core, first + 2, first + 1))
        target = slots[box[0], left + box[1].start : left + box[1].stop]
        drawn = mask & ~inner if color == REJECTED else mask
        target[drawn] = rings[drawn]
    picture = PillowImage.fromarray(slots)
    channels, alphas = [0, 0, 0], [0]
    for tint, alpha in _LAYER_STYLES:
        full = np.array(tint, np.float32)
        for ring, ring_alpha in ((full, alpha), *_list_outlines(full)):
            channels += ring.astype(int).tolist()
            alphas.append(round(255 * ring_alpha))
    picture.putpalette(channels)
    buffer = BytesIO()
    picture.save(buffer, "PNG", transparency=bytes(alphas), compress_level=1)
    return buffer.getvalue()


def paint_numbers(masks: Sequence[UInt32], *, image_hw: Size, picture_hw: Size) -> Int64:
    """(h, w) int64 of ``picture_hw``: which mask a person sees at a pixel, the smallest there; -1 where none is."""
    numbers = np.full(picture_hw, -1, np.int64)
    for index in sort_by_area(masks):
        left, mask = _sample_runs(masks[index], image_hw=image_hw, picture_hw=picture_hw)
        numbers[:, left : left + mask.shape[1]][mask] = index
    return numbers


def sort_by_area(masks: Sequence[UInt32]) -> Int64:
    """The places of masks from the largest to the smallest: in this order small ones stay in sight."""
    areas = np.array([runs[1::2].sum(dtype=np.int64) for runs in masks], np.int64)
    return np.argsort(-areas, kind="stable")


def shrink_to_fit(pixels: UInt8, *, max_side_px: int) -> UInt8:
    """The picture with its longer side at most this long; never enlarged."""
    height, width = pixels.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # reducing_gap: JPEG-like box shrink first. Ten times faster on a large photo and not visible in a preview.
    return np.asarray(PillowImage.fromarray(pixels).resize(size, PillowImage.Resampling.LANCZOS, reducing_gap=3.0))


def contact_sheet(tiles: Sequence[Tile], *, columns: int = 6, tile_px: int = 320) -> UInt8:
    """All tiles on one dark sheet, row by row, each with its title and note below.

    Args:
        tiles: at least one; larger pictures are shrunk to ``tile_px``, smaller ones are not enlarged.
        columns: tiles in a row; fewer where there are fewer tiles.
        tile_px: the side of a tile's square.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    font = ImageFont.load_default(size=_font_px(tile_px))
    gap, line_px = _gap_px(tile_px), _line_px(tile_px)
    columns = min(columns, len(tiles))
    height, width = contact_sheet_hw(len(tiles), columns=columns, tile_px=tile_px)
    sheet = PillowImage.new("RGB", (width, height), _SHEET)
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        x, y = gap + number % columns * (tile_px + gap), gap + number // columns * (tile_px + 2 * (line_px + gap))
        if tile.pixels is None:
            _draw_empty_tile(draw, tile.note, xy=(x, y), tile_px=tile_px, font=font, line_px=line_px)
        else:
            picture = PillowImage.fromarray(shrink_to_fit(tile.pixels, max_side_px=tile_px))
            sheet.paste(picture, (x + (tile_px - picture.width) // 2, y + tile_px - picture.height))
            draw.text((x, y + tile_px + gap // 2 + line_px), _shorten(tile.note, font, tile_px), _NOTE, font)
        draw.text((x, y + tile_px + gap // 2), _shorten(tile.title, font, tile_px), _TITLE, font)
    return np.asarray(sheet)


def contact_sheet_hw(num_tiles: int, *, columns: int, tile_px: int = 320) -> Size:
    """The size a contact sheet will have. A JPEG file holds at most ``MAX_JPEG_SIDE_PX`` a side."""
    columns = min(columns, num_tiles)
    gap, line_px = _gap_px(tile_px), _line_px(tile_px)
    return gap + -(-num_tiles // columns) * (tile_px + 2 * (line_px + gap)), gap + columns * (tile_px + gap)


def encode_jpeg(pixels: UInt8, *, quality: int = 88) -> bytes:
    """(H, W, 3) uint8 -> the bytes of a JPEG file, without any metadata."""
    buffer = BytesIO()
    # Colour at full resolution: outlines are a pixel wide.
    PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()


def _font_px(tile_px: int) -> int:
    return max(11, round(tile_px / 21))


def _line_px(tile_px: int) -> int:
    return round(_font_px(tile_px) * 1.35)


def _gap_px(tile_px: int) -> int:
    return max(4, tile_px // 26)


def sample_positions(full: int, *, num_samples: int) -> Int64:
    """Which of ``full`` pixels in a line lie at the middle of the pixels of a smaller copy."""
    return ((np.arange(num_samples) + 0.5) * (full / num_samples)).astype(np.int64)


def sample_mask(mask: Bool, *, picture_hw: Size) -> Bool:
    """The mask at another size: the value at the middle of each pixel."""
    if mask.shape == picture_hw:
        return mask
    rows, columns = (sample_positions(full, num_samples=side) for side, full in zip(picture_hw, mask.shape, strict=True))
    sampled: Bool = mask[np.ix_(rows, columns)]
    return sampled


def _sample_runs(runs: UInt32, *, image_hw: Size, picture_hw: Size) -> tuple[int, Bool]:
    """As ``sample_mask``, from run lengths: the columns that the mask is in, and the first one's place. Costs those alone."""
    height, width = image_hw
    ends = np.cumsum(runs, dtype=np.int64)
    if len(ends) < 2:
        return 0, np.zeros((picture_hw[0], 0), np.bool_)
    first, after = int(ends[0] // height), int((ends[1::2][-1] - 1) // height) + 1
    rows, columns = (sample_positions(full, num_samples=side) for full, side in zip(image_hw, picture_hw, strict=True))
    left, right = np.searchsorted(columns, [first, min(after, width)])
    crop = rle.runs_to_crop(runs, image_hw=image_hw, box_xywh=(first, 0, after - first, height))
    return int(left), crop[np.ix_(rows, columns[left:right] - first)]


def _find_box(mask: Bool) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else None


def _paint_mask(target: UInt8, photo: UInt8, mask: Bool, *, color: tuple[int, int, int], line_px: int) -> None:
    """Paint into ``target``, a view of the picture. The tint mixes with the photo, not with masks painted before."""
    tint = np.array(color, np.float32)
    core = _erode(mask, line_px)
    inner = _erode(core, line_px)
    target[mask] = _mix(photo[mask], tint, alpha=FILL_ALPHA)
    if core.any():  # Else a mask as thin as its outline would be nothing but dark.
        for ring, (line, alpha) in zip((mask & ~core, core & ~inner), _list_outlines(tint), strict=True):
            target[ring] = _mix(photo[ring], line, alpha=alpha)


def _list_outlines(tint: Float32) -> tuple[tuple[Float32, float], tuple[Float32, float]]:
    """Colour (3,) and alpha of a mask's two lines, from the outside in: dark, then light."""
    return (tint * np.float32(0.2), 0.7), (tint * np.float32(0.6) + np.float32(255 * 0.4), 0.85)


def _mix(photo: UInt8, color: Float32, *, alpha: float) -> UInt8:
    return (photo * np.float32(1 - alpha) + color * np.float32(alpha)).astype(np.uint8)


def _erode(mask: Bool, steps: int) -> Bool:
    """The mask without a rim of this many pixels, its box's own sides counting as rim."""
    for _ in range(steps):
        grown = np.pad(mask, 1)
        mask = mask & grown[:-2, 1:-1] & grown[2:, 1:-1] & grown[1:-1, :-2] & grown[1:-1, 2:]
    return mask


_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _draw_empty_tile(
    draw: ImageDraw.ImageDraw, text: str, *, xy: tuple[int, int], tile_px: int, font: _Font, line_px: int
) -> None:
    """A gray square with the text wrapped in it."""
    x, y = xy
    draw.rectangle((x, y, x + tile_px - 1, y + tile_px - 1), _EMPTY_TILE)
    margin = tile_px // 16
    lines = _wrap(text, font, tile_px - 2 * margin)[: (tile_px - 2 * margin) // line_px]
    top = y + (tile_px - len(lines) * line_px) // 2
    for number, line in enumerate(lines):
        draw.text((x + margin, top + number * line_px), line, _TITLE, font)


def _wrap(text: str, font: _Font, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(_shorten(word, font, width_px))
        else:
            lines[-1] = _shorten(longer, font, width_px)
    return lines


def _shorten(text: str, font: _Font, width_px: int) -> str:
    """The text with as much of its middle left out as it takes to fit. Its ends tell names apart."""
    text = text.encode("utf-8", "replace").decode()  # Bytes of a name that are no text (lone surrogates) can't be drawn.
    kept = text
    length = len(text)
    while font.getlength(kept) > width_px and length > 2:
        length -= 1
        kept = text[: length // 2] + "…" + text[len(text) - (length - length // 2) :]
    return kept
