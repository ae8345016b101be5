"""What is said of options."""

import inspect

import pytest
from segment_anything import SamAutomaticMaskGenerator

from labeler.errors import OptionsError
from labeler.options import MaskOptions, check_given_options, fingerprint, name_prices, resolve_mask_options


def test_defaults_are_the_reference_s() -> None:
    """Every option that it has, too; those of our own change nothing unless they are chosen."""
    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(SamAutomaticMaskGenerator).parameters.items()
        if name not in ("model", "points_per_batch", "output_mode")
    }
    ours = MaskOptions().model_dump()
    assert {name: ours.pop(name) for name in theirs} == theirs
    assert ours == {
        "max_mask_area_ratio": 1.0,
        "points": "all",
        "exif": "apply",
        "max_pixels": 178_956_970,
        "precision": "f32",
    }


def test_the_preset_is_the_paper_s_and_what_is_typed_wins() -> None:
    """Over the model's own defaults, which are above SAM's."""
    options = resolve_mask_options(
        {"points_per_side": 8}, preset="sa1b", model_defaults={"pred_iou_thresh": 0.5, "crop_n_layers": 1}
    )
    assert options == MaskOptions(
        points_per_side=8,
        pred_iou_thresh=0.5,
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        max_mask_area_ratio=0.95,
    )


def test_whatever_decides_masks_changes_the_fingerprint() -> None:
    """Each option by itself, the model, the prompts; the same things give the same one."""
    other = {
        "points_per_side": 31, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, "stability_score_offset": 0.5,
        "box_nms_thresh": 0.5, "crop_n_layers": 1, "crop_nms_thresh": 0.5, "crop_overlap_ratio": 0.5,
        "crop_n_points_downscale_factor": 2, "point_grids": [[[0.5, 0.5]]], "min_mask_region_area": 1,
        "max_mask_area_ratio": 0.5, "points": "adaptive", "exif": "ignore", "max_pixels": 1000, "precision": "bf16",
    }  # fmt: skip
    assert set(other) == set(MaskOptions.model_fields)
    prints = [fingerprint(MaskOptions(), model_sha256="a") for _ in range(2)]
    assert len(set(prints)) == 1
    for name, value in other.items():
        prints.append(fingerprint(MaskOptions.model_validate({name: value}), model_sha256="a"))
    prints.append(fingerprint(MaskOptions(), model_sha256="b"))
    prints += [fingerprint(MaskOptions(), model_sha256="a", prompts={"sha256": text}) for text in ("a", "b")]
    assert len(set(prints)) == len(prints) - 1


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
