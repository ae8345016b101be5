"""A prompt as somebody gave it -> what the model is asked, in the frame of the masks; or what is wrong with it.

Must not know files of prompts, models or jobs. Nothing is guessed: a prompt that can't be understood for sure is a
``PromptError``, whose kind and reason become its row. Boxes are edges of pixels: a box of the whole image is
``[0, 0, width, height]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from labeler.errors import PromptError
from labeler.options import Exif, Frame
from labeler.orientation import invert, turn_hw, turn_points
from labeler.types import MAX_POINTS, Float64, Image, Size

Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, as it was given.

    Attributes:
        prompt_id: its number in the run.
        source_id: the id that its file gives it.
        image: how its file names the image.
        image_id: the image of the run that this is; None: there is none.
        category_id: the file's, carried along.
        box_xyxy: left, top, right, bottom, in pixels.
        points_xy, point_labels: points inside (1) and outside (0) of the object.
        frame_hw: the size of the image that the prompt was made for, where its file says it.
        error: what was wrong with it where it was read.
    """

    prompt_id: int
    source_id: str | None = None
    image: str | None = None
    image_id: int | None = None
    category_id: int | None = None
    box_xyxy: Numbers | None = None
    points_xy: tuple[Numbers, ...] = ()
    point_labels: tuple[int, ...] = ()
    frame_hw: Size | None = None
    error: PromptError | None = None


def fit_prompt(prompt: Prompt, *, image: Image, exif: Exif, frame: Frame | None) -> Prompt:
    """The prompt in the frame of the masks.

    Args:
        prompt: in the frame of its file.
        image: the decoded picture.
        exif: how it was decoded: ``apply`` makes masks upright.
        frame: the frame of the prompts, where a person said it.

    Raises:
        PromptError: it can't be asked.
    """
    if prompt.error is not None:
        raise prompt.error
    _check_numbers(prompt)
    frame = _find_frame(prompt, image=image, exif=exif, frame=frame)
    masks_frame: Frame = "upright" if exif == "apply" else "stored"
    if frame not in (None, masks_frame):
        prompt = _turn_prompt(prompt, image=image, to_upright=masks_frame == "upright")
    _check_inside(prompt, image_hw=image.hw)
    return prompt


def _check_numbers(prompt: Prompt) -> None:
    box, points, labels = prompt.box_xyxy, prompt.points_xy, prompt.point_labels
    if box is None and not points:
        raise PromptError("malformed", "it has neither a box nor a point")
    if len(points) != len(labels):
        raise PromptError("malformed", f"it has {len(points)} points but {len(labels)} labels")
    if len(points) > MAX_POINTS:
        raise PromptError("malformed", f"it has {len(points)} points; {MAX_POINTS} are the most")
    if not set(labels) <= {0, 1}:
        raise PromptError("malformed", "a point's label is 1 (inside the object) or 0 (outside)")
    if not np.isfinite([*(box or ()), *(number for point in points for number in point)]).all():
        raise PromptError("malformed", "it holds NaN or infinity")
    if box is None:
        return
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        raise PromptError("reversed", f"its box ends before it begins: {_describe(box)} as left, top, right, bottom")
    if x1 == x0 or y1 == y0:
        raise PromptError("empty", f"its box has no area: {_describe(box)}")


def _find_frame(prompt: Prompt, *, image: Image, exif: Exif, frame: Frame | None) -> Frame | None:
    """The frame that the prompt is in; None where the two are the same."""
    stored_hw = image.stored_hw
    upright_hw = turn_hw(stored_hw, image.exif_orientation)
    wanted = prompt.frame_hw
    if wanted is not None and wanted not in (stored_hw, upright_hw):
        raise PromptError(
            "size",
            f"it was made for an image of {wanted[1]} x {wanted[0]} pixels, but this one has {image.hw[1]} x {image.hw[0]}; "
            "mend its file's width and height, or leave them out",
        )
    if image.exif_orientation == 1:
        return None
    if frame is not None:
        return frame
    if wanted is not None and stored_hw != upright_hw:
        return "upright" if wanted == upright_hw else "stored"
    why = "its file does not say the image's width and height" if wanted is None else "its width and height can't tell"
    raise PromptError(
        "frame",
        f"EXIF turns the image (orientation {image.exif_orientation}) and {why} whether the prompt is for the upright or "
        "the stored picture; say --prompts-frame",
    )


def _turn_prompt(prompt: Prompt, *, image: Image, to_upright: bool) -> Prompt:
    way, from_hw = image.exif_orientation, image.stored_hw
    if not to_upright:
        way, from_hw = invert(way), turn_hw(from_hw, way)

    def turn(points: Sequence[Numbers]) -> Float64:
        flat = np.array(points, np.float64).reshape(-1, 2)
        return turn_points(flat, way, image_hw=from_hw)

    box = None
    if prompt.box_xyxy is not None:
        corners = turn([prompt.box_xyxy[:2], prompt.box_xyxy[2:]])
        box = tuple(np.concatenate([corners.min(axis=0), corners.max(axis=0)]).tolist())
    points = tuple((x, y) for x, y in turn(prompt.points_xy).tolist())
    return replace(prompt, box_xyxy=box, points_xy=points)


def _check_inside(prompt: Prompt, *, image_hw: Size) -> None:
    """A box may stick out of the image, as detectors' do, and is asked as it is; it may not lie beside it."""
    height, width = image_hw
    size = f"its image is {width} x {height} pixels"
    if prompt.box_xyxy is not None:
        x0, y0, x1, y1 = prompt.box_xyxy
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise PromptError("outside", f"its box {_describe(prompt.box_xyxy)} lies beside the image; {size}")
    for x, y in prompt.points_xy:
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError("outside", f"its point {_describe((x, y))} lies beside the image; {size}")


def _describe(numbers: Numbers) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
