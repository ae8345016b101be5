"""Run lengths -> polygons whose union is the mask, for the formats that need them. The OpenCV seam.

Must not know formats. Corners lie on pixel edges, as in COCO: one pixel at the origin is (0,0) (1,0) (1,1) (0,1). A mask
in pieces is several polygons. A hole is cut open: the outline runs in along a slit of no width, around the hole and back
out the same way, so that filling by the even-odd rule leaves the hole out::

    +-------------+
    |    +---+    |
    |====|   |    |     one polygon of 4 + 4 corners, and one twice at either end of the slit
    |    +---+    |
    +-------------+

What a polygon loses is measured, not estimated: it is filled by pycocotools and compared with the mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from labeler import rle
from labeler.types import Bool, Float64, Int64, Size

TOLERANCES_PX = (1.5, 1.0, 0.75, 0.0)
"""How far an outline may pass by a corner: the largest that loses little enough is taken. 0 follows every pixel."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """A mask as polygons.

    Attributes:
        rings: each (K, 2) float64, x and y, K >= 3, not closed: the last corner is not the first again.
        loss: 1 - IoU with the mask, as pycocotools fills them.
    """

    rings: tuple[Float64, ...]
    loss: float


def counts_to_polygons(counts: str, *, image_hw: Size, max_loss: float, joined: bool = False) -> Polygons | None:
    """The polygons of a mask with the fewest corners that lose at most ``max_loss``, or None where none do.

    Args:
        counts: COCO's compressed counts of a mask that is not empty.
        joined: connect the pieces by slits too, for formats where one object is one ring.
    """
    x, y, w, h = (int(side) for side in rle.measure_boxes_xywh([counts], image_hw=image_hw)[0])
    pieces = _trace_pieces(rle.runs_to_crop(rle.counts_to_runs(counts), image_hw=image_hw, box_xywh=(x, y, w, h)))
    for tolerance_px in TOLERANCES_PX:
        rings = [_cut_holes(piece) for piece in _simplify(pieces, tolerance_px=tolerance_px)]
        if joined and len(rings) > 1:
            rings = [_join(rings)]
        if not rings:
            continue
        placed = tuple((ring + np.array([x, y])).astype(np.float64) for ring in rings)
        filled = rle.polygons_to_counts([ring.ravel().tolist() for ring in placed], image_hw=image_hw)
        loss = max(0.0, 1.0 - rle.measure_iou(filled, counts, image_hw=image_hw))
        if loss <= max_loss:
            return Polygons(placed, loss)
    return None


def trace_rings(mask: Bool, *, tolerance_px: float) -> list[Int64]:
    """The outlines of a mask's pieces and of their holes, apart, to be filled together by the even-odd rule.

    Args:
        mask: (H, W).
        tolerance_px: how far an outline may pass by a corner. What becomes a line is left out.

    Returns:
        (K, 2) each, x and y.
    """
    return [ring for piece in _simplify(_trace_pieces(mask), tolerance_px=tolerance_px) for ring in piece]


_Piece = Sequence[Int64]
"""The outline of one 8-connected piece, then those of its holes; each (K, 2), x and y of pixel corners."""


def _trace_pieces(mask: Bool) -> list[_Piece]:
    # OpenCV's outlines run through pixel centres, half a pixel inside. On a mask of twice the size, though, the centres
    # it meets along a pixel's left edge are at 2x and along its right edge at 2x + 1: halved and rounded up, just the
    # edges x and x + 1. Holes are outlined by the mask's pixels around them, so it holds for these too.
    doubled = cv2.resize(np.ascontiguousarray(mask, np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST_EXACT)
    outlines, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [(outline[:, 0, :].astype(np.int64) + 1) // 2 for outline in outlines]
    # (K, 4): next, previous, first hole, piece it is a hole of; -1 for none.
    parents = hierarchy[0][:, 3] if hierarchy is not None else np.zeros(0, np.int64)
    pieces: dict[int, list[Int64]] = {i: [ring] for i, ring in enumerate(rings) if parents[i] < 0}
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            pieces[int(parent)].append(ring)
    return list(pieces.values())


def _simplify(pieces: Sequence[_Piece], *, tolerance_px: float) -> list[_Piece]:
    """The pieces with fewer corners. Holes and pieces that shrink to a line are gone: the loss will tell."""
    simpler: list[_Piece] = []
    for piece in pieces:
        rings = [cv2.approxPolyDP(ring[:, None].astype(np.int32), tolerance_px, True)[:, 0] for ring in piece]
        if len(rings[0]) >= 3:
            simpler.append([ring.astype(np.int64) for ring in rings[:1] + [r for r in rings[1:] if len(r) >= 3]])
    return simpler


def _cut_holes(piece: _Piece) -> Int64:
    """One ring for a piece with its holes."""
    return _join([piece[0], *sorted(piece[1:], key=lambda hole: tuple(hole.min(axis=0)))])


def _join(rings: Sequence[Int64]) -> Int64:
    """All rings as one, each connected to those before it by a slit from its leftmost corner to the nearest of theirs."""
    joined = rings[0]
    for ring in rings[1:]:
        start = int(np.argmin(ring[:, 0]))
        ring = np.roll(ring, -start, axis=0)
        near = int(np.argmin(((joined - ring[0]) ** 2).sum(axis=1)))
        joined = np.concatenate([joined[: near + 1], ring, ring[:1], joined[near:]])
    return joined
