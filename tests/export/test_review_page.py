"""The page over a finished run, in a browser; what is decided there, as the exports see it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import page_server
import pytest
from drawn_masks import draw_box
from pycocotools import mask as coco_mask

import export.cli
from labeler import rle
from labeler.reviews import ReviewedMask

HW = (120, 160)
BIG, SMALL, EDGE = (10, 10, 90, 90), (30, 30, 50, 50), (95, 120, 115, 150)
PLACES = {"big": (80, 80), "small": (40, 40), "edge": (135, 105)}

box = partial(draw_box, HW)

MASKS = [box(*corners) for corners in (BIG, SMALL, EDGE)]
CORNER = box(0, 0, 90, 90)  # Holds the point that found it, (1.5, 1.5).


@pytest.fixture
def run(make_run: Any) -> Path:
    """Three masks; one, of a higher score; none; one image that failed."""
    images = [("a.png", HW, MASKS), ("b.png", HW, [CORNER]), ("<b>none</b>.png", HW, []), ("bad.png", None, [])]
    return make_run(images)


@pytest.fixture
def open_tab(browser: Any, run: Path) -> Iterator[Callable[..., page_server.Tab]]:
    """Opens tabs of one page over the run; arguments of the first go to its server."""
    tabs: list[page_server.Tab] = []
    with ExitStack() as stack:
        urls: list[str] = []

        def open_one(*arguments: Any) -> page_server.Tab:
            if not urls:
                urls.append(stack.enter_context(page_server.serve("--run", run, *arguments)))
            tabs.append(page_server.Tab(browser, urls[0]))
            return tabs[-1]

        yield open_one
        for tab in tabs:
            tab.close()


def export_masks(run: Path, *options: str) -> dict[str, list[np.ndarray]]:
    """The masks of ``export coco`` by the image's name."""
    target = run.parent / "coco.json"
    assert export.cli.main(["coco", str(run), str(target), *options]) == 0
    record = json.loads(target.read_text())
    names = {image["id"]: image["file_name"] for image in record["images"]}
    masks: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
    for annotation in record["annotations"]:
        masks[names[annotation["image_id"]]].append(coco_mask.decode(annotation["segmentation"]).astype(bool))
    return masks


def equal(masks: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(masks) == len(expected) and all(np.array_equal(a, b) for a, b in zip(masks, expected, strict=True))


def test_reject_then_export_leaves_that_mask_out(open_tab: Any, run: Path) -> None:
    """The smallest mask under the click; once more takes it back where no other lies, the right button and undo anywhere."""
    tab = open_tab()
    assert tab.says("masks 3")
    assert np.array_equal(tab.read_layer(), MASKS[0] | MASKS[1] | MASKS[2])
    tab.click(*PLACES["small"])
    assert tab.says("masks 2")
    assert equal(export_masks(run)["a.png"], [MASKS[0], MASKS[2]])
    assert equal(export_masks(run, "--ignore-review")["a.png"], MASKS)
    tab.click(*PLACES["small"], button="right")
    assert equal(export_masks(run)["a.png"], MASKS)
    tab.act(lambda: tab.page.locator("#undo").click())
    tab.click(*PLACES["big"])
    assert equal(export_masks(run)["a.png"], [MASKS[2]])
    tab.click(*PLACES["small"])
    assert equal(export_masks(run)["a.png"], [MASKS[1], MASKS[2]])
    for left in ([MASKS[2]], [MASKS[0], MASKS[2]], MASKS):
        tab.act(lambda: tab.page.locator("#undo").click())
        assert equal(export_masks(run)["a.png"], left)


def test_the_page_is_gone_through_in_any_order(open_tab: Any) -> None:
    """By masks, score or failure; with buttons, arrow keys and the list; a failed image says why; names are texts."""
    tab = open_tab()
    firsts = {"fewest masks": "<b>none</b>.png", "most masks": "a.png", "lowest score": "a.png"}
    for order, first in {"failures first": "", **firsts}.items():
        tab.page.locator("#order input").click()
        tab.act(lambda order=order: tab.page.get_by_role("option", name=order).click())
        if first:
            assert tab.says(first)
        else:
            assert "truncated: ends too early" in tab.page.locator(".stage .error").inner_text()
    tab.act(lambda: tab.page.locator("#next").click())
    assert tab.says("b.png")
    tab.act(lambda: tab.page.keyboard.press("ArrowRight"))
    assert tab.says("<b>none</b>.png")
    tab.act(lambda: tab.page.locator("#previous").click())
    assert tab.says("b.png")
    tab.choose_photo("a.png")
    assert tab.says("a.png")
    tab.page.mouse.move(*tab.place(*PLACES["small"]))
    tab.page.wait_for_timeout(200)
    assert tab.page.locator(".stage .tip").inner_text() == "mask 1\npredicted IoU 0.760\nstability 0.945\narea 400 px"


def test_the_list_and_its_orders_heed_the_review(open_tab: Any, run: Path) -> None:
    """Numbers and scores are those of the masks that are left."""
    tab = open_tab()
    for place in ("small", "edge"):
        tab.click(*PLACES[place])
    assert tab.page.locator("#photo-name input").input_value() == "1  a.png · 1 masks"
    tab.click(*PLACES["big"])
    for order, first in (("most masks", "b.png"), ("lowest score", "b.png")):
        tab.page.locator("#order input").click()
        tab.act(lambda order=order: tab.page.get_by_role("option", name=order).click())
        assert tab.says(first)


def test_a_point_within_a_mask_helps_to_refine_it(open_tab: Any, prototype_folder: Path) -> None:
    """It is asked along, as a mark shows: the one that found the mask, where that lies in it, or another."""
    tab = open_tab("--model", prototype_folder)
    tab.act(lambda: tab.choose("doing", "Refine"))
    tab.page.locator("#mode").wait_for(state="hidden")
    for name, place, mask, at in (("a.png", PLACES["edge"], MASKS[2], None), ("b.png", (30, 30), CORNER, (1.5, 1.5))):
        tab.choose_photo(name)
        tab.click(*place)
        mark = tab.page.locator(".stage .inside")
        assert mark.count() == 1
        x, y = (float(mark.evaluate(f"mark => parseFloat(mark.style.{side})")) / 100 for side in ("left", "top"))
        assert mask[int(y * HW[0]), int(x * HW[1])]
        assert at is None or (x * HW[1], y * HW[0]) == pytest.approx(at)
        tab.click(place[0] + 3, place[1] + 3)
        assert mark.count() == 2
        tab.act(lambda: tab.page.locator("#undo").click())  # A mask that is not saved would hold the page back.


def test_a_mask_that_a_box_asked_for_may_be_refined() -> None:
    """No point found it: one within it is asked along."""
    review_page = pytest.importorskip("labeler.pages.review_page", reason="needs the extra serve")
    counts = rle.runs_to_counts(rle.mask_to_runs(MASKS[2]), image_hw=HW)
    x0, y0, x1, y1 = EDGE[1], EDGE[0], EDGE[3], EDGE[2]
    row = {"segmentation": {"size": list(HW), "counts": counts}, "bbox": [x0, y0, x1 - x0, y1 - y0], "point_coords": []}
    asked = review_page._begin(ReviewedMask((1, "drawn"), row, "draw"))
    ((x, y),) = asked.clicks.points_xy
    assert MASKS[2][int(y), int(x)]


def test_masks_are_refined_and_drawn(open_tab: Any, run: Path, prototype_folder: Path) -> None:
    """With a model: another mask takes the place of the clicked one, a new one is added; undo takes back either."""
    tab = open_tab("--model", prototype_folder)
    tab.act(lambda: tab.choose("doing", "Refine"))
    tab.page.locator("#mode").wait_for(state="hidden")
    tab.click(*PLACES["edge"])
    tab.click(130, 100)
    assert tab.says("not saved yet")
    new = tab.read_layer()
    assert equal(export_masks(run)["a.png"], MASKS)
    tab.act(lambda: tab.page.locator("#save").click())
    refined = export_masks(run)["a.png"]
    assert equal(refined[:2], MASKS[:2])
    assert len(refined) == 3
    assert not np.array_equal(refined[2], MASKS[2])
    assert (refined[2] <= new).all()
    tab.act(lambda: tab.choose("doing", "Draw"))
    tab.page.locator("#mode").wait_for()
    tab.drag(20, 20, 100, 80)
    drawn = tab.read_layer()
    tab.act(lambda: tab.page.locator("#save").click())
    assert tab.says("masks 4")
    tab.page.locator("#tally").get_by_text("refined 1").wait_for()
    assert np.array_equal(export_masks(run)["a.png"][3], drawn)
    tab.act(lambda: tab.page.locator("#undo").click())
    assert len(export_masks(run)["a.png"]) == 3
    assert tab.says("rejected 0")
    tab.act(lambda: tab.page.locator("#undo").click())
    assert equal(export_masks(run)["a.png"], MASKS)


def test_a_mask_that_is_not_saved_is_not_dropped_without_a_word(open_tab: Any, prototype_folder: Path) -> None:
    """Each way out stays once and says so, and what is chosen beside it stays; the same again, but no held key, goes on."""
    tab = open_tab("--model", prototype_folder)
    tab.act(lambda: tab.choose("doing", "Draw"))
    tab.page.locator("#mode").wait_for()
    tab.drag(20, 20, 100, 80)
    drawn = tab.read_layer()

    def sort() -> None:
        tab.page.locator("#order input").click()
        tab.page.get_by_role("option", name="most masks").click()

    def choose_photo() -> None:
        tab.page.locator("#photo-name input").click()
        tab.page.get_by_role("option", name="b.png").first.click()

    def hold_key() -> None:
        tab.page.keyboard.down("ArrowRight")
        tab.page.keyboard.down("ArrowRight")
        tab.page.keyboard.up("ArrowRight")
        tab.page.wait_for_timeout(1000)

    next_one, previous = tab.page.locator("#next"), tab.page.locator("#previous")
    for leave in (sort, choose_photo, next_one.click, previous.click, hold_key, lambda: tab.choose("doing", "Reject")):
        tab.act(leave)
        assert tab.says("this mask is not saved")
        assert np.array_equal(tab.read_layer(), drawn)
    assert tab.page.locator("#order input").input_value() == "as in the run"
    assert tab.page.locator("#photo-name input").input_value().startswith("1  a.png")
    assert tab.page.locator("#doing").get_by_label("Draw").is_checked()
    next_one.dblclick()  # Nobody reads the answer to the first click before the second.
    tab.page.wait_for_timeout(1500)
    assert tab.says("this mask is not saved")
    assert np.array_equal(tab.read_layer(), drawn)
    tab.act(next_one.click)
    assert tab.says("b.png")


def test_buttons_and_keys_mean_what_they_say(open_tab: Any, run: Path) -> None:
    """The middle button is no click; after a choice by mouse the keys still undo and turn pages."""
    tab = open_tab()
    tab.page.mouse.click(*tab.place(*PLACES["small"]), button="middle")
    tab.page.wait_for_timeout(1000)
    assert not (run / "review").exists()
    tab.click(*PLACES["small"])
    assert equal(export_masks(run)["a.png"], [MASKS[0], MASKS[2]])
    tab.page.locator("#doing").get_by_label("Reject").click()
    tab.act(lambda: tab.page.keyboard.press("Control+z"))
    assert equal(export_masks(run)["a.png"], MASKS)
    tab.act(lambda: tab.page.keyboard.press("ArrowRight"))
    assert tab.says("b.png")


def test_a_press_on_one_image_is_no_click_on_the_next(open_tab: Any, run: Path) -> None:
    """The other came while the button was held down."""
    tab = open_tab()
    tab.page.mouse.move(*tab.place(*PLACES["big"]))
    tab.page.mouse.down()
    tab.act(lambda: tab.page.keyboard.press("ArrowRight"))
    tab.page.mouse.up()
    tab.page.wait_for_timeout(1500)
    assert not (run / "review").exists()
    tab.click(*PLACES["big"])
    assert equal(export_masks(run)["b.png"], [])


def test_the_same_click_in_two_tabs_rejects_once(open_tab: Any, run: Path) -> None:
    """What the second one did not see is neither taken back nor passed through to the mask that lies below."""
    first, second = open_tab(), open_tab()
    for place, left in (("edge", MASKS[:2]), ("small", MASKS[:1])):
        first.click(*PLACES[place])
        second.click(*PLACES[place])
        assert second.says("done already")
        assert equal(export_masks(run)["a.png"], left)
    first.click(*PLACES["edge"])
    second.click(*PLACES["edge"])
    assert equal(export_masks(run)["a.png"], [MASKS[0], MASKS[2]])
    with first.unanswered():
        first.page.mouse.dblclick(*first.place(*PLACES["big"]))
    assert first.says("done already")
    assert equal(export_masks(run)["a.png"], [MASKS[2]])


def test_a_click_on_what_is_not_shown_any_more_decides_nothing(open_tab: Any, run: Path) -> None:
    """Next was pressed, and the image of before clicked on while it still stood there."""
    tab = open_tab()
    with tab.unanswered():
        tab.page.locator("#next").click()
        tab.page.mouse.click(*tab.place(*PLACES["big"]))
    assert tab.says("look again")
    assert not (run / "review").exists()
    tab.click(*PLACES["big"])
    assert equal(export_masks(run)["b.png"], [])


def test_a_server_that_was_started_again_takes_no_click_on_what_it_did_not_show(browser: Any, run: Path) -> None:
    """It shows anew what it would take it for, and the next click decides. A page that saw it go loads itself again."""
    with page_server.serve("--run", run) as url:
        tab = page_server.Tab(browser, url)
        tab.act(lambda: tab.page.keyboard.press("ArrowRight"))
    port = urlsplit(url).port or 0
    with page_server.serve("--run", run, port=port):
        tab.click(*PLACES["small"])
        assert tab.says("look again")
        assert not (run / "review").exists()
        tab.click(*PLACES["small"])
        assert equal(export_masks(run)["a.png"], [MASKS[0], MASKS[2]])
    tab.page.mouse.click(*tab.place(*PLACES["edge"]))
    before = tab.version
    with page_server.serve("--run", run, port=port):
        tab.wait_for("the page, again", before)
        assert tab.says("rejected 1")
    tab.page.close()  # What the browser said of the server that was gone is no fault.


def test_two_tabs_lose_nothing(open_tab: Any, run: Path) -> None:
    """Each rejects another mask without having seen the other's; each sees both when it shows the image again."""
    first, second = open_tab(), open_tab()
    first.click(*PLACES["small"])
    second.click(*PLACES["edge"])
    assert equal(export_masks(run)["a.png"], [MASKS[0]])
    first.act(lambda: first.page.locator("#next").click())
    first.act(lambda: first.page.locator("#previous").click())
    assert first.says("rejected 2")
    second.act(lambda: second.page.locator("#undo").click())
    assert equal(export_masks(run)["a.png"], [MASKS[0], MASKS[2]])
