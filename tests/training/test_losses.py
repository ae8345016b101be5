"""What training asks for."""

import math

import pytest
import torch

from labeler.encoders import EdgeAwareFilter
from training.losses import INSIDE_IT, UNSURE, AimHint, BorderHint, Hint, draw_sample, judge, order_by_cells, target_masks
from training.model import ARCHITECTURE, build_model, decode, embed_points
from training.train import draw_correction


def test_targets_are_at_half_size_and_unsure_of_halves() -> None:
    """Three of four pixels make one, two leave it open; of a line two make one. Id 0 asks for nothing, not for the padding."""
    levels = torch.zeros(1, 3, 6, 6, dtype=torch.int16)
    levels[0, 1, :4, :5] = 5
    levels[0, 2, :, 3] = 7
    targets = target_masks(levels, torch.tensor([[[0, 5, 7]]]))
    assert targets.shape == (1, 1, 3, 3, 3)
    assert targets[0, 0, 1].tolist() == [[INSIDE_IT, INSIDE_IT, UNSURE]] * 2 + [[0, 0, 0]]
    assert targets[0, 0, 2].tolist() == [[0, INSIDE_IT, 0]] * 3
    assert not targets[0, 0, 0].any()


def test_what_is_unsure_costs_nothing_either_way() -> None:
    targets = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    targets[0, 0, 0, :4] = INSIDE_IT
    targets[0, 0, 0, 4] = UNSURE
    known, is_click = torch.tensor([[[True, False, False]]]), torch.tensor([[True]])
    for value in (-20.0, 20.0):
        logits = torch.full((1, 1, 4, 8, 8), -20.0)
        logits[..., :4, :] = 20.0
        logits[..., 4, :] = value
        sample = draw_sample(targets, known, num_cells=4)
        in_cells = order_by_cells(logits).gather(3, sample.index[:, :, None, :, None].expand(-1, -1, 4, -1, 16)).flatten(-2)
        verdict = judge(in_cells, torch.ones(1, 1, 4), sample, known=known, pick=torch.tensor([[0]]), is_click=is_click)
        assert float(verdict.masks) == pytest.approx(0.0, abs=1e-3)
        assert float(verdict.best_iou) == 1.0


def test_right_masks_cost_nothing_and_any_of_the_three_may_be_right() -> None:
    """A click with two meanings, each met by another mask."""
    targets = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8)
    targets[0, 0, 0, :4, :4] = INSIDE_IT
    targets[0, 0, 1, :4, :] = INSIDE_IT
    logits = torch.full((1, 1, 4, 8, 8), -20.0)
    logits[0, 0, 0] = (targets[0, 0, 0] == INSIDE_IT) * 40.0 - 20.0
    logits[0, 0, 2] = (targets[0, 0, 1] == INSIDE_IT) * 40.0 - 20.0
    logits[0, 0, 3] = (targets[0, 0, 0] == INSIDE_IT) * 40.0 - 20.0
    known, is_click = torch.tensor([[[True, True, False]]]), torch.tensor([[True]])
    sure = torch.tensor([[[1.0, 0.0, 0.5, 1.0]]])
    sample = draw_sample(targets, known, num_cells=4)  # all there are
    in_cells = order_by_cells(logits).gather(3, sample.index[:, :, None, :, None].expand(-1, -1, 4, -1, 16)).flatten(-2)
    verdict = judge(in_cells, sure, sample, known=known, pick=torch.tensor([[0]]), is_click=is_click)
    assert float(verdict.masks) == pytest.approx(0.0, abs=1e-3)
    assert float(verdict.best_iou) == float(verdict.chosen_iou) == float(verdict.single_iou) == 1.0
    assert float(verdict.iou) == pytest.approx(0.25 / 4)  # only mask 2 promises 0.5 and is perfect


def test_a_sample_holds_every_border_and_speaks_for_the_rest() -> None:
    """A cell that a border runs through is always in it; weighed, the others stand for all that were left out."""
    torch.manual_seed(0)
    targets = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)
    targets[0, 0, 0, 6:30, 6:30] = INSIDE_IT
    known = torch.tensor([[[True, False, False]]])
    share = order_by_cells(targets[:, :, 0] == INSIDE_IT).float().mean(-1)
    border = torch.nonzero((share > 0) & (share < 1))[:, 2]
    masks, inside = [], []
    for _ in range(300):
        sample = draw_sample(targets, known, num_cells=64)
        assert len(set(sample.index.flatten().tolist())) == 64
        assert set(border.tolist()) <= set(sample.index.flatten().tolist())
        masks.append(float(sample.weights[..., 0].sum()))
        inside.append(float(sample.inside[..., 0].sum()))
    assert sample.num_pixels == 64 * 64
    assert float(sample.areas[0, 0, 0]) == 24 * 24
    assert sum(masks) / 300 == pytest.approx(64 * 64, rel=0.02)
    assert sum(inside) / 300 == pytest.approx(24 * 24, rel=0.02)


def test_features_that_tell_regions_apart_satisfy_the_hint() -> None:
    """A head that has learned where the regions are costs less than one that has not, whichever pixels are asked."""
    torch.manual_seed(0)
    levels = torch.ones(1, 3, 32, 32, dtype=torch.int16)
    levels[..., 16:] = 2
    features = torch.zeros(1, 4, 4, 4)
    features[..., 2:] = 8.0
    hint, clicks = Hint(4), torch.tensor([[[3.0, 3.0], [30.0, 30.0]]])
    blind = hint(torch.zeros(1, 4, 4, 4), levels, clicks)
    with torch.no_grad():
        hint.spread.weight.fill_(0.2)
        hint.spread.bias.zero_()
    assert hint(features, levels, clicks) < 0.3 * blind


def test_filters_that_know_where_borders_run_satisfy_the_border_hint() -> None:
    """A border counts where two regions of its level meet; where nothing is sure it costs nothing; it is told once."""
    levels = torch.zeros(1, 3, 32, 32, dtype=torch.int16)
    levels[0, 0] = 1
    levels[0, 0, :, 16:] = 2  # level 1 is one region, level 2 unknown
    levels[0, 1] = 1
    spread, place = EdgeAwareFilter(6, num_heads=6), (torch.zeros(6, 1, 1), torch.zeros(4, 6))
    hint = BorderHint(spread)
    told = torch.full((1, 12, 4, 4), -9.0)
    told[:, 0, :, 1] = 9.0
    told[:, 2] = 9.0
    spread.borders.register_forward_hook(lambda *_: told, prepend=True)
    spread(torch.randn(1, 6, 4, 4), place)
    assert float(hint(levels)) < 1e-3
    assert float(hint(levels)) == 0.0
    told = told.roll(1, dims=3)
    spread(torch.randn(1, 6, 4, 4), place)
    assert float(hint(levels)) > 1.0


@torch.no_grad()
def test_points_that_look_where_they_are_satisfy_the_aim_hint() -> None:
    """The middle of a place asks for that place, a corner for all four around it, a padding point for none."""
    sam = build_model({**ARCHITECTURE, "image_size": 64})
    hint = AimHint(sam)
    answers = torch.zeros(1, 1, 64, 32)  # 8x8 places
    answers[0, 0, [9, 10, 17, 18], 0] = 90.0
    for layer in sam.mask_decoder.transformer.layers:
        attention = layer.cross_attn_token_to_image
        torch.nn.init.zeros_(attention.k_proj.weight)
        attention.q_proj.register_forward_hook(lambda *_: torch.ones(1, 1, 7, 32), prepend=True)
        attention.k_proj.register_forward_hook(lambda *_: answers, prepend=True)

    def judge_points(x: float, y: float) -> float:
        points_xy, labels = torch.tensor([[[[x, y], [0.0, 0.0]]]]), torch.tensor([[[1, -1]]])
        decode(sam, torch.zeros(1, 64, 8, 8), embed_points(sam, points_xy, labels))
        return float(hint(points_xy, labels)) / 2  # two looks

    assert judge_points(15.5, 15.5) == pytest.approx(math.log(4))
    assert judge_points(40.0, 40.0) > 10.0
    answers[0, 0, [9, 10, 17], 0] = 0.0
    assert judge_points(19.5, 19.5) == pytest.approx(0.0, abs=1e-4)
    assert judge_points(15.5, 15.5) > 5.0


def test_a_correcting_point_lies_where_the_mask_is_wrong() -> None:
    """More is wanted on the right: label 1 there; nothing else is wrong."""
    masks, wanted = torch.zeros(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    wanted[..., 3, 6] = True
    point_xy, label = draw_correction(masks, wanted)
    assert (point_xy[0, 0] // 2).tolist() == [6.0, 3.0]
    assert label.tolist() == [[1]]
