"""What flows through the labeler: images, embeddings, prompts and mask sets. Frozen, columnar, shape-checked.

Must not know files, models or options. Frames: *image* where a name says nothing, ``_in_crop``, ``_in_input`` (the
resized crop the model sees). Boxes ``_xyxy`` are SAM's: inclusive pixel corners, so one pixel is ``[x, y, x, y]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

Size = tuple[int, int]
"""Height, width, in pixels. Sizes are always in this order."""
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels. A crop's box is half-open: x1 - x0 is its width."""


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright unless EXIF was ignored.
        stored_hw: size of the pixels as stored in the file, before any rotation.
        exif_orientation: 1 to 8 as the file says, 1 where it says nothing.
        num_frames: frames or pages in the file; only the first is decoded.
        warnings: sentences about what was odd but did not prevent decoding.
    """

    pixels: UInt8
    stored_hw: Size
    exif_orientation: int = 1
    num_frames: int = 1
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be (H, W, 3) uint8, not {self.pixels.shape} {self.pixels.dtype}")

    @property
    def hw(self) -> Size:
        """Height and width of ``pixels``: the frame of the masks."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the encoder makes of one crop of an image.

    Attributes:
        features: (1, C, h, w) float32.
        crop_xyxy: the crop, half-open, in the image.
        image_hw: the whole image.
        input_hw: the crop after resizing to the model's input, before padding.
    """

    features: Float32
    crop_xyxy: Box
    image_hw: Size
    input_hw: Size

    @property
    def crop_hw(self) -> Size:
        """Height and width of the crop in pixels of the image."""
        x0, y0, x1, y1 = self.crop_xyxy
        return y1 - y0, x1 - x0


MAX_POINTS = 64
"""Points a prompt; a graph is compiled for each number that is used."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts for one embedding, each answered by masks of its own.

    Attributes:
        points_xy: (P, N, 2) float64, pixels of the crop (of the image where the crop is the whole of it); N may be 0.
        labels: (P, N) int32: 1 inside the object, 0 outside, -1 no point.
        boxes_xyxy: (P, 4) float64 in the same frame, or None.
        mask_logits: (P, 1, h, w) float32 low-resolution logits of an earlier answer, or None.
    """

    points_xy: Float64
    labels: Int32
    boxes_xyxy: Float64 | None = None
    mask_logits: Float32 | None = None

    def __post_init__(self) -> None:
        p, n = self.labels.shape
        _check_shape("points_xy", self.points_xy, (p, n, 2))
        if self.boxes_xyxy is not None:
            _check_shape("boxes_xyxy", self.boxes_xyxy, (p, 4))
        if self.mask_logits is not None:
            _check_shape("mask_logits", self.mask_logits, (p, 1, *self.mask_logits.shape[2:]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(
            points_xy=self.points_xy[rows],
            labels=self.labels[rows],
            boxes_xyxy=None if self.boxes_xyxy is None else self.boxes_xyxy[rows],
            mask_logits=None if self.mask_logits is None else self.mask_logits[rows],
        )


@dataclass(frozen=True, slots=True)
class MaskSet:
    """N masks of one image, as columns.

    Attributes:
        image_hw: the frame of everything below.
        run_lengths: (R,) uint32, the COCO run lengths of all masks, one after the other (see ``labeler.rle``).
        run_offsets: (N + 1,) int64; mask i's runs are ``run_lengths[run_offsets[i]:run_offsets[i + 1]]``.
        boxes_xyxy: (N, 4) int64, inclusive corners.
        areas: (N,) int64, pixels.
        predicted_iou: (N,) float32, the model's own estimate; may exceed 1.
        stability_score: (N,) float32.
        points_xy: (N, 2) float64, the point that asked for the mask; nan where something else did.
        crop_boxes_xyxy: (N, 4) int64, half-open, the crop it was found in.
    """

    image_hw: Size
    run_lengths: UInt32
    run_offsets: Int64
    boxes_xyxy: Int64
    areas: Int64
    predicted_iou: Float32
    stability_score: Float32
    points_xy: Float64
    crop_boxes_xyxy: Int64

    def __post_init__(self) -> None:
        n = len(self.areas)
        _check_shape("run_offsets", self.run_offsets, (n + 1,))
        _check_shape("boxes_xyxy", self.boxes_xyxy, (n, 4))
        _check_shape("areas", self.areas, (n,))
        _check_shape("predicted_iou", self.predicted_iou, (n,))
        _check_shape("stability_score", self.stability_score, (n,))
        _check_shape("points_xy", self.points_xy, (n, 2))
        _check_shape("crop_boxes_xyxy", self.crop_boxes_xyxy, (n, 4))
        if self.run_offsets[-1] != len(self.run_lengths):
            raise ValueError(f"run_offsets end at {self.run_offsets[-1]}, but there are {len(self.run_lengths)} run_lengths")

    def __len__(self) -> int:
        return len(self.areas)

    def runs(self, index: int) -> UInt32:
        """The run lengths of one mask."""
        return self.run_lengths[self.run_offsets[index] : self.run_offsets[index + 1]]

    def take(self, rows: Int64 | Bool) -> "MaskSet":
        """The masks of these row numbers, in this order, or where this (N,) boolean column is true."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        lengths, offsets = join_runs([self.runs(i) for i in index])
        columns = {name: getattr(self, name)[index] for name in _PLAIN_COLUMNS}
        return MaskSet(image_hw=self.image_hw, run_lengths=lengths, run_offsets=offsets, **columns)

    @classmethod
    def concat(cls, sets: Sequence[Self], *, image_hw: Size) -> "MaskSet":
        """The masks of several sets of one image, in order."""
        if not sets:
            return cls.empty(image_hw)
        starts = np.cumsum([0] + [len(s.run_lengths) for s in sets])
        offsets = [np.zeros(1, np.int64)] + [s.run_offsets[1:] + start for s, start in zip(sets, starts, strict=False)]
        columns = {name: np.concatenate([getattr(s, name) for s in sets]) for name in ("run_lengths", *_PLAIN_COLUMNS)}
        return MaskSet(image_hw=image_hw, run_offsets=np.concatenate(offsets), **columns)

    @classmethod
    def empty(cls, image_hw: Size) -> "MaskSet":
        """No masks, which is a normal answer."""
        return MaskSet(
            image_hw=image_hw,
            run_lengths=np.zeros(0, np.uint32),
            run_offsets=np.zeros(1, np.int64),
            boxes_xyxy=np.zeros((0, 4), np.int64),
            areas=np.zeros(0, np.int64),
            predicted_iou=np.zeros(0, np.float32),
            stability_score=np.zeros(0, np.float32),
            points_xy=np.zeros((0, 2), np.float64),
            crop_boxes_xyxy=np.zeros((0, 4), np.int64),
        )


_PLAIN_COLUMNS = tuple(f.name for f in fields(MaskSet) if f.name not in ("image_hw", "run_lengths", "run_offsets"))


class StageSeconds(NamedTuple):
    """Where the time of labeling one image went, in wall seconds."""

    encode: float
    predict: float
    post: float


def join_runs(runs: Sequence[UInt32]) -> tuple[UInt32, Int64]:
    """Run lengths mask by mask -> one column and its offsets, as ``MaskSet`` holds them."""
    offsets = np.zeros(len(runs) + 1, np.int64)
    np.cumsum([len(r) for r in runs], out=offsets[1:])
    return (np.concatenate(runs) if runs else np.zeros(0, np.uint32)), offsets


def _check_shape(name: str, array: NDArray[np.generic], expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} must have shape {expected}, not {array.shape}")
