"""EXIF orientations: what turns a stored picture upright, and back: pixels, sizes, points. Must not know files.

Each function does what makes a picture of this orientation upright; for the way back it is given ``invert(orientation)``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler.types import Float64, Size

_PIXELS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
TURNING = frozenset(_PIXELS)
"""Those that turn or mirror; 1, and what is no orientation, leaves a picture as it is."""


def invert(orientation: int) -> int:
    """What undoes a turn: itself, but for the two quarters."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turn_pixels(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels (H, W, ...) turned: a view."""
    return _PIXELS[orientation](pixels) if orientation in _PIXELS else pixels


def turn_hw(image_hw: Size, orientation: int) -> Size:
    """The size of a picture after the turn."""
    height, width = image_hw
    return (width, height) if orientation in {5, 6, 7, 8} else (height, width)


def turn_points(points_xy: Float64, orientation: int, *, image_hw: Size) -> Float64:
    """Points (..., 2) of a picture after the turn.

    Coordinates count pixel edges: the right edge of a picture of 4 columns is at x = 4.

    Args:
        image_hw: the size of the picture before it.
    """
    height, width = image_hw
    x, y = points_xy[..., 0], points_xy[..., 1]
    left, up = width - x, height - y
    turned = {2: (left, y), 3: (left, up), 4: (x, up), 5: (y, x), 6: (up, x), 7: (up, left), 8: (y, left)}
    return np.stack(turned.get(orientation, (x, y)), axis=-1)
