"""What both pages are made of: the stage, listeners, words above it, and what clicks of a browser mean. The gradio seam.

Must not know what is opened or decided. What comes from a browser may be anything: numbers are checked here, and all that
is shown as HTML is taken literally.
"""

import html
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, Literal

import gradio as gr
import numpy as np

from labeler.errors import ImageError, LabelerError
from labeler.pages.session import Asked
from labeler.types import Image, MaskSet

Mode = Literal["Add", "Remove", "Box"]
MODES: tuple[Mode, ...] = ("Add", "Remove", "Box")
MODE_INFO = "Shift or the right button removes; dragging always draws a box."

LOOK_AGAIN = "that click was on what this page does not show any more; look again"
"""What is said of a click that was made before the tab showed what holds, or after the server forgot the tab."""


def make_blocks(title: str) -> Any:
    """An empty page, which tells nobody that it is there."""
    return gr.Blocks(title=title, analytics_enabled=False, fill_width=True)


def make_stage() -> gr.HTML:
    """The part of a page that shows photos and is clicked on. Its value is a scene."""
    script = read_asset("stage.js")
    stage = gr.HTML(html_template="<div></div>", js_on_load=script, apply_default_css=False, elem_id="stage")
    listen(stage.poked, lambda: None, [], [], concurrency_id="poke")
    return stage


def make_hint(text: str) -> None:
    """A small line beside the stage."""
    gr.HTML(html.escape(text), elem_classes="hint-line")


def read_asset(name: str) -> str:
    """A file of the page's own: style or script."""
    return resources.files("labeler.pages").joinpath("assets", name).read_text(encoding="utf-8")


def listen(event: Any, fn: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], **more: Any) -> Any:
    """A listener as this house wants them: none is an endpoint for others, no click is lost, one after the other."""
    settings = {"api_visibility": "private", "trigger_mode": "multiple", "show_progress": "hidden", "concurrency_id": "tab"}
    return event(fn, inputs=list(inputs), outputs=list(outputs), **(settings | more))


def say(*figures: tuple[str, object], note: str = "") -> str:
    """The line above the stage, as HTML; the texts are taken literally."""
    parts = [f'<span class="figure">{html.escape(name)} <b>{html.escape(str(value))}</b></span>' for name, value in figures]
    return "".join(parts) + html.escape(note)


def say_error(text: str) -> str:
    """The same, of what went wrong."""
    return f'<span class="error">{html.escape(text)}</span>'


def describe_error(error: LabelerError) -> str:
    """A sentence for a person."""
    return error.reason if isinstance(error, ImageError) else str(error)


def read_point(data: gr.EventData, image: Image, *, names: tuple[str, str] = ("x", "y")) -> tuple[float, float]:
    """A point of an event, within the photo: what comes from outside may be anything."""
    height, width = image.hw
    try:
        x, y = (float(getattr(data, name)) for name in names)
    except (AttributeError, TypeError, ValueError):
        x, y = np.nan, np.nan
    if not np.isfinite([x, y]).all():
        raise ImageError("internal", "a click is a pair of numbers")
    return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))


def click(asked: Asked, data: gr.EventData, *, image: Image, mode: Mode) -> Asked:
    """What is asked after a click: a point inside, one outside (also with Shift or the right button), a box's corner."""
    xy = read_point(data, image)
    if mode == "Box":
        step = asked.clicks.click_corner(xy)
    else:
        step = asked.clicks.add_point(xy, is_inside=mode == "Add" and not getattr(data, "outside", False))
    return asked.add(step)


def drag(asked: Asked, data: gr.EventData, *, image: Image) -> Asked:
    """What is asked after a box was dragged."""
    corners = read_point(data, image, names=("x0", "y0")), read_point(data, image, names=("x1", "y1"))
    return asked.add(asked.clicks.set_box(*corners))


def show_answers(asked: Asked) -> gr.Radio:
    """The answers to choose from, as a person reads them; hidden where there is no choice."""
    masks = asked.answers
    if masks is None or len(masks) < 2:
        return gr.Radio(visible=False)
    answers = [(f"{'ABC'[i]} · IoU {masks.predicted_iou[i]:.3f} · {masks.areas[i]:,} px", i) for i in range(len(masks))]
    return gr.Radio(answers, value=asked.chosen, visible=True)


def list_figures(mask: MaskSet) -> list[tuple[str, str]]:
    """What the line above the stage says of one mask."""
    scores = [("predicted IoU", f"{mask.predicted_iou[0]:.3f}"), ("stability", f"{mask.stability_score[0]:.3f}")]
    return [*scores, ("area", f"{mask.areas[0]:,} px")]


def make_tip(name: str, *, predicted_iou: float, stability_score: float, area: int) -> str:
    """What the pointer shows over a mask."""
    return f"{name}\npredicted IoU {predicted_iou:.3f}\nstability {stability_score:.3f}\narea {area:,} px"
