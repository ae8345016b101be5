"""Masks turned from the upright frame into the one a file stores, and back, as an EXIF orientation says.

Must not know files: run lengths, points and boxes in and out. Coordinates count pixel edges, so the right edge of a
picture of 4 columns is at x = 4, and a turned box has the same whole numbers for sides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeler import rle
from labeler.types import Size

# What makes stored pixels upright, by EXIF orientation.
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}
_INVERSE = {6: 8, 8: 6}  # The others undo themselves.


@dataclass(frozen=True, slots=True)
class Turn:
    """One image's way from the frame its masks are in to the other.

    Args:
        orientation: 2 to 8, as the file's EXIF says.
        image_hw: the frame the masks are in.
        upright: whether the other frame is the upright one.
    """

    orientation: int
    image_hw: Size
    upright: bool

    @property
    def turned_hw(self) -> Size:
        """The size of the other frame."""
        height, width = self.image_hw
        return (width, height) if self.orientation >= 5 else (height, width)

    def turn_counts(self, counts: str) -> str:
        """A mask as COCO's compressed counts, in the other frame."""
        turned = TURNS[self._way](rle.counts_to_mask(counts, image_hw=self.image_hw))
        return rle.runs_to_counts(rle.mask_to_runs(turned), image_hw=self.turned_hw)

    def turn_point(self, xy: Sequence[float]) -> list[float]:
        """A point, in the other frame."""
        (x, y), (height, width) = xy, self.image_hw
        left, up = width - x, height - y
        turned = {2: (left, y), 3: (left, up), 4: (x, up), 5: (y, x), 6: (up, x), 7: (up, left), 8: (y, left)}
        return list(turned[self._way])

    def turn_box(self, xywh: Sequence[float]) -> list[float]:
        """An XYWH box, in the other frame."""
        x, y, width, height = xywh
        corners = np.array([self.turn_point((x, y)), self.turn_point((x + width, y + height))])
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]

    @property
    def _way(self) -> int:
        return self.orientation if self.upright else _INVERSE.get(self.orientation, self.orientation)
