"""What is said of options."""

import pytest

from labeler.options import MaskOptions, name_prices


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
