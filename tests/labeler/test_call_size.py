"""How many prompts a call should hold: measured, and what is picked of the figures."""

import math
from pathlib import Path

import pytest

from labeler.call_size import CALL_SIZES, choose_call_size, measure_call_sizes, pick_fastest
from labeler.model_folder import read_model_info


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 3.0, 2: 2.0, 4: 1.0, 8: 1.5}, 4),
        ({1: 1.0, 2: 0.98, 4: 0.96, 8: 0.97}, 1),
        ({1: 2.0, 2: 1.0, 4: 0.99, 8: 0.9}, 8),
        ({1: 1.0, 2: 5.0, 4: 5.0, 8: 5.0}, 1),
    ],
)
def test_the_fastest_is_picked_and_the_smaller_of_two_alike(seconds: dict[int, float], expected: int) -> None:
    """Noise of some hundredths does not buy memory."""
    assert pick_fastest(seconds) == expected


def test_every_size_is_measured_on_the_model_itself(prototype_folder: Path) -> None:
    """Whatever number the folder says; one of them is chosen."""
    info = read_model_info(prototype_folder)
    seconds = measure_call_sizes(prototype_folder, info)
    assert tuple(seconds) == CALL_SIZES
    assert all(0 < value < math.inf for value in seconds.values())
    assert choose_call_size(prototype_folder, info.model_copy(update={"prompts_per_call": 64})) in CALL_SIZES
