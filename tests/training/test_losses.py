"""What training asks for."""

import pytest
import torch

from training.losses import judge, target_masks
from training.train import draw_correction


def test_targets_are_at_half_size_by_majority() -> None:
    """Two of four pixels make a pixel; id 0 asks for nothing, not for the padding."""
    levels = torch.zeros(1, 3, 4, 4, dtype=torch.int16)
    levels[0, 1, :2, :3] = 5
    masks = target_masks(levels, torch.tensor([[[0, 5, 0]]]))
    assert masks.shape == (1, 1, 3, 2, 2)
    assert masks[0, 0, 1].tolist() == [[True, True], [False, False]]
    assert not masks[0, 0, 0].any()


def test_right_masks_cost_nothing_and_any_of_the_three_may_be_right() -> None:
    """A click with two meanings, each met by another mask."""
    targets = torch.zeros(1, 1, 3, 8, 8, dtype=torch.bool)
    targets[0, 0, 0, :4, :4] = True
    targets[0, 0, 1, :4, :] = True
    logits = torch.full((1, 1, 4, 8, 8), -20.0)
    logits[0, 0, 0] = targets[0, 0, 0] * 40.0 - 20.0
    logits[0, 0, 2] = targets[0, 0, 1] * 40.0 - 20.0
    logits[0, 0, 3] = targets[0, 0, 0] * 40.0 - 20.0
    known, is_click = torch.tensor([[[True, True, False]]]), torch.tensor([[True]])
    sure = torch.tensor([[[1.0, 0.0, 0.5, 1.0]]])
    verdict = judge(logits, sure, targets, known=known, pick=torch.tensor([[0]]), is_click=is_click)
    assert float(verdict.masks) == pytest.approx(0.0, abs=1e-3)
    assert float(verdict.best_iou) == float(verdict.chosen_iou) == float(verdict.single_iou) == 1.0
    assert float(verdict.iou) == pytest.approx(0.25 / 4)  # only mask 2 promises 0.5 and is perfect


def test_a_correcting_point_lies_where_the_mask_is_wrong() -> None:
    """More is wanted on the right: label 1 there; nothing else is wrong."""
    masks, wanted = torch.zeros(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    wanted[..., 3, 6] = True
    point_xy, label = draw_correction(masks, wanted)
    assert (point_xy[0, 0] // 2).tolist() == [6.0, 3.0]
    assert label.tolist() == [[1]]
