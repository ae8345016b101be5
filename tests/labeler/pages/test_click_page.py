"""The page to click on, in a browser, with the small model of these tests and a bright disc to click on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import page_server
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

HW = (192, 256)
Y, X = np.mgrid[: HW[0], : HW[1]]
DISC = (Y - 100) ** 2 + (X - 120) ** 2 < 60**2
NASTY = "<img src=x onerror=alert(1)> é.png"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, prototype_folder: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.full((*HW, 3), (30, 40, 60), np.uint8)
    pixels[DISC] = (230, 200, 40)
    PillowImage.fromarray(pixels).save(folder / "disc.png")
    PillowImage.fromarray(pixels[:, ::-1]).save(folder / NASTY)
    (folder / "broken.jpg").write_bytes(b"no photo")
    with page_server.serve("--model", prototype_folder, "--images", folder, "--max-upload-mb", "1") as url:
        yield url


@pytest.fixture
def tab(browser: Any, url: str) -> Iterator[page_server.Tab]:
    tab = page_server.Tab(browser, url)
    tab.choose_photo("disc.png")
    yield tab
    tab.close()


def covers_disc(layer: Any) -> bool:
    return bool(layer[DISC].mean() > 0.3 and DISC[layer].mean() > 0.7)  # The prototype's masks follow objects loosely.


def test_a_click_makes_a_mask_over_the_clicked_object(tab: page_server.Tab) -> None:
    """With its score, and three answers to choose from; another one is another mask; nothing is shown before."""
    assert tab.read_layer() is None
    tab.click(120, 100)
    first = tab.read_layer()
    assert covers_disc(first)
    assert tab.says("predicted IoU 0.")
    choices = tab.page.locator("#answers label")
    assert choices.count() == 3
    other = next(i for i in range(3) if not choices.nth(i).locator("input").is_checked())
    tab.act(lambda: choices.nth(other).click())
    assert not np.array_equal(tab.read_layer(), first)


def test_more_clicks_add_and_remove(tab: page_server.Tab) -> None:
    """Green and red; by the mode, with Shift, and with the right button; each changes the mask's clicks."""
    tab.click(120, 100)
    tab.click(100, 80)
    tab.choose("mode", "Remove")
    tab.click(20, 20)
    tab.choose("mode", "Add")
    tab.page.keyboard.down("Shift")
    tab.click(240, 20)
    tab.page.keyboard.up("Shift")
    tab.click(240, 180, button="right")
    assert tab.page.locator(".stage .inside").count() == 2
    assert tab.page.locator(".stage .outside").count() == 3
    assert tab.says("clicks 5")


def test_a_box_makes_a_mask(tab: page_server.Tab) -> None:
    """Dragged, or by a click on each of two corners: the same box, and the same mask."""
    tab.drag(58, 38, 182, 162)
    dragged = tab.read_layer()
    assert covers_disc(dragged)
    tab.act(lambda: tab.page.locator("#clear").click())
    assert tab.read_layer() is None
    tab.choose("mode", "Box")
    tab.click(58, 38)
    assert tab.says("opposite corner")
    assert tab.page.locator(".stage .corner").count() == 1
    tab.click(182, 162)
    both = tab.read_layer() & dragged
    assert both.sum() > 0.9 * dragged.sum()
    assert tab.page.locator(".stage .box").count() == 1


def test_a_click_on_another_photo_than_the_open_one_does_nothing(tab: page_server.Tab) -> None:
    """The list was used, and the picture of before was clicked on while it still stood there: one is told to look again."""
    with tab.unanswered():
        tab.page.locator("#photo-name input").click()
        tab.page.get_by_role("option", name=NASTY).first.click()
        tab.page.mouse.click(*tab.place(120, 100))
    assert tab.says("look again")
    assert tab.page.locator(".stage .inside").count() == 0
    tab.click(136, 100)
    assert covers_disc(tab.read_layer()[:, ::-1])


def test_after_an_error_the_page_is_quiet(tab: page_server.Tab) -> None:
    """It is said, the click's mark goes, and no event is sent again and again; nor by arrow keys, which do nothing here."""
    tab.click(120, 100)
    before = tab.read_layer()
    frame = "document.querySelector('.stage .frame')"
    tab.page.evaluate(f"{frame}.getBoundingClientRect = () => ({{ left: 0, top: 0, width: NaN, height: NaN }})")
    tab.act(lambda: tab.page.locator(".stage .frame").click(position={"x": 5, "y": 5}))
    assert tab.says("a click is a pair of numbers")
    assert tab.page.locator(".stage .pending").count() == 0
    assert np.array_equal(tab.read_layer(), before)
    tab.page.keyboard.press("ArrowRight")
    assert tab.count_events(2.5) == 0


def test_undo_takes_it_back(tab: page_server.Tab) -> None:
    """Click by click, by the button and by Ctrl+Z, until nothing is left; once more does no harm."""
    tab.click(120, 100)
    first = tab.read_layer()
    tab.click(30, 30)
    assert not np.array_equal(tab.read_layer(), first)
    tab.act(lambda: tab.page.locator("#undo").click())
    assert np.array_equal(tab.read_layer(), first)
    tab.act(lambda: tab.page.keyboard.press("Control+z"))
    assert tab.read_layer() is None
    tab.act(lambda: tab.page.locator("#undo").click())
    assert tab.read_layer() is None


def set_slider(tab: page_server.Tab, name: str, value: float) -> None:
    field = tab.page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def lower_thresholds(tab: page_server.Tab, *, points_per_side: int = 6) -> None:
    tab.page.get_by_text("More", exact=True).click()
    low = {"pred-iou-thresh": 0.2, "stability-score-thresh": 0.2, "stability-score-offset": 0.3}
    for name, value in {"points-per-side": points_per_side, **low}.items():
        set_slider(tab, name, value)


def test_everything_shows_many(tab: page_server.Tab, tmp_path: Path) -> None:
    """As many as the thresholds let through; the pointer tells their scores; saved as COCO they are all there."""
    tab.page.get_by_role("tab", name="Everything").click()
    tab.act(lambda: tab.page.locator("#find").click())
    assert tab.says("masks 0")
    assert tab.says("lower them")
    lower_thresholds(tab)
    tab.act(lambda: tab.page.locator("#find").click())
    assert tab.read_layer().mean() > 0.5
    tab.page.mouse.move(*tab.place(120, 100))
    tab.page.wait_for_timeout(200)
    assert "predicted IoU 0." in tab.page.locator(".stage .tip").inner_text()
    with tab.page.expect_download() as download:
        tab.page.locator("#save-coco").click()
    download.value.save_as(tmp_path / "coco.json")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert len(coco["annotations"]) >= 3
    for annotation in coco["annotations"]:
        assert annotation["segmentation"]["size"] == list(HW)
        assert annotation["area"] == coco_mask.area(annotation["segmentation"])
    with tab.page.expect_download() as download:
        tab.page.locator("#save-png").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    tab.page.get_by_text("holds the number of its mask").wait_for()
    with PillowImage.open(tmp_path / "disc_ids.png") as opened:
        assert set(np.unique(np.asarray(opened))) <= {0, *range(1, len(coco["annotations"]) + 1)}


def test_everything_and_clicks_are_undone_one_by_one(tab: page_server.Tab) -> None:
    """Beside either tab: what was found goes first, then the last click; a click on what was found may be taken back."""
    tab.click(120, 100)
    tab.click(100, 80)
    clicked = tab.read_layer()
    tab.page.get_by_role("tab", name="Everything").click()
    lower_thresholds(tab)
    tab.act(lambda: tab.page.locator("#find").click())
    found = tab.read_layer()
    tab.click(110, 100)
    assert tab.says("clicks 3")
    tab.act(lambda: tab.page.locator("#undo").click())
    assert np.array_equal(tab.read_layer(), found)
    tab.act(lambda: tab.page.locator("#undo").click())
    assert np.array_equal(tab.read_layer(), clicked)
    assert tab.page.locator(".stage .inside").count() == 2
    tab.act(lambda: tab.page.locator("#undo").click())
    assert tab.page.locator(".stage .inside").count() == 1


def test_everything_that_comes_late_takes_nothing_away(tab: page_server.Tab) -> None:
    """Another photo was opened and clicked on meanwhile: it stays."""
    tab.page.get_by_role("tab", name="Everything").click()
    lower_thresholds(tab, points_per_side=64)
    tab.page.locator("#find").click()
    tab.choose_photo(NASTY)
    tab.click(136, 100)
    shown = tab.read_layer()
    tab.page.get_by_text("not open any more").wait_for(timeout=60000)
    assert np.array_equal(tab.read_layer(), shown)
    assert tab.page.locator(".stage .inside").count() == 1
    tab.click(120, 100)
    assert tab.says("clicks 2")


def test_a_mask_is_saved_as_it_is_shown(tab: page_server.Tab, tmp_path: Path) -> None:
    """Black and white, of the photo's size; the COCO file holds the same pixels; without a mask it is said."""
    tab.page.locator("#save-png").click()
    tab.page.get_by_text("there is no mask to save yet").wait_for()
    tab.click(120, 100)
    saved = {}
    for kind in ("png", "coco"):
        with tab.page.expect_download() as download:
            tab.page.locator(f"#save-{kind}").click()
        saved[download.value.suggested_filename] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[download.value.suggested_filename])
    with PillowImage.open(saved["disc_mask.png"]) as opened:
        mask = np.asarray(opened)
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask > 0, tab.read_layer())
    record = json.loads(saved["disc_coco.json"].read_text())
    assert record["images"] == [{"id": 1, "file_name": "disc.png", "width": 256, "height": 192}]
    assert np.array_equal(coco_mask.decode(record["annotations"][0]["segmentation"]), mask // 255)


def test_photos_are_dropped_or_chosen(tab: page_server.Tab, tmp_path: Path) -> None:
    """From the person's own disk; what can't be opened, or is too large, is said, and takes nothing away that is open."""
    pixels = np.full((40, 60, 3), 200, np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "own <b>photo.png")
    chooser = tab.page.locator(".stage input[type=file]")
    tab.act(lambda: chooser.set_input_files(tmp_path / "own <b>photo.png"))
    assert tab.size == (60, 40)
    assert tab.says("own <b>photo.png")
    assert tab.page.locator("#photo-name input").input_value() == ""
    tab.click(30, 20)
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    tab.act(lambda: chooser.set_input_files(tmp_path / "bad.jpg"))
    assert tab.says("bad.jpg can't be opened")
    (tmp_path / "big.jpg").write_bytes(bytes((1 << 20) + 1))
    tab.act(lambda: chooser.set_input_files(tmp_path / "big.jpg"))
    assert tab.says("1,048,576 are allowed")
    assert tab.size == (60, 40)
    assert tab.page.locator(".stage .inside").count() == 1
    tab.faults[:] = [fault for fault in tab.faults if "413" not in fault]  # Chromium logs the refusal itself.
    tab.choose_photo("disc.png")
    assert tab.size == (256, 192)


def test_photos_are_dropped_by_hand_or_chosen_by_the_button(tab: page_server.Tab, tmp_path: Path) -> None:
    """A file that falls on the stage, and one that the browser's own window gives; the list then names none of its own."""
    for name, width in (("dropped.png", 60), ("chosen.png", 70)):
        PillowImage.fromarray(np.full((40, width, 3), 200, np.uint8)).save(tmp_path / name)
    tab.drop(tmp_path / "dropped.png")
    assert tab.size == (60, 40)
    assert tab.says("dropped.png")
    assert tab.page.locator("#photo-name input").input_value() == ""
    with tab.page.expect_file_chooser() as chooser:
        tab.page.locator("#choose-file").click()
    tab.act(lambda: chooser.value.set_files(tmp_path / "chosen.png"))
    assert tab.size == (70, 40)
    tab.choose_photo("disc.png")
    assert tab.size == (256, 192)


def test_names_are_texts_and_broken_photos_are_said(tab: page_server.Tab) -> None:
    """A file name is no script; one that is no photo says why, and the next one opens."""
    tab.choose_photo("broken.jpg")
    assert "broken.jpg can't be opened" in tab.page.locator(".stage .error").inner_text()
    tab.choose_photo(NASTY)
    assert tab.says(NASTY)
    tab.click(136, 100)
    assert covers_disc(tab.read_layer()[:, ::-1])


def test_two_tabs_do_not_disturb_each_other(tab: page_server.Tab, browser: Any, url: str) -> None:
    """Each has its own photo and clicks."""
    other = page_server.Tab(browser, url)
    other.choose_photo(NASTY)
    tab.click(120, 100)
    before = tab.read_layer()
    other.click(136, 100)
    other.click(20, 20)
    tab.act(lambda: tab.page.locator("#undo").click())
    assert tab.read_layer() is None
    assert other.page.locator(".stage .inside").count() == 2
    tab.click(120, 100)
    assert np.array_equal(tab.read_layer(), before)
    other.close()
