"""What a drawn thing looks like: outlines as small masks, fills as small pictures.

Must not know scenes, ids or prompts. Everything is drawn from the generator it is given.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Patch = NDArray[np.uint8]  # a mask (h, w), 0 or 1
Fill = NDArray[np.float32]  # a picture (h, w, 3), 0-255

FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX)
LETTERS = "ABCDEFGHKLMNPRSTUVXYZabdefghkmnpqrstuz0123456789&@#?"


# Outlines -----------------------------------------------------------------------------------------------------------


def draw_outline(rng: Rng, *, extent_px: float) -> Patch:
    """A mask (h, w) uint8 of 0 and 1 of a random kind; its longer side is about ``extent_px``."""
    kinds: tuple[Callable[[Rng, float], Patch], ...] = (_ellipse, _blob, _polygon, _box, _stroke, _ring, _text, _union)
    chances = np.array([0.2, 0.26, 0.12, 0.16, 0.08, 0.06, 0.05, 0.07])
    kind = kinds[int(rng.choice(len(kinds), p=chances))]
    return trim(kind(rng, max(extent_px, 4.0)))


def trim(mask: Patch) -> Patch:
    """The part of a mask inside its bounding box; a mask of one pixel where it is empty."""
    box_x, box_y, box_w, box_h = cv2.boundingRect(mask)
    if box_w == 0 or box_h == 0:
        return np.ones((1, 1), dtype=np.uint8)
    return mask[box_y : box_y + box_h, box_x : box_x + box_w]


def _fill_points(points: NDArray[np.float64]) -> Patch:
    """The polygon through points (N, 2), moved to touch the origin."""
    points = points - points.min(axis=0)
    width, height = np.ceil(points.max(axis=0)).astype(int) + 1
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask


def _turned(rng: Rng, points: NDArray[np.float64], *, extent_px: float, upright: float = 0.3) -> NDArray[np.float64]:
    """Points turned by a random angle, unless upright, and scaled to ``extent_px``."""
    angle = 0.0 if rng.random() < upright else rng.uniform(0.0, 2.0 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    points = points @ np.array([[cos, sin], [-sin, cos]])
    return points * (extent_px / max(float(np.ptp(points, axis=0).max()), 1e-3))


def _aspect(rng: Rng, most: float = 4.0) -> float:
    return float(math.exp(rng.uniform(0.0, math.log(most))))


def _ellipse(rng: Rng, extent_px: float) -> Patch:
    turn = np.linspace(0.0, 2.0 * math.pi, 40, endpoint=False)
    points = np.stack([np.cos(turn), np.sin(turn) / _aspect(rng)], axis=1)
    return _fill_points(_turned(rng, points, extent_px=extent_px))


def _blob(rng: Rng, extent_px: float) -> Patch:
    turn = np.linspace(0.0, 2.0 * math.pi, 72, endpoint=False)
    radius = np.ones_like(turn)
    roughness = rng.uniform(0.1, 0.7)
    for order in range(1, int(rng.integers(3, 9))):
        radius += rng.normal() * roughness / order * np.cos(order * turn + rng.uniform(0.0, 6.3))
    radius = np.maximum(radius, 0.15)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn) / _aspect(rng, 2.5)], axis=1)
    return _fill_points(_turned(rng, points, extent_px=extent_px))


def _polygon(rng: Rng, extent_px: float) -> Patch:
    corners = int(rng.integers(3, 9))
    irregular = rng.random() < 0.5
    turn = np.sort(rng.uniform(0.0, 2.0 * math.pi, corners)) if irregular else np.arange(corners) * 2 * math.pi / corners
    radius = rng.uniform(0.4, 1.0, corners) if rng.random() < 0.6 else np.ones(corners)
    if rng.random() < 0.25:  # a star
        turn = np.arange(2 * corners) * math.pi / corners
        radius = np.where(np.arange(2 * corners) % 2, rng.uniform(0.3, 0.7), 1.0)
    points = np.stack([radius * np.cos(turn), radius * np.sin(turn) / _aspect(rng, 2.0)], axis=1)
    return _fill_points(_turned(rng, points, extent_px=extent_px))


def _box(rng: Rng, extent_px: float) -> Patch:
    aspect = _aspect(rng, 6.0)
    width, height = (1.0, 1.0 / aspect) if rng.random() < 0.5 else (1.0 / aspect, 1.0)
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]]) + rng.normal(0.0, 0.04, (4, 2)) * height
    mask = _fill_points(_turned(rng, corners, extent_px=extent_px, upright=0.6))
    if rng.random() < 0.3 and min(mask.shape) > 12:  # rounded corners
        size = 2 * int(min(mask.shape) * rng.uniform(0.08, 0.2)) + 1
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        return np.asarray(cv2.morphologyEx(np.pad(mask, size), cv2.MORPH_OPEN, disc), dtype=np.uint8)
    return mask


def _stroke(rng: Rng, extent_px: float) -> Patch:
    steps = int(rng.integers(2, 24))
    heading = np.cumsum(rng.normal(0.0, rng.uniform(0.05, 0.6), steps)) + rng.uniform(0.0, 6.3)
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    points = (points - points.min(axis=0)) * (extent_px / max(float(np.ptp(points, axis=0).max()), 1e-3))
    thickness = max(2, round(extent_px * math.exp(rng.uniform(math.log(0.02), math.log(0.2)))))
    width, height = np.ceil(points.max(axis=0)).astype(int) + 2 * thickness + 1
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.polylines(mask, [np.round(points + thickness).astype(np.int32)], False, 1, thickness)
    return mask


def _ring(rng: Rng, extent_px: float) -> Patch:
    outer = np.ascontiguousarray(_ellipse(rng, extent_px) if rng.random() < 0.6 else _box(rng, extent_px))
    share = rng.uniform(0.3, 0.8)
    inner = np.asarray(cv2.resize(outer, None, fx=share, fy=share, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    top, left = (outer.shape[0] - inner.shape[0]) // 2, (outer.shape[1] - inner.shape[1]) // 2
    outer[top : top + inner.shape[0], left : left + inner.shape[1]] &= 1 - inner
    return outer


def _text(rng: Rng, extent_px: float) -> Patch:
    text = "".join(rng.choice(list(LETTERS), size=int(rng.integers(1, 6))))
    font = FONTS[int(rng.integers(len(FONTS)))]
    (width, _), _ = cv2.getTextSize(text, font, 1.0, 2)
    scale = max(extent_px / max(width, 20), 0.4)
    thickness = max(2, round(scale * rng.uniform(2.0, 5.0)))
    (width, height), below = cv2.getTextSize(text, font, scale, thickness)
    mask = np.zeros((height + below + 2 * thickness, width + 2 * thickness), dtype=np.uint8)
    cv2.putText(mask, text, (thickness, height + thickness // 2), font, scale, 1, thickness)
    return mask


def _union(rng: Rng, extent_px: float) -> Patch:
    mask = np.zeros((int(extent_px) + 2, int(extent_px) + 2), dtype=np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        piece = trim((_ellipse, _box, _blob)[int(rng.integers(3))](rng, extent_px * rng.uniform(0.35, 0.8)))
        piece = piece[: mask.shape[0], : mask.shape[1]]
        top, left = (int(rng.integers(0, mask.shape[axis] - piece.shape[axis] + 1)) for axis in (0, 1))
        mask[top : top + piece.shape[0], left : left + piece.shape[1]] |= piece
    # Only what hangs together is one thing.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), dtype=np.uint8)


# Fills --------------------------------------------------------------------------------------------------------------


def draw_colour(rng: Rng) -> NDArray[np.float32]:
    """A colour (3,), 0-255: any, or near gray, for photographs are mostly that."""
    if rng.random() < 0.5:
        return rng.uniform(5.0, 250.0, 3).astype(np.float32)
    return np.clip(rng.uniform(15.0, 240.0) + rng.normal(0.0, 18.0, 3), 0.0, 255.0).astype(np.float32)


def draw_fill(rng: Rng, *, size_hw: tuple[int, int], colour: NDArray[np.float32] | None = None) -> Fill:
    """A picture (h, w, 3) float32 about one colour: flat, a gradient, stripes, checks or noise of any grain."""
    colour = draw_colour(rng) if colour is None else colour
    kind = rng.random()
    if kind < 0.3:
        return np.broadcast_to(colour, (*size_hw, 3)).astype(np.float32)
    contrast = rng.normal(0.0, 40.0, 3).astype(np.float32) + np.float32(rng.normal(0.0, 30.0))
    if kind < 0.5:
        pattern = _ramp(rng, size_hw)
    elif kind < 0.63:
        pattern = _waves(rng, size_hw)
    else:
        pattern = draw_noise(rng, size_hw=size_hw)
    return np.asarray(colour + pattern[:, :, None] * contrast, dtype=np.float32)


def _ramp(rng: Rng, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    down = np.linspace(-1.0, 1.0, size_hw[0], dtype=np.float32)[:, None]
    right = np.linspace(-1.0, 1.0, size_hw[1], dtype=np.float32)[None, :]
    if rng.random() < 0.3:  # light from a point
        return np.asarray(1.0 - (down - np.float32(rng.uniform(-1, 1))) ** 2 - (right - np.float32(rng.uniform(-1, 1))) ** 2)
    angle = rng.uniform(0.0, 6.3)
    return np.asarray(np.float32(math.cos(angle)) * down + np.float32(math.sin(angle)) * right)


def _waves(rng: Rng, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    period = math.exp(rng.uniform(math.log(3.0), math.log(40.0)))
    angle = rng.uniform(0.0, 6.3)
    down = np.arange(size_hw[0], dtype=np.float32)[:, None] * np.float32(6.28 / period)
    right = np.arange(size_hw[1], dtype=np.float32)[None, :] * np.float32(6.28 / period)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    wave = np.sin(cos * down + sin * right)
    if rng.random() < 0.3:
        wave = wave * np.sin(sin * down - cos * right)
    return np.asarray(np.sign(wave) * np.float32(0.7) if rng.random() < 0.5 else wave, dtype=np.float32)


def draw_noise(rng: Rng, *, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Soft noise (h, w) about 0, one to three grains from coarse to fine."""
    noise = np.zeros(size_hw, dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        grain = math.exp(rng.uniform(0.0, math.log(32.0)))
        coarse_hw = tuple(max(2, round(side / grain)) for side in size_hw)
        coarse = rng.standard_normal(coarse_hw, dtype=np.float32)
        noise += cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_LINEAR) * np.float32(rng.uniform(0.2, 0.7))
    return noise
