"""The page, in a browser without a network: a chromium of the system's (apt-get install chromium) or playwright's own."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drawn_masks import draw_box

from export.page import export_page
from labeler.errors import OptionsError
from labeler.runs import read_run

HW = (120, 160)

box = partial(draw_box, HW)

# Predicted IoU 1.02, 0.76, 0.5; stability 0.99, 0.945, 0.9.
MASKS = [box(10, 10, 90, 90), box(30, 30, 50, 50), box(100, 120, 101, 121)]
NASTY = "</script><img src=x onerror=alert(1)> é.png"


@pytest.fixture
def folder(make_run: Any, random_masks: Any, tmp_path: Path) -> Path:
    images = [("a.png", HW, MASKS), ("broken.png", None, []), (NASTY, HW, random_masks(HW, 5)), ("empty.png", HW, [])]
    output = make_run(images, missing=())
    (tmp_path / "photos" / "3.png").unlink()
    report = export_page(read_run(str(output)), str(tmp_path / "look"))
    assert (report.num_images, report.num_masks, report.is_sample) == (4, 8, False)
    assert report.num_bytes == (tmp_path / "look" / "index.html").stat().st_size
    return tmp_path / "look"


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    """The page opened from its file; anything it asks the network for, and any error, fails the test."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    page.on("dialog", lambda dialog: faults.append("a name was run as a script"))
    page.goto((folder / "index.html").as_uri())
    wait_until(page, "document.querySelector('.card canvas').paths !== undefined")
    yield page
    page.close()
    assert faults == []


def wait_until(page: Any, condition: str) -> None:
    # Not Playwright's wait_for_function: that evaluates text inside the page, whose own rules forbid it.
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never: {condition}")


def names(page: Any) -> list[str]:
    return page.locator(".card .name").all_text_contents()


def slide(page: Any, slider: str, value: float) -> None:
    page.locator(f"#{slider}").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)
    page.wait_for_timeout(100)


def count_painted(page: Any) -> int:
    """Masks on the first card's picture."""
    return int(page.evaluate("document.querySelector('.card canvas').paths.length"))


def test_it_shows_every_image_and_the_runs_figures(page: Any) -> None:
    """A card each, failed ones with their reason, names as text; counts at the head; bars in the histograms."""
    assert names(page) == ["a.png", "broken.png", NASTY, "empty.png"]
    assert "truncated: ends too early" in page.locator(".card").nth(1).inner_text()
    assert "it is not there any more" in page.locator(".card").nth(3).inner_text()
    assert page.locator(".figure").all_inner_texts()[:3] == ["4\nimages", "8\nmasks", "1\nfailed"]
    titles = page.locator(".plot h2").all_text_contents()
    assert titles[:2] == ["mean seconds by stage", "failed images, by kind"]
    assert titles[2:] == ["seconds an image", "masks an image", "mask area, pixels", "predicted IoU", "stability score"]
    assert page.locator(".plot svg rect").count() > 8
    assert page.locator(".plot svg title").first.text_content() == "0 to 0.01: 3 images"


def test_sliders_hide_masks_at_once(page: Any) -> None:
    """Each of its own score; what is left is counted, and the picture really changes."""
    before = page.locator(".card canvas").first.evaluate("e => e.toDataURL()")
    assert count_painted(page) == 3
    slide(page, "iou", 0.6)
    assert count_painted(page) == 2
    assert page.locator(".note").first.inner_text() == "2 of 3 masks"
    assert page.locator(".card canvas").first.evaluate("e => e.toDataURL()") != before
    slide(page, "iou", 0)
    assert page.locator(".card canvas").first.evaluate("e => e.toDataURL()") == before
    slide(page, "area", 10)
    assert count_painted(page) == 1
    slide(page, "area", 0)
    slide(page, "stability", 0.97)
    assert count_painted(page) == 1
    slide(page, "stability", 0)
    assert page.locator("#shown").inner_text() == "8 of 8 masks shown"


def test_a_click_enlarges_and_keys_go_on(page: Any) -> None:
    """As large as the window; the arrow keys skip what has no picture; Escape closes."""
    page.locator(".card").first.click()
    wait_until(page, "document.querySelector('dialog canvas').paths?.length === 3")
    assert page.locator("dialog canvas").bounding_box()["height"] > 600
    page.keyboard.press("ArrowRight")
    wait_until(page, "document.querySelector('dialog canvas').paths.length === 5")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").evaluate("e => e.open")


def test_hovering_tells_a_masks_scores(page: Any) -> None:
    """Of the smallest mask under the pointer, in the grid and enlarged."""
    shown = page.locator(".card canvas").first
    shown.scroll_into_view_if_needed()
    for canvas, click in ((shown, True), (page.locator("dialog canvas"), False)):
        area = canvas.bounding_box()
        page.mouse.move(area["x"] + area["width"] * 40 / 160, area["y"] + area["height"] * 40 / 120)
        assert page.locator("#tip").inner_text() == "mask 1\npredicted IoU 0.760\nstability 0.945\narea 400 px"
        page.mouse.move(area["x"] + area["width"] * 80 / 160, area["y"] + area["height"] * 80 / 120)
        assert page.locator("#tip").inner_text().startswith("mask 0\n")
        page.mouse.move(area["x"] + area["width"] * 155 / 160, area["y"] + area["height"] * 5 / 120)
        assert page.locator("#tip").is_hidden()
        if click:
            shown.click()
            wait_until(page, "document.querySelector('dialog canvas').paths?.length === 3")


def test_images_sort(page: Any) -> None:
    """By number of masks either way, failures first, and back."""
    for order, first in (("most", NASTY), ("fewest", "empty.png"), ("failures", "broken.png"), ("order", "a.png")):
        page.locator("#sort").select_option(order)
        assert names(page)[0] == first


def test_pictures_out_of_sight_are_not_loaded(make_run: Any, random_masks: Any, browser: Any, tmp_path: Path) -> None:
    """Of many images only those near the window hold a picture; scrolling loads the next."""
    output = make_run([(f"{i}.png", HW, random_masks(HW, 2, seed=i)) for i in range(80)], per_shard=40)
    export_page(read_run(str(output)), str(tmp_path / "look"))
    page = browser.new_page(viewport={"width": 1300, "height": 700})
    page.goto((tmp_path / "look" / "index.html").as_uri())
    wait_until(page, "bitmaps.size > 3")
    assert page.evaluate("bitmaps.size") < 40
    page.mouse.wheel(0, 100_000)
    wait_until(page, "bitmaps.has(79) && !bitmaps.has(0)")
    page.close()


def test_the_same_run_gives_the_same_page(make_run: Any, random_masks: Any, tmp_path: Path) -> None:
    """Byte for byte; a limit shows a sample, and the figures stay the whole run's."""
    run = read_run(str(make_run([(f"{i}.png", HW, random_masks(HW, 2, seed=i)) for i in range(6)])))
    for name in ("one", "two"):
        report = export_page(run, str(tmp_path / name), limit=2)
    assert (report.num_images, report.is_sample) == (2, True)
    pages = [(tmp_path / name / "index.html").read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert b'"num_masks":12' in pages[0]
    assert b"http://" not in pages[0].replace(b"http://www.w3.org/2000/svg", b"")


def test_masks_of_many_shards_are_measured_in_some(
    make_run: Any, random_masks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts are the whole run's; the page says of how many images the others are."""
    monkeypatch.setattr("export.page._MAX_MEASURED_SHARDS", 2)
    run = read_run(str(make_run([(f"{i}.png", HW, random_masks(HW, 3, seed=i)) for i in range(6)], per_shard=1)))
    export_page(run, str(tmp_path / "look"), limit=4)
    written = re.search(r'id="data">(.+?)</script>', (tmp_path / "look" / "index.html").read_text())
    assert written is not None
    data = json.loads(written[1])
    assert (data["run"]["num_done"], data["run"]["num_masks"], data["run"]["num_measured"]) == (6, 18, 2)
    measured = {plot["title"]: sum(bar[2] for bar in plot["bars"]) for plot in data["histograms"]}
    assert measured == {
        "seconds an image": 6, "masks an image": 6, "mask area, pixels": 6, "predicted IoU": 6, "stability score": 6,
    }  # fmt: skip


def test_a_mask_too_small_for_the_picture_shows_where_it_is(make_run: Any, tmp_path: Path) -> None:
    """As its box, also on a picture whose short side shrank by another factor than its long one."""
    mask = draw_box((1, 3000), 0, 2990, 1, 2991)
    export_page(read_run(str(make_run([("wide.png", mask.shape, [mask])]))), str(tmp_path / "look"))
    (outline,) = re.findall(r'"masks":\[\[[^[]+\[\[(.+?)\]', (tmp_path / "look" / "index.html").read_text())
    xs = [int(x) for x in outline.split(",")[::2]]
    assert (min(xs), max(xs)) == (956, 958)


def test_nothing_committed_is_nothing_to_show(make_run: Any, tmp_path: Path) -> None:
    """An empty page would look like a result."""
    with pytest.raises(OptionsError, match="no committed images"):
        export_page(read_run(str(make_run([("a.png", HW, [])], missing=(0,)))), str(tmp_path / "look"))
