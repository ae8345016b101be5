"""The page over a finished run: look through its images, reject masks, refine them, draw new ones. Gradio, made of ``widgets``.

Must not know HTTP or files: ``review_desk`` reads the run and writes what is decided. One tab's state is one value.
"""

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gradio as gr
import numpy as np

from labeler.draw import CHOSEN, REJECTED
from labeler.errors import ImageError, LabelerError
from labeler.pages.review_desk import ORDERS, Order, ReviewDesk, RunImage, find_inner_point, find_mask, row_to_runs
from labeler.pages.scene import Scene, make_empty_scene, make_scene
from labeler.pages.session import Asked, Clicks, Desk
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
    read_point,
    say,
    say_error,
    show_answers,
)
from labeler.reviews import Decision, MaskKey, ReviewedMask
from labeler.runs import read_photo
from labeler.storage import printable_name
from labeler.types import Image

Doing = Literal["Reject", "Refine", "Draw"]

Seen = tuple[ReviewedMask, ...] | None
"""The masks that a scene showed; None where it was the one that is being made."""

NOT_SAVED = "this mask is not saved: save it, or do that again to drop it"

SECONDS_TO_READ = 0.7
"""A step that is repeated sooner is a double click, not an answer to the warning: nobody can have read it."""

MAX_NAMES = 1000
"""Images in the list to choose from, around the one that is shown; the buttons reach all."""

MAX_SEEN = 8
"""Scenes of one image that are remembered: as many clicks may be on their way at once."""


@dataclass(frozen=True, slots=True)
class RunView:
    """What one tab shows.

    Attributes:
        order: the places of the run's images, as they are gone through; ``position`` is where, ``sorted_by`` how.
        pictured: the image whose picture was sent.
        seen: what the tab's last scenes of it showed, by their version. A click means what the person saw, not what
            others made of it since.
        doing: what a click does.
        target: the mask that is being refined.
        asked: what was clicked to refine or draw, and the answers.
        decided: the decisions of this tab, each with what held before; the last may be taken back.
        warned_of: what was done last, if it would have dropped a mask that is not saved: done again, it does. ``warned_s``
            is when, on the monotonic clock.
    """

    order: Sequence[int]
    position: int = 0
    sorted_by: Order = ORDERS[0]
    pictured: int | None = None
    seen: tuple[tuple[str, Seen], ...] = ()
    doing: Doing = "Reject"
    target: MaskKey | None = None
    asked: Asked = field(default_factory=Asked)
    decided: tuple[tuple[int, Decision, Decision | None], ...] = ()
    warned_of: tuple[str, object] | None = None
    warned_s: float = 0.0


class ReviewPage:
    """The page of one run.

    Args:
        desk: the model, if there is one.
        review: the run.
        title: what stands at the head.
    """

    def __init__(self, desk: Desk, review: ReviewDesk, *, title: str) -> None:
        self._desk, self._review, self._title = desk, review, title

    def build(self) -> Any:
        """Lay the page out and connect it: gradio's Blocks."""
        can_ask = self._desk.predictor is not None
        with make_blocks("SAM labeler: review") as page:
            # A function would be called by a load event of its own, which may end after the one that shows the first image.
            view = gr.State(RunView(range(len(self._review.images))))
            gr.HTML(f'<div class="heading"><b>SAM labeler: review</b><span>{html.escape(self._title)}</span></div>')
            with gr.Row():
                with gr.Column(scale=7, min_width=480):
                    status = gr.HTML(elem_classes="status", elem_id="status")
                    stage = make_stage()
                with gr.Column(scale=3, min_width=300):
                    order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Images", elem_id="order")
                    names = gr.Dropdown([], show_label=False, container=False, elem_id="photo-name")
                    with gr.Row():
                        before = gr.Button("Previous", size="sm", min_width=90, elem_id="previous")
                        after = gr.Button("Next", size="sm", min_width=90, elem_id="next")
                    doings = ["Reject", "Refine", "Draw"] if can_ask else ["Reject"]
                    doing = gr.Radio(doings, value="Reject", label="A click", info=_DOING_INFO[can_ask], elem_id="doing")
                    mode = gr.Radio(list(MODES), value="Add", show_label=False, info=MODE_INFO, visible=False, elem_id="mode")
                    answers = gr.Radio([], label="Which did you mean?", visible=False, elem_id="answers")
                    with gr.Row():
                        undo = gr.Button("Undo", size="md", min_width=90, elem_id="undo")
                        save = gr.Button(
                            "Save mask",
                            variant="primary",
                            size="md",
                            min_width=90,
                            visible=can_ask,
                            interactive=False,
                            elem_id="save",
                        )
                    tally = gr.HTML(elem_classes="status", elem_id="tally")
                    make_hint("Keys: ← and → lead to the previous and the next image, Ctrl+Z undoes.")
            shown = [view, stage, status, order, names, doing, answers, mode, save, tally]
            listen(page.load, self._show, [view], shown)
            listen(order.select, self._sort, [view, order], shown)
            listen(names.select, self._choose, [view, names], shown)
            listen(before.click, lambda view: self._turn(view, -1), [view], shown)
            listen(after.click, lambda view: self._turn(view, 1), [view], shown)
            listen(stage.turned, self._turn_by_key, [view], shown)
            listen(doing.input, self._do, [view, doing], shown)
            listen(stage.clicked, self._click, [view, mode, doing], shown)
            listen(stage.boxed, self._drag, [view], shown)
            listen(answers.input, self._pick, [view, answers], shown)
            listen(undo.click, self._undo, [view], shown)
            listen(stage.undone, self._undo, [view], shown)
            listen(save.click, self._save, [view], shown)
        return page

    def _get_image(self, view: RunView) -> RunImage:
        return self._review.images[view.order[view.position]]

    def _read(self, image: RunImage) -> Image:
        if image.row["status"] != "ok":
            raise ImageError("internal", f"{image.row['error_kind']}: {image.row['error_message']}")
        return self._desk.open(str(image.row["image_id"]), lambda: read_photo(image.row, self._review.run))

    def _sort(self, view: RunView, order: Order) -> tuple[Any, ...]:
        try:
            return self._go(view, ("sort", order), order=self._review.sort(order), sorted_by=order, position=0)
        except LabelerError as error:
            return self._show(view, error=describe_error(error))

    def _choose(self, view: RunView, position: int) -> tuple[Any, ...]:
        return self._go(view, ("choose", position), position=min(max(int(position), 0), len(view.order) - 1))

    def _turn(self, view: RunView, by: int) -> tuple[Any, ...]:
        return self._go(view, ("turn", by), position=(view.position + by) % len(view.order))

    def _turn_by_key(self, view: RunView, data: gr.EventData) -> tuple[Any, ...]:
        return self._turn(view, 1 if data.by == 1 else -1)

    def _do(self, view: RunView, doing: Doing) -> tuple[Any, ...]:
        return self._go(view, ("do", doing), doing=doing if self._desk.predictor is not None else "Reject")

    def _go(self, view: RunView, step: tuple[str, object], **changes: Any) -> tuple[Any, ...]:
        """Leave what is being made. A mask that is not saved is dropped only by who was told so and does the same again."""
        was_told = view.warned_of == step and time.monotonic() > view.warned_s + SECONDS_TO_READ
        if view.asked.mask is not None and not was_told:
            return self._show(view, error=NOT_SAVED, warned_of=step)
        return self._show(replace(_leave(view), **changes))

    def _click(self, view: RunView, mode: Mode, doing: Doing, data: gr.EventData) -> tuple[Any, ...]:
        if doing != view.doing:  # Chosen a moment ago: the click came first.
            if view.asked.mask is not None:
                return self._show(view, error=NOT_SAVED)
            view = replace(_leave(view), doing=doing)
        image, seen = self._get_image(view), dict(view.seen)
        version = str(getattr(data, "version", None))
        try:
            photo = self._read(image)
            if version in seen and (view.doing == "Draw" or view.target is not None):
                return self._ask(view, click(view.asked, data, image=photo, mode=mode))
            masks = seen.get(version)
            if masks is None:
                return self._look_again(view)
            takes_back = view.doing == "Reject" and bool(getattr(data, "outside", False))
            mask = find_mask(masks, read_point(data, photo), only_rejected=takes_back)
            if mask is None:
                return self._show(view, note="there is no rejected mask" if takes_back else "there is no mask")
            if view.doing == "Refine":
                return self._show(replace(view, target=mask.key, asked=_begin(mask)))
            decided = self._review.toggle(image, mask)
            if decided is None:
                return self._show(view, note="that was done already, here or in another tab")
            return self._show(replace(view, decided=(*view.decided, (view.order[view.position], *decided))))
        except LabelerError as error:
            return self._show(view, error=describe_error(error))

    def _drag(self, view: RunView, data: gr.EventData) -> tuple[Any, ...]:
        if getattr(data, "version", None) not in dict(view.seen):
            return self._look_again(view)
        if view.doing != "Draw" and view.target is None:
            return self._show(view)
        try:
            return self._ask(view, drag(view.asked, data, image=self._read(self._get_image(view))))
        except LabelerError as error:
            return self._show(view, error=describe_error(error))

    def _look_again(self, view: RunView) -> tuple[Any, ...]:
        return self._show(replace(view, pictured=None), error=LOOK_AGAIN)

    def _ask(self, view: RunView, asked: Asked) -> tuple[Any, ...]:
        image = self._get_image(view)
        answered = self._desk.ask(asked, key=str(image.row["image_id"]), image=self._read(image))
        return self._show(replace(view, asked=answered))

    def _pick(self, view: RunView, number: int) -> tuple[Any, ...]:
        return self._show(replace(view, asked=view.asked.choose(int(number))))

    def _undo(self, view: RunView) -> tuple[Any, ...]:
        """The last click that is not saved yet; where there is none, the last decision of this tab."""
        try:
            if view.asked.before is not None:
                return self._show(replace(view, asked=view.asked.undone))
            if view.target is not None:
                return self._show(_leave(view))
            if not view.decided:
                return self._show(view, note="nothing was decided here yet")
            place, decision, before = view.decided[-1]
            self._review.take_back(decision, before)
            position = view.order.index(place)
            return self._show(replace(_leave(view), position=position, decided=view.decided[:-1]))
        except LabelerError as error:
            return self._show(view, error=describe_error(error))

    def _save(self, view: RunView) -> tuple[Any, ...]:
        mask = view.asked.mask
        if mask is None:
            return self._show(view, note="there is no new mask yet: click first")
        try:
            decided = self._review.put(self._get_image(view), mask, key=view.target)
        except LabelerError as error:
            return self._show(view, error=describe_error(error))
        return self._show(replace(_leave(view), decided=(*view.decided, (view.order[view.position], *decided))))

    def _show(
        self, view: RunView, *, note: str = "", error: str = "", warned_of: tuple[str, object] | None = None
    ) -> tuple[Any, ...]:
        """The view as it stands: for the stage, the line above it, and what is beside it."""
        image, view = self._get_image(view), replace(view, warned_of=warned_of, warned_s=time.monotonic())
        try:
            scene, words, masks = self._make_scene(view, image)
            seen = view.seen if view.pictured == image.place else ()
            view = replace(view, pictured=image.place, seen=(*seen, (scene["version"], masks))[-MAX_SEEN:])
        except LabelerError as fault:
            scene, words = make_empty_scene(describe_error(fault), failed=True, can_turn=True), say(note=_name(image))
            view = replace(view, pictured=None, seen=())
        if note or error:
            words = say_error(error) if error else say(note=note)
        first = max(0, min(view.position - MAX_NAMES // 2, len(view.order) - MAX_NAMES))
        listed = range(first, min(first + MAX_NAMES, len(view.order)))
        choices = [(f"{i + 1}  {self._describe_image(self._review.images[view.order[i]])}", i) for i in listed]
        tally = [(what, number) for what, number in self._review.count().items()]
        return (
            view,
            scene,
            words,
            gr.Dropdown(value=view.sorted_by),
            gr.Dropdown(choices, value=view.position),
            gr.Radio(value=view.doing),
            show_answers(view.asked),
            gr.Radio(visible=view.doing == "Draw" or view.target is not None),
            gr.Button(interactive=view.asked.mask is not None),
            say(*tally, note="in all"),
        )

    def _describe_image(self, image: RunImage) -> str:
        found = f"{self._review.count_masks(image)} masks" if image.row["status"] == "ok" else image.row["error_kind"]
        return f"{_name(image)} · {found}"

    def _make_scene(self, view: RunView, image: RunImage) -> tuple[Scene, str, Seen]:
        photo = self._read(image)
        if view.doing != "Reject":
            self._desk.prepare(str(image.row["image_id"]), photo)
        masks = self._review.list_masks(image)
        is_asking = view.target is not None or not view.asked.clicks.is_empty or view.asked.clicks.corner_xy is not None
        common: dict[str, Any] = {"photo_id": str(image.place), "has_photo": view.pictured == image.place, "can_turn": True}
        if is_asking:
            new, old = view.asked.mask, view.asked.refined
            runs = ([] if old is None else [old]) + ([] if new is None else [new.runs(0)])
            colors = [CHOSEN if new is None else REJECTED][: old is not None] + [CHOSEN][: new is not None]
            clicks = view.asked.clicks
            scene = make_scene(photo, masks=runs, colors=colors, clicks=clicks, is_unsaved=new is not None, **common)
            if new is None:
                return scene, say(note="click what belongs to it, or what does not; then save"), None
            return scene, say(*list_figures(new), note="not saved yet"), None
        scene = make_scene(
            photo,
            masks=[row_to_runs(mask.row) for mask in masks],
            colors=[REJECTED if mask.verdict == "reject" else mask.row["mask_id"] for mask in masks],
            tips=[_describe_mask(mask) for mask in masks],
            can_click=view.doing == "Draw",
            **common,
        )
        num_kept = sum(mask.verdict != "reject" for mask in masks)
        num_rejected = sum(mask.verdict == "reject" and not mask.is_drawn for mask in masks)
        figures = [("masks", num_kept), ("rejected", num_rejected), ("size", f"{photo.hw[1]} x {photo.hw[0]}")]
        return scene, say(*figures, note=_name(image)), tuple(masks)


_DOING_INFO = {
    False: "on a mask rejects it; Shift or the right button takes a rejected one back.",
    True: "rejects a mask (Shift or the right button takes it back), chooses one to refine, or draws a new one.",
}


def _leave(view: RunView) -> RunView:
    """Without what was clicked and not saved."""
    return replace(view, target=None, asked=Asked())


def _begin(mask: ReviewedMask) -> Asked:
    """To mend a mask. A point in it is asked along, the one that found it: else a click beside it would move it there."""
    runs, points = row_to_runs(mask.row), mask.row["point_coords"]
    x, y = points[0] if points else (np.nan, np.nan)  # A box asked for some.
    if not np.isfinite([x, y]).all() or find_mask([mask], (x, y)) is None:
        x, y = find_inner_point(runs, image_hw=tuple(mask.row["segmentation"]["size"]))
    return Asked(Clicks().add_point((x, y), is_inside=True), refined=runs)


def _name(image: RunImage) -> str:
    return printable_name(image.row["file_name"])


def _describe_mask(mask: ReviewedMask) -> str:
    row = mask.row
    what = {"reject": ", rejected", "refine": ", refined", "draw": ", drawn"}.get(mask.verdict or "", "")
    scores = {name: row[name] for name in ("predicted_iou", "stability_score", "area")}
    return make_tip(f"mask {row['mask_id']}{what}", **scores)
