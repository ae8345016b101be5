"""The page to click on: choose a photo, click or drag, look at the masks, save them. Gradio, made of ``widgets``.

Must not know HTTP, files or runs: ``serve`` opens the door, ``shelf`` has the photos, ``session`` what was clicked. What a
tab of a browser shows is one value (``View``) that gradio keeps on this side; every event makes another of it.
"""

import base64
import html
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

import gradio as gr

from labeler.errors import ImageError, LabelerError
from labeler.options import MaskOptions
from labeler.pages.downloads import masks_to_coco, masks_to_png
from labeler.pages.scene import make_empty_scene, make_scene
from labeler.pages.session import Asked, Desk
from labeler.pages.shelf import MAX_LISTED, Photo, Shelf
from labeler.pages.widgets import (
    LOOK_AGAIN,
    MODE_INFO,
    MODES,
    Mode,
    click,
    describe_error,
    drag,
    list_figures,
    listen,
    make_blocks,
    make_hint,
    make_stage,
    make_tip,
    read_asset,
    say,
    say_error,
    show_answers,
)
from labeler.types import Image, MaskSet

SLIDERS = {
    "points_per_side": (1, 64, 1),
    "pred_iou_thresh": (0.0, 1.2, 0.01),
    "stability_score_thresh": (0.0, 1.0, 0.01),
    "min_mask_region_area": (0, 2000, 10),
    "stability_score_offset": (0.0, 2.0, 0.05),
    "box_nms_thresh": (0.0, 1.0, 0.05),
}
"""The generator's options that "everything" offers: least, most, step. The last two are folded away."""

NUM_SHOWN_SLIDERS = 4

_turns = itertools.count(1)


@dataclass(frozen=True, slots=True)
class View:
    """What one tab shows.

    Attributes:
        photo: the open one.
        has_photo: whether its picture was sent.
        asked: what was clicked, and the answers.
        found: the masks of "everything", the last that were found.
        found_after: what had been clicked then: until more is, they are shown.
    """

    photo: Photo | None = None
    has_photo: bool = False
    asked: Asked = field(default_factory=Asked)
    found: MaskSet | None = None
    found_after: Asked | None = None

    @property
    def everything(self) -> MaskSet | None:
        """The masks of "everything", where those are shown; None where the answer to the clicks is."""
        return self.found if self.asked is self.found_after else None


class ClickPage:
    """The page over a folder of photos and those that are dropped.

    Args:
        desk: the model.
        shelf: the photos.
        title: what stands at the head, beside the program's name.
    """

    def __init__(self, desk: Desk, shelf: Shelf, *, title: str) -> None:
        self._desk, self._shelf, self._title = desk, shelf, title

    def build(self) -> Any:
        """Lay the page out and connect it: gradio's Blocks."""
        with make_blocks("SAM labeler") as page:
            view = gr.State(View())
            gr.HTML(f'<div class="heading"><b>SAM labeler</b><span>{html.escape(self._title)}</span></div>')
            with gr.Row():
                with gr.Column(scale=7, min_width=480):
                    status = gr.HTML(elem_classes="status")
                    stage = make_stage()
                with gr.Column(scale=3, min_width=300):
                    names = gr.Dropdown([], label="Photo", visible=False, elem_id="photo-name")
                    gr.Button("Choose a file ...", size="sm", min_width=90, elem_id="choose-file")
                    with gr.Tab("Click"):
                        mode = gr.Radio(list(MODES), value="Add", label="A click", info=MODE_INFO, elem_id="mode")
                    with gr.Tab("Everything"):
                        sliders = self._build_sliders()
                        find = gr.Button("Find everything", variant="primary", size="md", min_width=90, elem_id="find")
                    answers = gr.Radio([], label="Which did you mean?", visible=False, elem_id="answers")
                    with gr.Row():
                        undo = gr.Button("Undo", size="md", min_width=90, elem_id="undo")
                        clear = gr.Button("Clear", size="md", min_width=90, elem_id="clear")
                    with gr.Row():
                        png = gr.Button("Save PNG", size="sm", min_width=90, elem_id="save-png")
                        coco = gr.Button("Save COCO", size="sm", min_width=90, elem_id="save-coco")
                    make_hint("Keys: Ctrl+Z undoes; a click with Shift removes.")
            saver = gr.HTML(html_template="<div></div>", js_on_load=read_asset("saver.js"), visible="hidden")
            shown = [view, stage, status, answers]
            listen(page.load, self._start, [view], [names, *shown])
            listen(names.select, self._choose, [names], shown)
            listen(stage.dropped, self._drop, [view], [names, *shown])
            listen(stage.refused, self._refuse, [view], [names, *shown])
            listen(stage.clicked, self._click, [view, mode], shown)
            listen(stage.boxed, self._drag, [view], shown)
            listen(answers.input, self._pick, [view, answers], shown)
            listen(undo.click, self._undo, [view], shown)
            listen(stage.undone, self._undo, [view], shown)
            listen(clear.click, self._clear, [view], shown)
            more = {"concurrency_id": "everything", "trigger_mode": "once", "show_progress": "full"}
            found = gr.State(None)
            finding = listen(find.click, self._find_all, [view, *sliders], [found, status], show_progress_on=status, **more)
            listen(finding.then, self._show_found, [view, found], [found, *shown])
            listen(png.click, partial(self._save, kind="png"), [view], [saver, status])
            listen(coco.click, partial(self._save, kind="coco"), [view], [saver, status])
        return page

    def _build_sliders(self) -> list[gr.Slider]:
        def build(name: str) -> gr.Slider:
            field = MaskOptions.model_fields[name]
            least, most, step = SLIDERS[name]
            value = self._desk.defaults.get(name, field.default)
            label = name.replace("_", " ")
            return gr.Slider(least, most, value=value, step=step, label=label, elem_id=name.replace("_", "-"))

        sliders = [build(name) for name in list(SLIDERS)[:NUM_SHOWN_SLIDERS]]
        with gr.Accordion("More", open=False):
            sliders += [build(name) for name in list(SLIDERS)[NUM_SHOWN_SLIDERS:]]
        return sliders

    def _start(self, view: View) -> tuple[Any, ...]:
        try:
            names = self._shelf.list_names()
        except LabelerError as error:
            return gr.Dropdown(visible=False), *self._fail(describe_error(error))
        label = f"Photo (the first {len(names):,} of the folder)" if len(names) == MAX_LISTED else "Photo"
        if not names:
            return gr.Dropdown(visible=False), view, make_empty_scene("", can_drop=True), "", gr.Radio(visible=False)
        return gr.Dropdown(names, label=label, visible=True, value=names[0]), *self._choose(names[0])

    def _choose(self, name: str) -> tuple[Any, ...]:
        return self._open(lambda: self._shelf.find(str(name)))

    def _drop(self, view: View, data: gr.EventData) -> tuple[Any, ...]:
        try:
            photo = self._prepare(lambda: self._shelf.find_dropped(str(data.token), name=str(data.name)))
        except LabelerError as error:
            return self._stay(view, describe_error(error))
        return gr.Dropdown(value=None), *self._show(View(photo))  # None of the list is shown.

    def _refuse(self, view: View, data: gr.EventData) -> tuple[Any, ...]:
        return self._stay(view, f"{data.name}: {data.reason}")

    def _stay(self, view: View, words: str) -> tuple[Any, ...]:
        """What was dropped can't be opened: what is open stays, with all that was clicked."""
        if view.photo is None:
            return gr.Dropdown(value=None), *self._fail(words)
        return gr.skip(), *self._show(view, error=words)

    def _open(self, find: Callable[[], Photo]) -> tuple[Any, ...]:
        try:
            photo = self._prepare(find)
        except LabelerError as error:
            return self._fail(describe_error(error))
        return self._show(View(photo))

    def _prepare(self, find: Callable[[], Photo]) -> Photo:
        """A photo, decoded and being encoded."""
        photo = find()
        self._desk.prepare(photo.key, self._desk.open(photo.key, photo.read))
        return photo

    def _read(self, view: View) -> Image:
        if view.photo is None:
            raise ImageError("missing", "open a photo first")
        return self._desk.open(view.photo.key, view.photo.read)

    def _fail(self, words: str) -> tuple[Any, ...]:
        scene = make_empty_scene(words, failed=True, can_drop=True)
        return View(), scene, say_error(words), gr.Radio(visible=False)

    def _show(self, view: View, *, error: str = "") -> tuple[Any, ...]:
        """The view as it stands, for the stage and what is beside it."""
        try:
            image = self._read(view)
        except LabelerError as fault:
            return self._fail(describe_error(fault))
        assert view.photo is not None
        common: dict[str, Any] = {"photo_id": view.photo.key, "has_photo": view.has_photo, "can_drop": True}
        masks = view.everything
        if masks is not None:
            scene = make_scene(
                image,
                masks=[masks.runs(i) for i in range(len(masks))],
                colors=range(len(masks)),
                tips=[_describe_mask(masks, i) for i in range(len(masks))],
                **common,
            )
            words = view.photo.name if len(masks) else "nothing passed the thresholds: lower them"
            status = say(("masks", len(masks)), ("size", f"{image.hw[1]} x {image.hw[0]}"), note=words)
        else:
            mask = view.asked.mask
            masks_shown = [] if mask is None else [mask.runs(0)]
            scene = make_scene(image, masks=masks_shown, colors=[0], clicks=view.asked.clicks, **common)
            status = _describe_answer(view, image)
        choice = gr.Radio(visible=False) if masks is not None else show_answers(view.asked)
        return replace(view, has_photo=True), scene, say_error(error) if error else status, choice

    def _ask(self, view: View, data: gr.EventData, change: Callable[[Asked, Image], Asked]) -> tuple[Any, ...]:
        """What comes of a click, if it was on the photo that is open: a tab may show one that the server has left."""
        if view.photo is not None and getattr(data, "photo_id", None) != view.photo.key:
            return self._show(replace(view, has_photo=False), error=LOOK_AGAIN)
        try:
            image = self._read(view)
            assert view.photo is not None
            answered = self._desk.ask(change(view.asked, image), key=view.photo.key, image=image)
            return self._show(replace(view, asked=answered))
        except LabelerError as error:
            return self._show(view, error=describe_error(error))

    def _click(self, view: View, mode: Mode, data: gr.EventData) -> tuple[Any, ...]:
        return self._ask(view, data, lambda asked, image: click(asked, data, image=image, mode=mode))

    def _drag(self, view: View, data: gr.EventData) -> tuple[Any, ...]:
        return self._ask(view, data, lambda asked, image: drag(asked, data, image=image))

    def _undo(self, view: View) -> tuple[Any, ...]:
        if view.everything is not None:
            return self._show(replace(view, found=None, found_after=None))
        return self._show(replace(view, asked=view.asked.undone))

    def _clear(self, view: View) -> tuple[Any, ...]:
        return self._show(replace(view, asked=Asked(), found=None, found_after=None))

    def _pick(self, view: View, number: int) -> tuple[Any, ...]:
        return self._show(replace(view, asked=view.asked.choose(int(number))))

    def _find_all(self, view: View, *values: float) -> tuple[Any, ...]:
        """The photo's key and its masks. It may take minutes, in which the tab goes on: what is shown is decided after."""
        options = {name: MaskOptions.model_fields[name].annotation for name in SLIDERS}
        given = {name: int(v) if options[name] is int else float(v) for name, v in zip(SLIDERS, values, strict=True)}
        try:
            found = self._desk.find_all(self._read(view), given)
        except LabelerError as error:
            return None, say_error(describe_error(error))
        assert view.photo is not None
        return (view.photo.key, found), gr.skip()

    def _show_found(self, view: View, found: tuple[str, MaskSet] | None) -> tuple[Any, ...]:
        """What was found, if its photo is still the open one."""
        if found is None:
            return None, *(gr.skip() for _ in range(4))
        if view.photo is None or view.photo.key != found[0]:
            note = "everything was found, but in a photo that is not open any more"
            return None, view, gr.skip(), say(note=note), gr.skip()
        return None, *self._show(replace(view, found=found[1], found_after=view.asked))

    def _save(self, view: View, *, kind: Literal["png", "coco"]) -> tuple[Any, Any]:
        everything = view.everything
        masks = view.asked.mask if everything is None else everything
        if view.photo is None or masks is None or not len(masks):
            return gr.skip(), say_error("there is no mask to save yet")
        stem, note = PurePosixPath(view.photo.name).stem, ""
        if kind == "coco":
            name, kind_of_file, data = f"{stem}_coco.json", "application/json", masks_to_coco(masks, file_name=view.photo.name)
        elif everything is None:
            name, kind_of_file, data = f"{stem}_mask.png", "image/png", masks_to_png(masks, one=True)
        else:
            name, kind_of_file, data = f"{stem}_ids.png", "image/png", masks_to_png(masks, one=False)
            note = "each pixel holds the number of its mask, which looks black in a viewer"
        text = base64.b64encode(data).decode("ascii")
        return {"name": name, "type": kind_of_file, "data": text, "turn": next(_turns)}, say(("saved", name), note=note)


def _describe_mask(masks: MaskSet, i: int) -> str:
    scores = {"predicted_iou": masks.predicted_iou[i], "stability_score": masks.stability_score[i]}
    return make_tip(f"mask {i}", **scores, area=masks.areas[i])


def _describe_answer(view: View, image: Image) -> str:
    clicks, mask = view.asked.clicks, view.asked.mask
    if mask is None:
        if clicks.is_empty and clicks.corner_xy is None:
            assert view.photo is not None
            words = "click on a thing, or drag a box around it"
            return say(("size", f"{image.hw[1]} x {image.hw[0]}"), note=f"{view.photo.name}: {words}")
        if clicks.corner_xy is not None:
            return say(note="now click the opposite corner of the box")
        return say(note="the model finds nothing there; try another click")
    return say(*list_figures(mask), ("clicks", f"{len(clicks.points_xy) + (clicks.box_xyxy is not None)}"))
