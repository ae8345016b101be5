"""The compiled border tracing against plain interpolation in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.utils import amg

from labeler import masks, rle
from labeler.geometry import fit_in_square
from labeler.types import MaskSet

SIDE = 256  # of the model's input; logits are a quarter of it


def axes(crop_hw: tuple[int, int], low: int = SIDE // 4) -> dict[str, masks.Upsampling]:
    input_hw = fit_in_square(crop_hw, side=SIDE)
    return {
        name: masks.plan_upsampling(low_res_length=low, input_side=SIDE, input_length=input_hw[axis], crop_length=crop_hw[axis])
        for axis, name in enumerate(("rows", "columns"))
    }


def trace(logits: np.ndarray, **given: Any) -> MaskSet:
    """All masks of a crop."""
    tracer = masks.Tracer(mask_threshold=0.0, **given)
    return tracer.collect([tracer.trace(plane, predicted_iou=np.float32(1), point_xy=np.zeros(2)) for plane in logits])


def upsample_as_the_reference(logits: np.ndarray, crop_hw: tuple[int, int], dtype: torch.dtype) -> np.ndarray:
    """Sam.postprocess_masks."""
    input_hw = fit_in_square(crop_hw, side=SIDE)
    square = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None].to(dtype), (SIDE, SIDE), mode="bilinear", align_corners=False
    )
    cut = square[..., : input_hw[0], : input_hw[1]]
    return torch.nn.functional.interpolate(cut, crop_hw, mode="bilinear", align_corners=False)[0].numpy()


def adversarial_logits() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    low = SIDE // 4
    y, x = np.mgrid[:low, :low]
    smooth = np.stack([8 * np.sin(x / p + p) * np.cos(y / (p + 1)) for p in range(2, 8)])
    spikes = np.full((1, low, low), 1.0)
    spikes[0, 3::7, 4::9] = -100.0
    return {
        "smooth": smooth,
        "noise": rng.normal(0, 3, (4, low, low)),
        "checkerboard": np.where((x + y) % 2, 5.0, -5.0)[None],
        "spikes in an all-positive plane": spikes,
        "huge": rng.normal(0, 1e4, (2, low, low)),
        "one logit": np.where((x == 20) & (y == 31), 50.0, -50.0)[None],
        "corners": np.where((x % (low - 1) == 0) & (y % (low - 1) == 0), 9.0, -9.0)[None],
    }


@pytest.mark.parametrize("kind", adversarial_logits())
@pytest.mark.parametrize("crop_hw", [(1, 1), (1, 300), (300, 2), (37, 53), (256, 256), (333, 500), (900, 641), (3, 1000)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_traced_masks_are_the_upsampled_and_thresholded_ones(kind: str, crop_hw: tuple[int, int], offset: float) -> None:
    """Every pixel whose float64 value is clear of a threshold is as the two interpolations say; counts, box and area follow."""
    logits = adversarial_logits()[kind].astype(np.float32)
    exact = upsample_as_the_reference(logits, crop_hw, torch.float64)
    tolerance = 1e-5 * np.abs(logits).max()
    traced = trace(
        logits,
        **axes(crop_hw),
        crop_xyxy=(0, 0, crop_hw[1], crop_hw[0]),
        image_hw=crop_hw,
        stability_score_offset=offset,
    )
    for i, plane in enumerate(exact):
        runs = traced.run_lengths[traced.run_offsets[i] : traced.run_offsets[i + 1]]
        mask = rle.runs_to_mask(runs, image_hw=crop_hw)
        differs = mask != (plane > 0)
        assert np.abs(plane[differs]).max(initial=0.0) <= tolerance
        np.testing.assert_array_equal(rle.mask_to_runs(mask), runs)
        assert traced.areas[i] == mask.sum()
        box = amg.batched_mask_to_box(torch.from_numpy(mask)).numpy()
        np.testing.assert_array_equal(traced.boxes_xyxy[i], box)
        high, low = plane > offset, plane > -offset
        unclear = int((np.abs(plane - offset) <= tolerance).sum() + (np.abs(plane + offset) <= tolerance).sum())
        if low.sum():
            assert abs(traced.stability_score[i] * low.sum() - high.sum()) <= unclear + 1e-3 * (1 + high.sum())


@pytest.mark.parametrize("constant", [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
def test_constant_planes_compare_strictly_greater(constant: float) -> None:
    """A pixel exactly at a threshold does not belong to it; an empty mask has no runs of its own and a zero box."""
    plane = np.full((1, SIDE // 4, SIDE // 4), constant, np.float32)
    traced = trace(
        plane,
        **axes((50, 70)),
        crop_xyxy=(0, 0, 70, 50),
        image_hw=(50, 70),
        stability_score_offset=1.0,
    )
    assert traced.areas[0] == (3500 if constant > 0 else 0)
    if constant > -1.0:
        assert traced.stability_score[0] == (1.0 if constant > 1.0 else 0.0)
    else:
        assert np.isnan(traced.stability_score[0])
    if constant <= 0:
        assert traced.run_lengths.tolist() == [3500]
        assert traced.boxes_xyxy[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["smooth", "spikes in an all-positive plane"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_logit_spoils_what_draws_on_it_alone(kind: str, broken: float) -> None:
    """As in PyTorch: the other pixels are as they would be without it."""
    crop_hw = (333, 500)
    logits = adversarial_logits()[kind][:1].astype(np.float32)
    plan = axes(crop_hw)
    exact = upsample_as_the_reference(logits, crop_hw, torch.float64)[0]
    logits[0, 20, 31] = broken
    traced = trace(logits, **plan, crop_xyxy=(0, 0, crop_hw[1], crop_hw[0]), image_hw=crop_hw, stability_score_offset=1.0)
    mask = rle.runs_to_mask(traced.run_lengths, image_hw=crop_hw)
    rows, columns = (
        (first <= at) & (at < first + masks.TAPS)
        for first, at in zip((plan["rows"].first, plan["columns"].first), (20, 31), strict=True)
    )
    spoilt = rows[:, None] & columns
    assert spoilt.any()
    assert not (np.isnan(broken) and mask[spoilt].any())
    clear = ~spoilt & (np.abs(exact) > 1e-3)
    np.testing.assert_array_equal(mask[clear], exact[clear] > 0)


@pytest.mark.parametrize("crop_xyxy", [(0, 0, 60, 40), (13, 7, 60, 31), (0, 9, 60, 40), (5, 0, 41, 40)])
def test_a_crop_is_traced_into_the_image(crop_xyxy: tuple[int, int, int, int]) -> None:
    """Masks of a crop stand at their place in the image, with nothing outside the crop."""
    x0, y0, x1, y1 = crop_xyxy
    crop_hw, image_hw = (y1 - y0, x1 - x0), (40, 60)
    logits = adversarial_logits()["smooth"].astype(np.float32)
    traced = trace(
        logits,
        **axes(crop_hw),
        crop_xyxy=crop_xyxy,
        image_hw=image_hw,
        stability_score_offset=1.0,
    )
    inside = upsample_as_the_reference(logits, crop_hw, torch.float64) > 0
    for i in range(len(logits)):
        expected = np.zeros(image_hw, bool)
        expected[y0:y1, x0:x1] = inside[i]
        runs = traced.run_lengths[traced.run_offsets[i] : traced.run_offsets[i + 1]]
        np.testing.assert_array_equal(rle.runs_to_mask(runs, image_hw=image_hw), expected)


@pytest.mark.parametrize("crop_hw", [(40, 60), (300, 200)])
def test_upsampled_logits_are_the_references(crop_hw: tuple[int, int]) -> None:
    """The full-size logits of a few masks, for whoever asks for them."""
    logits = adversarial_logits()["smooth"].astype(np.float32)
    expected = upsample_as_the_reference(logits, crop_hw, torch.float64)
    np.testing.assert_allclose(masks.upsample_logits(logits, **axes(crop_hw)), expected, atol=1e-4)
