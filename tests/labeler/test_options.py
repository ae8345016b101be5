"""What is said of options."""

import pytest

from labeler.errors import OptionsError
from labeler.options import MaskOptions, check_given_options, name_prices


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, []),
        ({"precision": "bf16"}, ["--precision bf16 moves masks"]),
        ({"points": "adaptive"}, ["--points adaptive"]),
    ],
)
def test_who_trades_masks_for_time_is_told(chosen: dict[str, str], words: list[str]) -> None:
    """The defaults cost nothing; a precision or a mode that loses masks says so."""
    prices = name_prices(MaskOptions.model_validate(chosen))
    assert len(prices) == len(words)
    assert all(price.startswith(begin) for price, begin in zip(prices, words, strict=True))


def test_grids_are_judged_when_the_model_is_known() -> None:
    """Its defaults may have the crop layer that a second grid is for; what is wrong with any model is said at once."""
    grids = [[(0.5, 0.5)], [(0.5, 0.5)]]
    check_given_options({"point_grids": grids}, preset=None)
    with pytest.raises(OptionsError, match="--pred-iou-thresh"):
        check_given_options({"point_grids": grids, "pred_iou_thresh": "much"}, preset=None)
