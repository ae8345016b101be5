"""A prompt as it was given: understood for sure, or an error that says what to do."""

from typing import Any

import numpy as np
import pytest

from labeler.errors import PROMPT_ERROR_KINDS, PromptError
from labeler.orientation import invert, turn_points
from labeler.prompts import Prompt, fit_prompt
from labeler.types import Image

NAN = float("nan")


def picture(*, orientation: int = 1, stored_hw: tuple[int, int] = (40, 60), exif: str = "apply") -> Image:
    hw = stored_hw[::-1] if orientation >= 5 and exif == "apply" else stored_hw
    return Image(pixels=np.zeros((*hw, 3), np.uint8), stored_hw=stored_hw, exif_orientation=orientation)


def fit(image: Image, *, exif: Any = "apply", frame: Any = None, **prompt: Any) -> Prompt:
    return fit_prompt(Prompt(prompt_id=1, **prompt), image=image, exif=exif, frame=frame)


@pytest.mark.parametrize(
    ("kind", "words", "prompt"),
    [
        ("malformed", "neither a box nor a point", {}),
        ("malformed", "NaN", {"box_xyxy": (1.0, 2.0, NAN, 4.0)}),
        ("malformed", "infinity", {"points_xy": ((float("inf"), 1.0),), "point_labels": (1,)}),
        ("malformed", "2 points but 1 labels", {"points_xy": ((1.0, 1.0), (2.0, 2.0)), "point_labels": (1,)}),
        ("malformed", "64 are the most", {"points_xy": ((1.0, 1.0),) * 65, "point_labels": (1,) * 65}),
        ("malformed", "1 (inside", {"points_xy": ((1.0, 1.0),), "point_labels": (2,)}),
        ("reversed", "10, 10, 5, 20", {"box_xyxy": (10.0, 10.0, 5.0, 20.0)}),
        ("reversed", "10, 20, 15, 10", {"box_xyxy": (10.0, 20.0, 15.0, 10.0)}),
        ("empty", "no area", {"box_xyxy": (10.0, 10.0, 10.0, 20.0)}),
        ("empty", "no area", {"box_xyxy": (10.0, 10.0, 20.0, 10.0)}),
        ("outside", "60 x 40", {"box_xyxy": (60.0, 10.0, 70.0, 20.0)}),
        ("outside", "60 x 40", {"box_xyxy": (10.0, 40.0, 20.0, 50.0)}),
        ("outside", "60 x 40", {"box_xyxy": (-5.0, 10.0, 0.0, 20.0)}),
        ("outside", "60 x 40", {"box_xyxy": (10.0, -5.0, 20.0, 0.0)}),
        ("outside", "61, 1", {"points_xy": ((61.0, 1.0),), "point_labels": (1,)}),
        ("outside", "1, 41", {"points_xy": ((1.0, 41.0),), "point_labels": (1,)}),
        ("outside", "-0.5, 1", {"points_xy": ((-0.5, 1.0),), "point_labels": (1,)}),
        ("outside", "1, -0.5", {"points_xy": ((1.0, -0.5),), "point_labels": (1,)}),
        ("size", "30 x 20", {"box_xyxy": (1.0, 1.0, 5.0, 5.0), "frame_hw": (20, 30)}),
        ("crowd", "many", {"box_xyxy": (1.0, 1.0, 5.0, 5.0), "error": PromptError("crowd", "many")}),
    ],
)
def test_what_is_wrong_is_said(kind: str, words: str, prompt: dict[str, Any]) -> None:
    """A kind of the closed list, and a sentence with the numbers."""
    with pytest.raises(PromptError, match=words.replace("(", r"\(")) as caught:
        fit(picture(), **prompt)
    assert caught.value.kind == kind
    assert kind in PROMPT_ERROR_KINDS


def test_a_box_may_stick_out() -> None:
    """Detectors' boxes do; what is asked is the box as it is."""
    assert fit(picture(), box_xyxy=(-5.0, -5.0, 70.0, 20.0)).box_xyxy == (-5.0, -5.0, 70.0, 20.0)


@pytest.mark.parametrize(
    "prompt",
    [
        {"box_xyxy": (-5.0, -5.0, 0.5, 0.5)},
        {"box_xyxy": (59.5, 39.5, 70.0, 50.0)},
        {"points_xy": ((0.0, 0.0), (60.0, 40.0)), "point_labels": (1, 0)},
        {"points_xy": ((1.0, 1.0),) * 64, "point_labels": (1,) * 64},
    ],
)
def test_the_utmost_is_still_asked(prompt: dict[str, Any]) -> None:
    """A corner of a box in the image, points on its edges, as many as may be."""
    asked = fit(picture(), **prompt)
    assert {name: getattr(asked, name) for name in prompt} == prompt


@pytest.mark.parametrize(
    ("orientation", "frame_hw", "frame", "expected"),
    [
        (6, (40, 60), None, (20.0, 5.0, 30.0, 15.0)),  # The stored size: 40 x 60 is turned to 60 x 40.
        (6, (60, 40), None, (5.0, 10.0, 15.0, 20.0)),
        (6, None, None, "frame"),
        (3, (40, 60), None, "frame"),
        (6, None, "stored", (20.0, 5.0, 30.0, 15.0)),
        (6, None, "upright", (5.0, 10.0, 15.0, 20.0)),
        (6, (40, 60), "upright", (5.0, 10.0, 15.0, 20.0)),  # What a person says counts.
        (3, None, "stored", (45.0, 20.0, 55.0, 30.0)),
        (1, None, None, (5.0, 10.0, 15.0, 20.0)),
    ],
)
def test_the_frame_is_told_or_never_guessed(orientation: int, frame_hw: Any, frame: Any, expected: Any) -> None:
    """By width and height, else by --prompts-frame, else it is an error that names the option."""
    given = {"box_xyxy": (5.0, 10.0, 15.0, 20.0), "frame_hw": frame_hw}
    if expected == "frame":
        with pytest.raises(PromptError, match="--prompts-frame") as caught:
            fit(picture(orientation=orientation), frame=frame, **given)
        assert caught.value.kind == "frame"
    else:
        assert fit(picture(orientation=orientation), frame=frame, **given).box_xyxy == expected


def test_a_square_photo_can_not_tell_its_frame() -> None:
    """Upright and stored have the same size."""
    with pytest.raises(PromptError, match="can't tell"):
        fit(picture(orientation=8, stored_hw=(50, 50)), box_xyxy=(1.0, 1.0, 5.0, 5.0), frame_hw=(50, 50))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_as_pixels_do(orientation: int) -> None:
    """There as the decoder turns a marked pixel, and back."""
    turns = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.T}
    turns |= {6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a)}
    stored = np.zeros((4, 7), np.bool_)
    stored[1, 5] = True
    upright = turns.get(orientation, lambda a: a)(stored)
    (y,), (x,) = np.nonzero(upright)
    centre = turn_points(np.array([[5.5, 1.5]]), orientation, image_hw=stored.shape)
    assert centre.tolist() == [[x + 0.5, y + 0.5]]
    back = turn_points(centre, invert(orientation), image_hw=upright.shape)
    assert back.tolist() == [[5.5, 1.5]]


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_in_the_stored_frame_want_upright_prompts_turned_back(orientation: int) -> None:
    """With --exif ignore masks are in the stored frame: a box given upright goes there."""
    image = picture(orientation=orientation, exif="ignore")
    upright_hw = (60, 40) if orientation == 6 else (40, 60)
    box = fit(image, exif="ignore", frame="upright", box_xyxy=(5.0, 10.0, 15.0, 20.0), frame_hw=upright_hw).box_xyxy
    assert box == ((10.0, 25.0, 20.0, 35.0) if orientation == 6 else (45.0, 20.0, 55.0, 30.0))
