"""segment-anything's own functions, and torchvision's suppression, are the judges."""

import numpy as np
import pytest
import torch
from segment_anything.utils import amg
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops.boxes import batched_nms

from labeler import geometry


@pytest.mark.parametrize("image_hw", [(480, 640), (641, 333), (1024, 1024), (16, 4000)])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("overlap_ratio", [0.0, 0.2, 512 / 1500, 0.9])
def test_crops_are_the_references(image_hw: tuple[int, int], n_layers: int, overlap_ratio: float) -> None:
    """Same boxes, layers and order."""
    boxes, layers = amg.generate_crop_boxes(image_hw, n_layers, overlap_ratio)
    crops = geometry.make_crops(image_hw, n_layers=n_layers, overlap_ratio=overlap_ratio)
    assert [list(c.box_xyxy) for c in crops] == boxes
    assert [c.layer for c in crops] == layers


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 9), (3, 4000)])
def test_crops_of_images_smaller_than_a_layer_hold_pixels(image_hw: tuple[int, int]) -> None:
    """Where the reference would cut crops without a pixel, they are left out; the whole image stays."""
    crops = geometry.make_crops(image_hw, n_layers=3, overlap_ratio=512 / 1500)
    assert crops[0].box_xyxy == (0, 0, image_hw[1], image_hw[0])
    assert all(x0 < x1 and y0 < y1 for (x0, y0, x1, y1), _ in crops)


@pytest.mark.parametrize(("side", "n_layers", "factor"), [(32, 0, 1), (32, 2, 2), (7, 3, 1), (9, 1, 4)])
def test_point_grids_are_the_references(side: int, n_layers: int, factor: int) -> None:
    """Same points in the same order, layer by layer."""
    expected = amg.build_all_layer_point_grids(side, n_layers, factor)
    grids = geometry.make_layer_grids(side, n_layers=n_layers, downscale_factor=factor)
    assert len(grids) == len(expected)
    for grid, reference in zip(grids, expected, strict=True):
        np.testing.assert_array_equal(grid, reference)


def test_a_grid_never_runs_out_of_points() -> None:
    """A layer whose points a side would round to none keeps one."""
    assert [len(g) for g in geometry.make_layer_grids(2, n_layers=3, downscale_factor=2)] == [4, 1, 1, 1]


def test_resize_sizes_are_the_references() -> None:
    """Rounded half up, for every shape; only a side that would vanish becomes one pixel."""
    rng = np.random.default_rng(0)
    for height, width in [(1200, 1800), (1, 1), (12, 4000), (1, 4000), *rng.integers(1, 5000, (300, 2)).tolist()]:
        expected = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
        assert geometry.fit_in_square((height, width), side=1024) == (max(1, expected[0]), max(1, expected[1]))


def test_points_move_to_the_input_as_in_the_reference() -> None:
    """Coordinates scale with the resized crop."""
    points = np.random.default_rng(0).random((5, 3, 2)) * (640, 480)
    expected = ResizeLongestSide(1024).apply_coords(points, (480, 640))
    moved = geometry.points_to_input(points, crop_hw=(480, 640), input_hw=geometry.fit_in_square((480, 640), side=1024))
    np.testing.assert_allclose(moved, expected, rtol=1e-15)


def test_boxes_cut_off_by_a_crop_are_the_references() -> None:
    """Within 20 px of the crop's side counts, unless within 20 px of the image's own; exactly 20 is within."""
    rng = np.random.default_rng(0)
    crop, image_hw = (100, 0, 400, 290), (300, 500)
    corners = rng.integers(0, 300, (4000, 4))
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], axis=1)
    boxes[:, 0::2] += 100
    shifted = torch.from_numpy(boxes - np.array([100, 0, 100, 0]))
    expected = amg.is_box_near_crop_edge(shifted, list(crop), [0, 0, 500, 300]).numpy()
    np.testing.assert_array_equal(geometry.boxes_touch_crop_edge(boxes, crop_xyxy=crop, image_hw=image_hw), expected)
    assert 0 < expected.sum() < len(boxes)


@pytest.mark.parametrize("count", [0, 1, 50, 900, 1500])
@pytest.mark.parametrize("iou_thresh", [0.0, 0.5, 0.7, 1.0])
def test_suppression_is_torchvisions(count: int, iou_thresh: float) -> None:
    """Same boxes stay in the same order, with scores that tie, boxes that coincide and boxes one pixel wide."""
    rng = np.random.default_rng(count)
    corner = rng.integers(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 25, (count, 2))], axis=1)
    scores = rng.permutation(count).astype(np.float32)
    kept = geometry.keep_best_boxes(boxes, scores=scores, iou_thresh=iou_thresh)
    expected = batched_nms(torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(count), iou_thresh)
    np.testing.assert_array_equal(kept, expected.numpy())


def test_equal_scores_stay_in_their_earlier_order() -> None:
    """Ties are broken by place, so that a run repeats itself."""
    boxes = np.array([[0, 0, 9, 9], [100, 0, 109, 9], [0, 0, 9, 9], [50, 0, 59, 9]])
    scores = np.array([0.5, 0.9, 0.5, 0.9], np.float32)
    assert geometry.keep_best_boxes(boxes, scores=scores, iou_thresh=0.5).tolist() == [1, 3, 0]
