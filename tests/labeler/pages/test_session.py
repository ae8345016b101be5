"""What somebody clicks on a photo, as values; and the desk that answers with the small model of these tests."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labeler import rle
from labeler.engine import Engine
from labeler.errors import ModelError, OptionsError
from labeler.model_folder import read_model_info
from labeler.models import find_model
from labeler.pages.session import Asked, Clicks, Desk, _Kept
from labeler.predictor import Predictor
from labeler.types import MAX_POINTS, Image, MaskSet

HW = (192, 256)
Y, X = np.mgrid[: HW[0], : HW[1]]
DISC = (Y - 100) ** 2 + (X - 120) ** 2 < 60**2


@pytest.fixture(scope="module")
def predictor(prototype_folder: Path) -> Predictor:
    info = read_model_info(prototype_folder)
    return Predictor(Engine(prototype_folder, info, threads=1), info)


@pytest.fixture(scope="module")
def image() -> Image:
    """A bright disc on dark ground."""
    pixels = np.full((*HW, 3), (30, 40, 60), np.uint8)
    pixels[DISC] = (230, 200, 40)
    return Image(pixels=pixels, stored_hw=HW)


def ask(desk: Desk, image: Image, asked: Asked, *steps: Clicks) -> Asked:
    for step in steps:
        asked = desk.ask(asked.add(step), key="disc", image=image)
    return asked


def decode(masks: MaskSet, place: int = 0) -> np.ndarray:
    return rle.runs_to_mask(masks.runs(place), image_hw=masks.image_hw)


def covers_disc(mask: np.ndarray) -> bool:
    return bool(mask[DISC].mean() > 0.3 and DISC[mask].mean() > 0.7)  # The prototype's masks follow objects loosely.


def test_a_click_has_three_answers_and_a_second_one_has_one(predictor: Predictor, image: Image) -> None:
    """A single point may mean a part or the whole; the most trusted answer is chosen, and lies over what was clicked."""
    desk = Desk(predictor)
    one = ask(desk, image, Asked(), Clicks().add_point((120, 100), is_inside=True))
    assert one.answers is not None
    assert 2 <= len(one.answers) <= 3
    assert one.answers.predicted_iou[one.chosen] == one.answers.predicted_iou.max()
    assert one.choose(1).chosen == 1
    assert one.choose(3) is one.choose(-1) is one
    assert one.mask is not None
    assert covers_disc(decode(one.mask))
    assert one.mask.points_xy.tolist() == [[120, 100]]
    assert np.isfinite(one.mask.stability_score).all()
    two = ask(desk, image, one, one.clicks.add_point((10, 10), is_inside=False))
    assert two.answers is not None
    assert len(two.answers) == 1


def test_a_box_has_one_answer(predictor: Predictor, image: Image) -> None:
    """Over what it is around; by two clicks the same as by dragging."""
    desk = Desk(predictor)
    dragged = ask(desk, image, Asked(), Clicks().set_box((182, 162), (58, 38)))
    assert dragged.clicks.box_xyxy == (58, 38, 182, 162)
    assert dragged.mask is not None
    assert covers_disc(decode(dragged.mask))
    first = Clicks().click_corner((58, 38))
    assert first.corner_xy == (58, 38)
    assert first.is_empty
    assert ask(desk, image, Asked(), first, first.click_corner((182, 162))).clicks == dragged.clicks
    assert Clicks().set_box((5, 5), (5, 9)).box_xyxy is None


def test_undo_is_the_value_before(predictor: Predictor, image: Image) -> None:
    """With its answers and the chosen one; at the beginning there is nothing to take back."""
    desk = Desk(predictor)
    one = ask(desk, image, Asked(), Clicks().add_point((120, 100), is_inside=True))
    two = ask(desk, image, one, one.clicks.add_point((100, 80), is_inside=True))
    assert two.undone is one
    assert one.undone == Asked()
    assert one.undone.undone == Asked()


def test_a_second_click_mends_the_mask_that_is_shown(image: Image) -> None:
    """The chosen one of three, with the embedded model: a part stays that part, the whole the whole."""
    folder = find_model("tiny")
    info = read_model_info(folder)
    desk = Desk(Predictor(Engine(folder, info, threads=1), info))
    one = ask(desk, image, Asked(), Clicks().add_point((120, 100), is_inside=True))
    assert one.answers is not None
    part, whole = int(one.answers.areas.argmin()), one.chosen
    assert part != whole
    for chosen in (part, whole):
        shown = replace(one, chosen=chosen)
        two = ask(desk, image, shown, shown.clicks.add_point((100, 80), is_inside=True))
        assert shown.mask is not None
        assert two.mask is not None
        before, after = decode(shown.mask), decode(two.mask)
        assert (before & after).sum() / (before | after).sum() > 0.6
        assert two.undone is shown


def test_a_box_asks_anew(predictor: Predictor, image: Image) -> None:
    """Whatever mask was shown before; half a box asks nothing, and what is shown stays."""
    desk = Desk(predictor)
    one = ask(desk, image, Asked(), Clicks().set_box((200, 10), (250, 60)))
    half = ask(desk, image, one, one.clicks.click_corner((182, 162)))
    assert half.answers is one.answers
    other = ask(desk, image, half, half.clicks.click_corner((58, 38)))
    alone = ask(desk, image, Asked(), other.clicks)
    assert other.mask is not None
    assert alone.mask is not None
    assert np.array_equal(decode(other.mask), decode(alone.mask))


def test_clicks_end_where_the_model_does() -> None:
    """More points than a prompt takes are refused in words, not by the engine."""
    clicks = Clicks()
    for _ in range(MAX_POINTS):
        clicks = clicks.add_point((1, 1), is_inside=True)
    with pytest.raises(OptionsError, match="64 clicks"):
        clicks.add_point((1, 1), is_inside=True)


def test_a_photo_is_encoded_once(predictor: Predictor, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is clicked on, and by however many at the same time; another photo is another key."""
    encoded: list[object] = []
    embed = predictor.embed

    def count(*arguments: object, **more: object) -> object:
        encoded.append(arguments)
        return embed(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(predictor, "embed", count)
    desk = Desk(predictor)
    asked = Asked(Clicks().add_point((120, 100), is_inside=True))
    tabs = [threading.Thread(target=desk.ask, args=(asked,), kwargs={"key": "a", "image": image}) for _ in range(4)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert len(encoded) == 1
    desk.ask(asked, key="b", image=image)
    desk.ask(asked, key="a", image=image)
    assert len(encoded) == 2


def test_who_leafs_through_photos_waits_for_none_but_the_last(
    predictor: Predictor, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those passed by while one was encoded, none is; the one that is looked at is, before it is clicked on."""
    encoded: list[int] = []
    begun, all_passed, last = threading.Event(), threading.Event(), threading.Event()
    embed = predictor.embed

    def embed_held(pixels: np.ndarray) -> object:
        encoded.append(int(pixels[0, 0, 0]))
        (last if encoded[-1] == 5 else begun).set()
        assert all_passed.wait(60)
        return embed(pixels)

    monkeypatch.setattr(predictor, "embed", embed_held)
    desk = Desk(predictor)
    photos = [Image(pixels=np.full((*HW, 3), number, np.uint8), stored_hw=HW) for number in range(6)]
    desk.prepare("0", photos[0])
    assert begun.wait(60)
    for number in range(1, 6):
        desk.prepare(str(number), photos[number])
    all_passed.set()
    assert last.wait(60)
    desk.ask(Asked(Clicks().add_point((1, 1), is_inside=True)), key="5", image=photos[5])
    desk.warm_up()
    assert encoded == [0, 5]
    Desk(None).prepare("a", image)


def test_a_mask_may_be_refined(predictor: Predictor, image: Image) -> None:
    """The model is shown the mask besides the clicks, so the answer is another than without."""
    desk = Desk(predictor)
    step = Clicks().add_point((120, 100), is_inside=True).add_point((10, 10), is_inside=False)
    plain = ask(desk, image, Asked(), step)
    refined = ask(desk, image, Asked(refined=rle.mask_to_runs(DISC)), step)
    assert plain.mask is not None
    assert refined.mask is not None
    assert not np.array_equal(decode(plain.mask), decode(refined.mask))


def test_everything_takes_the_generators_options(predictor: Predictor, image: Image) -> None:
    """Lower thresholds find more; a value out of range is said by its name; the model's own defaults count."""
    low = {"points_per_side": 6, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.2, "stability_score_offset": 0.3}
    desk = Desk(Predictor(predictor._engine, predictor.info.model_copy(update={"defaults": low})))
    found = desk.find_all(image, {})
    assert len(found) >= 2
    assert len(desk.find_all(image, {"pred_iou_thresh": 0.9})) < len(found)
    with pytest.raises(OptionsError, match="--points-per-side"):
        desk.find_all(image, {"points_per_side": 0})


def test_without_a_model_nothing_is_asked(image: Image) -> None:
    """Photos can be opened; a click says what is missing."""
    desk = Desk(None)
    assert desk.open("disc", lambda: image) is image
    with pytest.raises(OptionsError, match="--model"):
        ask(desk, image, Asked(), Clicks().add_point((1, 1), is_inside=True))


def test_what_is_kept_is_bounded() -> None:
    """The least used goes first, the last used stays however large it is, and a failure is not remembered."""
    kept: _Kept[bytes] = _Kept(10, len)
    made: list[str] = []

    def make(name: str, size: int) -> bytes:
        made.append(name)
        return bytes(size)

    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4)):
        kept.get(name, lambda name=name, size=size: make(name, size))  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert len(kept.get("huge", lambda: make("huge", 99))) == 99
    assert made[-1] == "huge"
    kept.get("huge", lambda: make("huge again", 99))
    assert made[-1] == "huge"

    def fail() -> bytes:
        raise ModelError("not now")

    with pytest.raises(ModelError):
        kept.get("late", fail)
    assert kept.get("late", lambda: b"x") == b"x"
