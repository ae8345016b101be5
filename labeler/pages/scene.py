"""What the stage of a page shows, as JSON: a photo, masks over it, marks, and words under the pointer.

Must not know gradio, runs or models. ``assets/stage.js`` draws it. Coordinates are pixels of the photo;
pictures are data URLs, so nothing has to be fetched, and at most ``SIDE_PX`` a side.
"""

import base64
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from labeler.draw import REJECTED, encode_jpeg, encode_layer, paint_numbers, shrink_to_fit
from labeler.images import encode_png
from labeler.pages.session import Clicks
from labeler.types import Image, Int64, Size, UInt32

SIDE_PX = 1280

Scene = dict[str, Any]

_START = secrets.token_hex(6)
_versions = itertools.count(1)


def make_scene(
    image: Image,
    *,
    photo_id: str,
    has_photo: bool,
    masks: Sequence[UInt32] = (),
    colors: Sequence[int] = (),
    tips: Sequence[str] = (),
    clicks: Clicks | None = None,
    can_click: bool = True,
    can_drop: bool = False,
    can_turn: bool = False,
    is_unsaved: bool = False,
) -> Scene:
    """A photo with masks.

    Args:
        photo_id: names the photo.
        has_photo: the page has this photo already; then only what lies over it is sent.
        masks: run lengths in the photo's frame, and ``colors``, as ``draw.encode_layer`` takes them.
        tips: what the pointer says over each mask; none where nobody needs it.
        clicks: what was clicked.
        can_click: boxes may be dragged.
        can_drop: another photo may be dropped on it.
        can_turn: the arrow keys lead to other photos.
        is_unsaved: whoever leaves the page is asked first.
    """
    picture_hw = _fit(image.hw)
    scene: Scene = {
        "photo_id": photo_id,
        "photo": None if has_photo else _to_url(encode_jpeg(shrink_to_fit(image.pixels, max_side_px=SIDE_PX)), "jpeg"),
        "size": [image.hw[1], image.hw[0]],
        "layer": None,
        "numbers": None,
        "tips": list(tips),
        "points": [],
        "box": None,
        "corner": None,
        "can_box": can_click,
        "can_drop": can_drop,
        "can_turn": can_turn,
        "is_unsaved": is_unsaved,
        "version": _make_version(),
    }
    if clicks is not None:
        scene["points"] = [[*xy, label] for xy, label in zip(clicks.points_xy, clicks.labels, strict=True)]
        scene["box"], scene["corner"] = clicks.box_xyxy, clicks.corner_xy
    if masks:
        layer = encode_layer(masks, colors=colors, image_hw=image.hw, picture_hw=picture_hw)
        scene["layer"] = _to_url(layer, "png")
    if masks and tips:
        numbers = _paint_tips(masks, colors=colors, image_hw=image.hw, picture_hw=picture_hw) + 1
        channels = np.stack([numbers & 255, numbers >> 8, np.zeros_like(numbers)], axis=-1).astype(np.uint8)
        scene["numbers"] = _to_url(encode_png(channels), "png")
    return scene


def make_empty_scene(message: str, *, failed: bool = False, can_drop: bool = False, can_turn: bool = False) -> Scene:
    """No photo: words in its place."""
    return {
        "message": message,
        "failed": failed,
        "can_drop": can_drop,
        "can_turn": can_turn,
        "version": _make_version(),
    }


def _make_version() -> str:
    """Another for each scene, also after the server was started again: a browser may still show one of before."""
    return f"{_START}-{next(_versions)}"


def _paint_tips(masks: Sequence[UInt32], *, colors: Sequence[int], image_hw: Size, picture_hw: Size) -> Int64:
    """(h, w) int64: which mask a click hits, so the smallest; a rejected one where no other is. -1 where none is."""
    numbers = np.full(picture_hw, -1, np.int64)
    for are_rejected in (True, False):
        places = [i for i, color in enumerate(colors) if (color == REJECTED) == are_rejected]
        painted = paint_numbers([masks[i] for i in places], image_hw=image_hw, picture_hw=picture_hw)
        numbers = np.where(painted >= 0, np.array([*places, -1])[painted], numbers)
    return numbers


def _fit(image_hw: Size) -> Size:
    """The size that ``draw.shrink_to_fit`` gives."""
    scale = min(1.0, SIDE_PX / max(image_hw))
    height, width = (max(1, round(side * scale)) for side in image_hw)
    return height, width


def _to_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
