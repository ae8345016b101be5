"""Scenes to train on: pictures drawn by code, with the mask of each part, thing and group in them.

Must not know prompts or models. A scene is decided by its generator, its size and the photographs alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.objects import Object
from training.photos import Cutout, Photo, list_cutouts
from training.shapes import Fill, Patch, Rng, draw_colour, draw_fill, draw_noise, draw_outline, trim

ASPECTS = (1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9)
PHOTO_CHANCE, OBJECT_CHANCE = 0.4, 0.4

Piece = tuple[Patch, Fill, int, int]  # mask, picture, top and left in the frame of the thing it is a part of


@dataclass(frozen=True)
class Scene:
    """A picture (h, w, 3) uint8 and levels (3, h, w) uint16: the ids of parts, things and groups, 0 where nothing is sure.

    A click at (x, y) may mean each region ``levels[i] == levels[i, y, x]`` whose id isn't 0; equal regions count once.
    Ids up to ``last_found`` are regions found in a photograph, the others were drawn.
    """

    pixels: NDArray[np.uint8]
    levels: NDArray[np.uint16]
    last_found: int


@dataclass(frozen=True)
class PhotoBank:
    """Photographs for backgrounds, fills and cut-outs, and pictures of single things."""

    photos: Sequence[Photo]
    cutouts: Sequence[Cutout]
    objects: Sequence[Object] = ()
    photo_chance: float = PHOTO_CHANCE
    """How often a scene lies on a photograph whose own regions are asked for."""
    whole_chance: float = 0.0
    """How often such a photograph is as large as fits, instead of a piece of any size."""
    chances: NDArray[np.float64] | None = None
    """How often each photograph is taken; without them all alike."""

    @classmethod
    def of(cls, photos: Sequence[Photo], objects: Sequence[Object] = (), **chances: Any) -> "PhotoBank":
        """A bank of these photographs, with the regions worth cutting out, and of these things. ``chances``: its fields."""
        return cls(photos=photos, cutouts=list_cutouts(photos), objects=objects, **chances)

    def crop(self, rng: Rng, *, size_hw: tuple[int, int], smallest: float = 0.25) -> tuple[Fill, NDArray[np.uint16]]:
        """A random crop as picture (h, w, 3) float32 with its region levels (3, h, w); mirrored half of the time."""
        index = rng.integers(len(self.photos)) if self.chances is None else rng.choice(len(self.photos), p=self.chances)
        photo = self.photos[int(index)]
        height, width = photo.pixels.shape[:2]
        most = min(height / size_hw[0], width / size_hw[1])
        is_whole = self.whole_chance > 0.0 and rng.random() < self.whole_chance
        scale = most if is_whole else most * math.exp(rng.uniform(math.log(smallest), 0.0))
        crop_h, crop_w = max(2, int(size_hw[0] * scale)), max(2, int(size_hw[1] * scale))
        top, left = int(rng.integers(0, height - crop_h + 1)), int(rng.integers(0, width - crop_w + 1))
        window = (slice(top, top + crop_h), slice(left, left + crop_w))
        how = cv2.INTER_AREA if scale > 1.0 else cv2.INTER_LINEAR
        pixels = cv2.resize(photo.pixels[window], size_hw[::-1], interpolation=how)
        levels = [cv2.resize(ids[window], size_hw[::-1], interpolation=cv2.INTER_NEAREST) for ids in photo.levels]
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        return pixels[:, flip].astype(np.float32), np.stack(levels)[:, :, flip]

    def cut(self, rng: Rng, *, extent_px: float) -> tuple[Patch, Fill]:
        """A thing cut out of a photograph: its mask (h, w) and picture (h, w, 3) float32, turned by quarters and mirrored."""
        cutout = self.cutouts[int(rng.integers(len(self.cutouts)))]
        x0, y0, x1, y1 = cutout.box_xyxy
        photo = self.photos[cutout.photo]
        mask = (photo.levels[cutout.level][y0:y1, x0:x1] == cutout.region).astype(np.uint8)
        scale = min(extent_px / max(mask.shape), 2.0)
        pixels, mask = _scale_and_turn(rng, photo.pixels[y0:y1, x0:x1], cv2.medianBlur(mask, 5), scale=scale, upright=3)
        return mask, pixels

    def take(self, rng: Rng, *, extent_px: float) -> tuple[Patch, Fill, NDArray[np.uint16]]:
        """One of the things: mask (h, w), picture (h, w, 3) float32, ids (h, w) of parts; often mirrored, at times turned."""
        thing = self.objects[int(rng.integers(len(self.objects)))]
        scale = extent_px / max(thing.mask.shape)
        pixels, mask, parts = _scale_and_turn(rng, thing.pixels, thing.mask, thing.parts, scale=scale, upright=6)
        gray = pixels.mean(axis=2, keepdims=True)
        return mask, gray + np.float32(rng.uniform(0.2, 1.1)) * (pixels[:, :, rng.permutation(3)] - gray), parts


def _scale_and_turn(
    rng: Rng, pixels: NDArray[np.uint8], *ids: NDArray[Any], scale: float, upright: int
) -> tuple[NDArray[Any], ...]:
    """A picture (H, W, 3) as float32 and its ids (H, W), scaled, mirrored half of the time and turned by quarters.

    For ``upright`` that stay as they are, one each is turned by 90, 180 and 270 degrees.
    """
    size_wh = (max(3, round(pixels.shape[1] * scale)), max(3, round(pixels.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    layers = [cv2.resize(pixels, size_wh, interpolation=how).astype(np.float32)]
    layers += [cv2.resize(layer, size_wh, interpolation=cv2.INTER_NEAREST) for layer in ids]
    quarter = int(rng.choice([0] * upright + [1, 2, 3]))
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    return tuple(np.ascontiguousarray(np.rot90(layer, quarter)[:, flip]) for layer in layers)


def _list_pieces(parts: NDArray[np.uint16], pixels: Fill) -> list[Piece]:
    """The parts of a thing from its ids (h, w), each with its own bit of the picture."""
    pieces = []
    for part in range(1, int(parts.max()) + 1):
        here = (parts == part).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(here)
        if width and height:
            window = (slice(y, y + height), slice(x, x + width))
            pieces.append((here[window], pixels[window], y, x))
    return pieces


class Canvas:
    """A scene in the making: the one place here where state changes."""

    def __init__(self, pixels: Fill, levels: NDArray[np.uint16]) -> None:
        self.pixels = np.ascontiguousarray(pixels, dtype=np.float32)
        self.levels = np.ascontiguousarray(levels, dtype=np.uint16)
        self.next_id = int(self.levels.max()) + 1

    def new_id(self) -> int:
        """An id no region has yet."""
        self.next_id += 1
        return self.next_id - 1

    def clip(self, *, top: int, left: int, patch_hw: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
        """Where a patch falls on the canvas and which part of the patch that is; None when it misses."""
        height, width = self.pixels.shape[:2]
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + patch_hw[0], height), min(left + patch_hw[1], width)
        if y0 >= y1 or x0 >= x1:
            return None
        return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))

    def paint(self, mask: Patch, fill: Fill, *, top: int, left: int, ids: tuple[int, int, int], softness: float = 0.0) -> None:
        """Lay a thing on the canvas; it hides what lies below.

        Args:
            ids: of part, thing and group.
            softness: of its border, in pixels.
        """
        places = self.clip(top=top, left=left, patch_hw=mask.shape[:2])
        if places is None:
            return
        there, here = places
        alpha = mask.astype(np.float32)
        if softness > 0.0:
            alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), softness), dtype=np.float32)
        shown = alpha[here][:, :, None]
        self.pixels[there] += shown * (fill[here] - self.pixels[there])
        inside = mask[here] > 0
        for level, region in enumerate(ids):
            self.levels[level][there][inside] = region

    def darken(self, mask: Patch, *, top: int, left: int, strength: float, blur_px: float) -> None:
        """A soft shadow of a mask; what it falls on stays what it is."""
        margin = int(3 * blur_px)
        shadow = cv2.GaussianBlur(np.pad(mask, margin).astype(np.float32), (0, 0), blur_px)
        places = self.clip(top=top - margin, left=left - margin, patch_hw=shadow.shape[:2])
        if places is not None:
            there, here = places
            self.pixels[there] *= 1.0 - np.float32(strength) * shadow[here][:, :, None]


def draw_scene(rng: Rng, *, size: int, bank: PhotoBank) -> Scene:
    """A scene whose longer side is ``size`` pixels."""
    aspect = float(rng.choice(ASPECTS)) if rng.random() < 0.8 else rng.uniform(1.0, 2.2)
    short = max(32, round(size / aspect))
    size_hw = (size, short) if rng.random() < 0.4 else (short, size)
    canvas, is_photo = _draw_ground(rng, size_hw=size_hw, bank=bank)
    last_found = canvas.next_id - 1 if is_photo else 0
    crowd = rng.random()
    count = rng.integers(14, 36) if crowd < 0.25 else rng.integers(4, 14) if crowd < 0.75 else rng.integers(1, 5)
    if is_photo:
        count = rng.integers(0, 10)
    largest = size * float(rng.choice([0.25, 0.5, 0.9], p=[0.3, 0.45, 0.25]))
    for extent_px in np.sort(np.exp(rng.uniform(math.log(size / 32), math.log(largest), int(count))))[::-1]:
        _place_thing(canvas, rng, extent_px=float(extent_px), bank=bank)
    return Scene(pixels=_photograph(rng, canvas.pixels), levels=canvas.levels, last_found=last_found)


# The ground ---------------------------------------------------------------------------------------------------------


def _draw_ground(rng: Rng, *, size_hw: tuple[int, int], bank: PhotoBank) -> tuple[Canvas, bool]:
    """What everything lies on; True when it is a photograph whose own regions are targets."""
    chance = rng.random()
    if chance < bank.photo_chance:
        return Canvas(*bank.crop(rng, size_hw=size_hw)), True
    kind = (chance - bank.photo_chance) / (1.0 - bank.photo_chance)
    canvas = Canvas(draw_fill(rng, size_hw=size_hw), np.ones((3, *size_hw), dtype=np.uint16))
    if kind < 1 / 6:  # a photograph out of focus, or a close texture: one ground
        pixels, _ = bank.crop(rng, size_hw=size_hw, smallest=0.1)
        canvas.pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(2.0, 9.0)), dtype=np.float32)
    elif kind < 2 / 3:  # walls, floors and fields
        for _ in range(int(rng.integers(1, 5))):
            _split_ground(canvas, rng, bank=bank)
    return canvas, False


def _split_ground(canvas: Canvas, rng: Rng, *, bank: PhotoBank) -> None:
    """Everything beyond a straight or wavy line gets another fill and is another thing."""
    height, width = size_hw = canvas.pixels.shape[:2]
    angle = rng.choice([0.0, 1.57, 3.14, 4.71]) + rng.normal(0.0, 0.3)
    down = np.arange(height, dtype=np.float32)[:, None] - np.float32(rng.uniform(0.15, 0.85) * height)
    right = np.arange(width, dtype=np.float32)[None, :] - np.float32(rng.uniform(0.15, 0.85) * width)
    distance = np.float32(math.cos(angle)) * down + np.float32(math.sin(angle)) * right
    if rng.random() < 0.4:
        distance = distance + draw_noise(rng, size_hw=(height, width)) * np.float32(rng.uniform(2.0, 12.0))
    region = canvas.new_id()
    fill = _any_fill(rng, size_hw=(size_hw[0], size_hw[1]), bank=bank)
    canvas.paint((distance > 0).astype(np.uint8), fill, top=0, left=0, ids=(region, region, region), softness=0.6)


def _any_fill(rng: Rng, *, size_hw: tuple[int, int], bank: PhotoBank, photo_chance: float = 0.3) -> Fill:
    """A drawn fill, or a small bit of a photograph, with its contrast and colour changed."""
    if rng.random() >= photo_chance or min(size_hw) < 8:
        return draw_fill(rng, size_hw=size_hw)
    pixels, _ = bank.crop(rng, size_hw=size_hw, smallest=0.08)
    mean = pixels.mean(axis=(0, 1))
    shift = rng.normal(0.0, 30.0, 3).astype(np.float32)
    return np.asarray((pixels - mean) * np.float32(rng.uniform(0.4, 1.3)) + mean + shift, dtype=np.float32)


# Things -------------------------------------------------------------------------------------------------------------


def _place_thing(canvas: Canvas, rng: Rng, *, extent_px: float, bank: PhotoBank) -> None:
    """One thing, or now and then a group of its like, somewhere on the canvas."""
    mask, fill, parts = _draw_thing(rng, extent_px=extent_px, bank=bank)
    height, width = canvas.pixels.shape[:2]
    top = round(rng.uniform(-0.2, 1.0) * height - 0.4 * mask.shape[0])
    left = round(rng.uniform(-0.2, 1.0) * width - 0.4 * mask.shape[1])
    together = extent_px < 0.3 * max(height, width) and rng.random() < 0.12
    copies = int(rng.integers(2, 7)) if together else 1
    step_y, step_x = rng.uniform(-0.3, 0.3) * mask.shape[0], rng.uniform(0.7, 1.25) * mask.shape[1]
    if rng.random() < 0.4:
        step_y, step_x = rng.uniform(0.7, 1.25) * mask.shape[0], rng.uniform(-0.3, 0.3) * mask.shape[1]
    group = canvas.new_id()
    softness = float(rng.choice([0.0, 0.5, 0.8, 1.3], p=[0.3, 0.4, 0.2, 0.1]))
    shadow = rng.uniform(0.15, 0.6) if rng.random() < 0.3 else 0.0
    throw = rng.uniform(-0.12, 0.12, 2) * extent_px
    if not parts and extent_px > canvas.pixels.shape[0] / 10 and rng.random() < 0.4:
        parts = _draw_parts(rng, mask, bank=bank)
    for copy in range(copies):
        y, x = top + round(copy * step_y), left + round(copy * step_x)
        if shadow:
            blur_px = max(0.8, extent_px * 0.05)
            canvas.darken(mask, top=y + round(throw[0]), left=x + round(throw[1]), strength=shadow, blur_px=blur_px)
        thing = canvas.new_id() if copies > 1 else group
        canvas.paint(mask, fill, top=y, left=x, ids=(thing, thing, group), softness=softness)
        for part_mask, part_fill, part_top, part_left in parts:
            ids = (canvas.new_id(), thing, group)
            canvas.paint(part_mask, part_fill, top=y + part_top, left=x + part_left, ids=ids, softness=min(softness, 0.8))


def _draw_thing(rng: Rng, *, extent_px: float, bank: PhotoBank) -> tuple[Patch, Fill, list[Piece]]:
    if bank.objects and rng.random() < OBJECT_CHANCE:
        mask, fill, part_ids = bank.take(rng, extent_px=extent_px)
        grain = _any_fill(rng, size_hw=(mask.shape[0], mask.shape[1]), bank=bank, photo_chance=0.7)
        strength = rng.uniform(0.0, 0.4)
        fill = fill + np.float32(strength) * (grain - grain.mean(axis=(0, 1)))
        return mask, fill, _list_pieces(part_ids, fill)
    if bank.cutouts and rng.random() < 0.3:
        mask, fill = bank.cut(rng, extent_px=extent_px)
        fill = (fill - 128.0) * np.float32(rng.uniform(0.7, 1.2)) + np.float32(128.0 + rng.normal(0.0, 15.0))
        return mask, np.asarray(fill, dtype=np.float32), []
    mask = draw_outline(rng, extent_px=extent_px)
    size_hw = (mask.shape[0], mask.shape[1])
    fill = _any_fill(rng, size_hw=size_hw, bank=bank)
    look = rng.random()
    if look < 0.3 and min(size_hw) > 6:  # round: lighter in the middle and to one side
        depth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(1.0, 0.2 * min(size_hw)))
        fill = fill * (np.float32(0.55) + np.float32(rng.uniform(0.3, 0.6)) * depth[:, :, None])
    elif look < 0.42 and min(size_hw) > 6:  # an edge line
        inner = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 3)))[1:-1, 1:-1]
        fill = np.where((mask - inner)[:, :, None] > 0, draw_colour(rng), fill)
    return mask, np.asarray(fill, dtype=np.float32), []


def _draw_parts(rng: Rng, mask: Patch, *, bank: PhotoBank) -> list[Piece]:
    """Parts inside a thing's mask. A click on one may mean the part or the whole."""
    parts = []
    for _ in range(int(rng.integers(1, 5))):
        piece = draw_outline(rng, extent_px=max(mask.shape) * rng.uniform(0.15, 0.6))
        piece = piece[: mask.shape[0], : mask.shape[1]]
        top, left = (int(rng.integers(0, mask.shape[axis] - piece.shape[axis] + 1)) for axis in (0, 1))
        piece = piece & mask[top : top + piece.shape[0], left : left + piece.shape[1]]
        if int(piece.sum()) >= 20:
            box_x, box_y = cv2.boundingRect(piece)[:2]
            piece = trim(piece)
            fill = _any_fill(rng, size_hw=(piece.shape[0], piece.shape[1]), bank=bank, photo_chance=0.15)
            parts.append((piece, fill, top + box_y, left + box_x))
    return parts


# The camera ---------------------------------------------------------------------------------------------------------


def _photograph(rng: Rng, pixels: Fill) -> NDArray[np.uint8]:
    """Light, blur, noise and JPEG over a finished scene."""
    if rng.random() < 0.35:
        light = draw_noise(rng, size_hw=(4, 4))
        soft = cv2.resize(light, pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        pixels = pixels * (1.0 + np.float32(rng.uniform(0.1, 0.4)) * soft[:, :, None])
    if rng.random() < 0.5:
        contrast, middle = np.float32(rng.uniform(0.45, 1.15)), np.float32(rng.uniform(90.0, 150.0))
        pixels = (pixels - np.float32(128.0)) * contrast + middle + rng.normal(0.0, 8.0, 3).astype(np.float32)
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.35:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.4)), dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 12.0))
    finished = np.clip(pixels, 0.0, 255.0).astype(np.uint8)
    if rng.random() < 0.3:
        _, encoded = cv2.imencode(".jpg", finished, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
        finished = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return finished
