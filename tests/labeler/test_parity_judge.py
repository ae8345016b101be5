"""The judge of our masks against the reference's: what it lets pass, and that it says no to everything else."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from labeler.options import MaskOptions
from tests.labeler import parity
from tests.labeler.parity import Found

HW = (240, 320)
OPTIONS = MaskOptions()
CROP = (0, 0, 320, 240)


def draw(y0: int, x0: int, y1: int, x1: int, *, iou: float, crop_xyxy: tuple[int, int, int, int] = CROP) -> Found:
    """A rectangle, its end left out, found by the point in its middle."""
    pixels = np.zeros(HW, np.uint8, order="F")
    pixels[y0:y1, x0:x1] = 1
    encoded = coco_mask.encode(pixels)
    return Found(
        mask=encoded,
        area=int(coco_mask.area(encoded)),
        box_xyxy=np.array([x0, y0, x1 - 1, y1 - 1]),
        predicted_iou=iou,
        stability_score=0.98,
        point=((x0 + x1) / 2, (y0 + y1) / 2),
        crop_xyxy=crop_xyxy,
    )


REFERENCE = [
    draw(30, 30, 90, 110, iou=0.99),
    draw(40, 150, 100, 220, iou=0.97),
    draw(120, 40, 200, 130, iou=0.95),
    draw(130, 170, 190, 260, iou=0.93),
]


def move(mask: Found, *, right: int) -> Found:
    """The same answer to the same prompt, so many pixels beside."""
    x0, y0, x1, y1 = mask.box_xyxy
    moved = draw(y0, x0 + right, y1 + 1, x1 + 1 + right, iou=mask.predicted_iou)
    return replace(moved, point=mask.point)


def judge(ours: list[Found], reference: list[Found] = REFERENCE, options: MaskOptions = OPTIONS) -> parity.Comparison:
    return parity.compare(reference, ours, options=options, image_hw=HW)


def change(place: int, mask: Found) -> list[Found]:
    """The reference's masks, another in the place of one."""
    return [mask if i == place else other for i, other in enumerate(REFERENCE)]


def test_equal_masks_have_no_fault() -> None:
    """Each has its partner, and nothing is excused; nor is anything where there are none."""
    same = judge(list(REFERENCE))
    assert (same.faults, same.excused, same.worst_iou) == ([], [], 1.0)
    assert same.pairs == [(i, i) for i in range(4)]
    assert judge([], reference=[]).faults == []


def test_rounding_is_no_fault() -> None:
    """A pixel of the border, the last digits of scores, and the order of masks whose scores tie."""
    x0, y0 = REFERENCE[1].box_xyxy[:2]
    pixels = coco_mask.decode(REFERENCE[1].mask)
    pixels[y0, x0] = 0
    near = replace(
        REFERENCE[1],
        mask=coco_mask.encode(np.asfortranarray(pixels)),
        area=REFERENCE[1].area - 1,
        predicted_iou=0.9704,
        stability_score=0.979,
    )
    close = judge(change(1, near))
    assert (close.faults, close.excused) == ([], [])
    assert 0.99 < close.worst_iou < 1
    tied = [replace(mask, predicted_iou=0.95 + i * 1e-5) for i, mask in enumerate(REFERENCE)]
    assert judge(tied[::-1], reference=tied).faults == []


WRONG = {
    "one less": REFERENCE[:2] + REFERENCE[3:],
    "one more": [*REFERENCE, draw(205, 230, 235, 300, iou=0.91)],
    "one twice": [*REFERENCE, REFERENCE[3]],
    "none": [],
    "shifted a little": change(2, move(REFERENCE[2], right=4)),
    "shifted to where box suppression begins": change(2, move(REFERENCE[2], right=16)),
    "shifted far": change(2, move(REFERENCE[2], right=60)),
    "found by another point": change(2, replace(REFERENCE[2], point=(50.0, 130.0), predicted_iou=0.947)),
    "found in another crop": change(2, replace(REFERENCE[2], crop_xyxy=(0, 0, 200, 230), predicted_iou=0.947)),
    "another predicted IoU": change(2, replace(REFERENCE[2], predicted_iou=0.952)),
    "another stability": change(2, replace(REFERENCE[2], stability_score=0.97)),
    "in another order": [REFERENCE[1], REFERENCE[0], *REFERENCE[2:]],
    "the other way round": REFERENCE[::-1],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_a_fault(name: str) -> None:
    """It is blamed on both sides where both have a mask of it, and nothing excuses it."""
    comparison = judge(WRONG[name])
    assert comparison.faults
    assert comparison.excused == []


def test_a_decision_that_hung_on_rounding_is_excused_by_name() -> None:
    """A score at its threshold, a box side at the 20-px rule, a tie of overlapping masks, an overlap at the threshold."""
    unsure = draw(205, 230, 235, 300, iou=0.8805)
    shaky = replace(draw(205, 230, 235, 300, iou=0.91), stability_score=0.951)
    edge = draw(205, 230, 235, 300, iou=0.91, crop_xyxy=(100, 60, 319, 239))
    tied = replace(move(REFERENCE[2], right=8), point=(80.0, 150.0))
    beside = replace(draw(120, 56, 200, 146, iou=0.94), point=(100.0, 150.0))
    for ours, reason in (
        ([*REFERENCE, unsure], "predicted_iou 0.8805 at its threshold"),
        ([*REFERENCE, shaky], "stability_score 0.951 at its threshold"),
        ([*REFERENCE, edge], "20-px rule"),
        (change(2, tied), "ties with"),
        ([*REFERENCE, beside], "at box_nms_thresh"),
    ):
        comparison = judge(ours)
        assert comparison.faults == []
        assert comparison.excused
        assert all(reason in excuse for excuse in comparison.excused)


def test_what_an_excused_mask_suppresses_is_excused_through_it() -> None:
    """By its name; a mask beside it is not."""
    unsure, suppressed = draw(205, 230, 235, 300, iou=0.8805), draw(205, 230, 235, 310, iou=0.91)
    comparison = judge([*REFERENCE, unsure], reference=[*REFERENCE, suppressed])
    assert comparison.faults == []
    assert any("because of ('ours', 4)" in excuse for excuse in comparison.excused)
    assert judge([*REFERENCE[:3], unsure], reference=REFERENCE).faults
