"""segment-anything's generator in PyTorch, f32 and the same weights, is the truth for every mask.

Six settings run always; ``make parity`` runs the whole matrix and prints a table.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import skimage.transform
from drawn_masks import draw_box
from segment_anything.modeling import Sam

from labeler import rle
from labeler.engine import Engine, Prediction
from labeler.generator import generate_masks
from labeler.model_folder import ModelInfo, read_model_info
from labeler.models import find_model
from labeler.options import MaskOptions, resolve_mask_options
from labeler.predictor import Predictor
from labeler.types import Box, Embedding, MaskSet, Prompts
from tests.labeler import parity

LOW = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.15, "stability_score_offset": 0.3}
MEDIUM = {"pred_iou_thresh": 0.2, "stability_score_thresh": 0.2, "stability_score_offset": 0.3}
HIGH = {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.4, "stability_score_offset": 0.5}
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
CROPS_1 = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
CROPS_2 = {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2}
GRID = ((0.1, 0.2), (0.5, 0.5), (0.9, 0.3), (0.25, 0.75), (0.0, 0.0), (1.0, 1.0), (0.6, 0.6))

ALWAYS: dict[str, dict[str, Any]] = {
    "16 points, low": {"points_per_side": 16, **LOW},
    "32 points, medium, regions 100": {"points_per_side": 32, "min_mask_region_area": 100, **MEDIUM},
    "8 points, 1 crop layer, low, regions 100": {"points_per_side": 8, "min_mask_region_area": 100, **CROPS_1, **LOW},
    "8 points, 2 crop layers, medium": {"points_per_side": 8, **CROPS_2, **MEDIUM},
    "no thresholds": {"points_per_side": 8, **ALL},
    "given grids": {"point_grids": (GRID, GRID[:3]), "crop_n_layers": 1, **LOW},
}
MATRIX: dict[str, dict[str, Any]] = ALWAYS | {
    "8 points, low": {"points_per_side": 8, **LOW},
    "8 points, medium": {"points_per_side": 8, **MEDIUM},
    "8 points, high": {"points_per_side": 8, **HIGH},
    "16 points, medium": {"points_per_side": 16, **MEDIUM},
    "16 points, high": {"points_per_side": 16, **HIGH},
    "32 points, low": {"points_per_side": 32, **LOW},
    "32 points, high": {"points_per_side": 32, **HIGH},
    "16 points, SAM's defaults": {"points_per_side": 16},
    "16 points, low, regions 100": {"points_per_side": 16, "min_mask_region_area": 100, **LOW},
    "16 points, low, regions 1000": {"points_per_side": 16, "min_mask_region_area": 1000, **LOW},
    "8 points, no thresholds, regions 100": {"points_per_side": 8, "min_mask_region_area": 100, **ALL},
    "16 points, offset 0": {"points_per_side": 16, **LOW, "stability_score_offset": 0.0},
    "16 points, offset 1, no stability": {
        "points_per_side": 16,
        "pred_iou_thresh": 0.2,
        "stability_score_thresh": 0.0,
        "stability_score_offset": 1.0,
    },
    "16 points, box NMS 0.3": {"points_per_side": 16, **LOW, "box_nms_thresh": 0.3},
    "16 points, box NMS 0.95": {"points_per_side": 16, **LOW, "box_nms_thresh": 0.95},
    "8 points, 1 crop layer, factor 1, low": {"points_per_side": 8, "crop_n_layers": 1, **LOW},
    "16 points, 1 crop layer, factor 2, low": {"points_per_side": 16, **CROPS_1, **LOW},
    "16 points, 1 crop layer, factor 2, medium": {"points_per_side": 16, **CROPS_1, **MEDIUM},
    "16 points, 1 crop layer, high": {"points_per_side": 16, "crop_n_layers": 1, **HIGH},
    "8 points, 2 crop layers, factor 1, low": {"points_per_side": 8, "crop_n_layers": 2, **LOW},
    "16 points, 2 crop layers, factor 2, low, regions 100": {
        "points_per_side": 16,
        "min_mask_region_area": 100,
        **CROPS_2,
        **LOW,
    },
    "8 points, 1 crop layer, no overlap": {"points_per_side": 8, **CROPS_1, **LOW, "crop_overlap_ratio": 0.0},
    "8 points, 1 crop layer, overlap 0.6": {"points_per_side": 8, **CROPS_1, **LOW, "crop_overlap_ratio": 0.6},
    "8 points, 1 crop layer, crop NMS 0.3": {"points_per_side": 8, **CROPS_1, **LOW, "crop_nms_thresh": 0.3},
    "8 points, 2 crop layers, crop NMS 0.95": {"points_per_side": 8, **CROPS_2, **LOW, "crop_nms_thresh": 0.95},
    "one point": {"points_per_side": 1, **LOW},
}


def photos() -> dict[str, np.ndarray]:
    """Landscape, portrait, tiny, and larger than twice the model's input of 256."""

    def shrink(pixels: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        return (skimage.transform.resize(pixels, image_hw, anti_aliasing=True) * 255).round().astype(np.uint8)

    return {
        "landscape": shrink(skimage.data.coffee(), (240, 360)),
        "portrait": np.ascontiguousarray(skimage.data.rocket()[:, 180:480]),
        "tiny": shrink(skimage.data.chelsea(), (48, 72)),
        "large": shrink(skimage.data.hubble_deep_field(), (523, 600)),
    }


@pytest.fixture(scope="module")
def predictor(prototype_folder: Path) -> Predictor:
    info = read_model_info(prototype_folder)
    return Predictor(Engine(prototype_folder, info, threads=2), info)


def check_setting(name: str, sam: Sam, predictor: Predictor) -> list[parity.Comparison]:
    options = resolve_mask_options(MATRIX[name])
    comparisons = []
    for pixels in photos().values():
        ours, _ = generate_masks(pixels, predictor=predictor, options=options)
        try:
            reference = parity.run_reference(sam, pixels, options)
        except IndexError:  # The reference can't do without masks where there are crops (segment-anything#614).
            assert options.crop_n_layers > 0
            assert len(ours) == 0
            continue
        comparisons.append(parity.compare(reference, parity.list_masks(ours), options=options, image_hw=pixels.shape[:2]))
    return comparisons


@pytest.mark.parametrize("name", ALWAYS)
def test_masks_are_the_reference_generators(name: str, prototype_sam: Sam, predictor: Predictor) -> None:
    """Every mask has its partner; at most 1 % hang on a decision that rounding may turn."""
    comparisons = check_setting(name, prototype_sam, predictor)
    assert [fault for c in comparisons for fault in c.faults] == []
    total = sum(c.num_reference for c in comparisons)
    assert total > 0
    assert sum(len(c.excused) for c in comparisons) <= max(1, 0.01 * total)


@pytest.mark.parity
@pytest.mark.timeout(3600)
def test_the_whole_matrix(prototype_sam: Sam, predictor: Predictor) -> None:
    """All settings on four photos; prints masks, worst IoU and excused differences of each."""
    faults, total, excused = [], 0, 0
    print(f"\n{'setting':58s} {'masks':>6s} {'worst IoU':>10s} {'excused':>8s} {'faults':>7s}")
    for name in MATRIX:
        comparisons = check_setting(name, prototype_sam, predictor)
        masks = sum(c.num_reference for c in comparisons)
        hung = [reason for c in comparisons for reason in c.excused]
        wrong = [fault for c in comparisons for fault in c.faults]
        worst = min((c.worst_iou for c in comparisons), default=1.0)
        print(f"{name:58s} {masks:6d} {worst:10.5f} {len(hung):8d} {len(wrong):7d}", *hung, sep="\n    " if hung else "")
        faults += [f"{name}: {fault}" for fault in wrong]
        total += masks
        excused += len(hung)
    print(f"{len(MATRIX)} settings x {len(photos())} photos: {total} masks, {excused} excused, {len(faults)} faults")
    assert faults == []
    assert excused <= 0.01 * total


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 40), (3, 900), (5, 5)])
def test_sizes_the_reference_fails_on_give_a_normal_result(image_hw: tuple[int, int], predictor: Predictor) -> None:
    """A side below 2^layers, or one that resizing would round to nothing: masks inside the image, or none."""
    pixels = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), np.uint8)
    options = resolve_mask_options(ALL, {"points_per_side": 2, "crop_n_layers": 2})
    masks, _ = generate_masks(pixels, predictor=predictor, options=options)
    assert masks.image_hw == image_hw
    for i in range(len(masks)):
        assert masks.runs(i).sum() == image_hw[0] * image_hw[1]
        assert masks.areas[i] > 0


def test_no_mask_is_a_normal_answer(predictor: Predictor) -> None:
    """With crops and region removal, and nothing that passes."""
    options = MaskOptions(points_per_side=2, crop_n_layers=1, min_mask_region_area=100, pred_iou_thresh=1.9)
    masks, _ = generate_masks(skimage.data.coffee(), predictor=predictor, options=options)
    assert len(masks) == 0


def test_masks_larger_than_the_ratio_go_before_they_suppress(predictor: Predictor) -> None:
    """No mask over the ratio stays, and each mask under it that stood before still stands."""
    given = {"points_per_side": 8, **LOW}
    everything, _ = generate_masks(skimage.data.coffee(), predictor=predictor, options=resolve_mask_options(given))
    limited, _ = generate_masks(
        skimage.data.coffee(), predictor=predictor, options=resolve_mask_options(given, {"max_mask_area_ratio": 0.1})
    )
    limit = 0.1 * 400 * 600
    assert everything.areas.max() > limit >= limited.areas.max()
    small = [tuple(everything.runs(i)) for i in np.flatnonzero(everything.areas <= limit)]
    assert set(small) <= {tuple(limited.runs(i)) for i in range(len(limited))}


class AskedPredictor(Predictor):
    """Remembers the points it was asked about, in the image's frame, by crop."""

    def __init__(self, engine: Engine, info: ModelInfo) -> None:
        super().__init__(engine, info)
        self.asked_xy: dict[Box, list[tuple[float, float]]] = {}

    def predict(self, embedding: Embedding, prompts: Prompts, **more: Any) -> Prediction:
        points_xy = prompts.points_xy[:, 0] + np.array(embedding.crop_xyxy[:2])
        self.asked_xy.setdefault(embedding.crop_xyxy, []).extend(map(tuple, points_xy.tolist()))
        return super().predict(embedding, prompts, **more)


@pytest.fixture(scope="module")
def tiny() -> AskedPredictor:
    folder = find_model("tiny")
    info = read_model_info(folder)
    return AskedPredictor(Engine(folder, info, threads=1), info)


THING_BOXES = ((30, 30, 120, 130), (40, 220, 130, 360), (170, 40, 270, 150), (170, 250, 270, 350))
THINGS = [draw_box((300, 400), *box) for box in THING_BOXES]


def find_things(predictor: AskedPredictor, **given: Any) -> tuple[MaskSet, list[np.ndarray]]:
    """The masks of a picture of four things of one colour each on a plain ground, also as pixels."""
    pixels = np.full((300, 400, 3), (210, 205, 190), np.uint8)
    for thing, colour in zip(THINGS, [(180, 40, 40), (40, 90, 170), (50, 140, 60), (60, 50, 60)], strict=True):
        pixels[thing] = colour
    predictor.asked_xy.clear()
    options = resolve_mask_options({"points_per_side": 16, **given}, model_defaults=predictor.info.defaults)
    masks, _ = generate_masks(pixels, predictor=predictor, options=options)
    return masks, [rle.runs_to_mask(masks.runs(i), image_hw=masks.image_hw) for i in range(len(masks))]


@pytest.mark.parametrize("layers", [0, 1])
def test_adaptive_points_are_fewer_and_find_the_things(tiny: AskedPredictor, layers: int) -> None:
    """In each crop, and none that the grid does not have; what is plain to see is found all the same."""
    find_things(tiny, crop_n_layers=layers)
    grid = {crop: set(asked) for crop, asked in tiny.asked_xy.items()}
    masks, pixels = find_things(tiny, crop_n_layers=layers, points="adaptive")
    assert len(grid) == (1 if layers == 0 else 5)
    assert tiny.asked_xy.keys() == grid.keys()
    for crop, asked in tiny.asked_xy.items():
        assert len(asked) == len(set(asked)) < len(grid[crop])
        assert set(asked) < grid[crop]
    for thing in THINGS:
        assert max((mask & thing).sum() / (mask | thing).sum() for mask in pixels) > 0.9
    assert len(masks) < 40


def test_adaptive_points_are_spared_where_their_crop_found_a_mask(tiny: AskedPredictor) -> None:
    """Wherever the crop lies: a point not asked, and its neighbours, are inside one mask that the same crop found."""
    everything = {"crop_n_layers": 1, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}  # No mask is dropped for another.
    find_things(tiny, **everything)
    grid = {crop: set(asked) for crop, asked in tiny.asked_xy.items()}
    masks, pixels = find_things(tiny, **everything, points="adaptive")
    for crop, asked in tiny.asked_xy.items():
        spared = grid[crop] - set(asked)
        assert spared
        found = [mask for mask, box in zip(pixels, masks.crop_boxes_xyxy.tolist(), strict=True) if tuple(box) == crop]
        step_x, step_y = (crop[2] - crop[0]) / 16, (crop[3] - crop[1]) / 16
        for x, y in spared:
            around = [(x, y), (x - step_x, y), (x + step_x, y), (x, y - step_y), (x, y + step_y)]
            columns, rows = np.clip(np.array(around).astype(int), 0, [399, 299]).T
            assert any(mask[rows, columns].all() for mask in found)


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 2), (2, 1)])
def test_an_image_one_pixel_thin_gives_each_mask_once(image_hw: tuple[int, int], predictor: Predictor) -> None:
    """Its boxes have no area, so that suppression sees no duplicates; the reference would give one mask a prompt."""
    options = resolve_mask_options(ALL, {"points_per_side": 8})
    masks, _ = generate_masks(np.full((*image_hw, 3), 128, np.uint8), predictor=predictor, options=options)
    assert len({masks.runs(i).tobytes() for i in range(len(masks))}) == len(masks) <= 2 ** (image_hw[0] * image_hw[1]) - 1
