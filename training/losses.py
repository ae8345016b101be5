"""What a step of training asks of the masks: right masks for what a click may mean, honest predicted IoUs.

Must not know scenes, optimisers or files. Masks are compared at the decoder's own resolution, half the input's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

FOCAL_WEIGHT = 20.0
CLICK_SINGLE_WEIGHT = 0.25  # the single mask of a click: no meaning of it is the right one, so it counts less


@dataclass(frozen=True)
class Verdict:
    """Losses to add up, and the IoUs to tell. A column a prompt: (B, P)."""

    masks: Tensor
    iou: Tensor
    best_iou: Tensor
    """Best of the three masks against the region asked for."""
    chosen_iou: Tensor
    """The mask of highest predicted IoU against whichever meaning it fits best."""
    single_iou: Tensor
    """The single mask against the region asked for."""


def target_masks(levels: Tensor, ids: Tensor) -> Tensor:
    """Masks (B, P, 3, S/2, S/2) bool of the regions ``ids`` (B, P, 3) in ``levels`` (B, 3, S, S); none where the id is 0."""
    wanted = torch.where(ids == 0, -1, ids).to(levels.dtype)[..., None, None]
    votes = torch.zeros((), dtype=torch.uint8, device=levels.device)
    for down in (0, 1):
        for right in (0, 1):
            corner = levels[:, :, down::2, right::2].contiguous()[:, None]
            votes = votes + (corner == wanted).to(torch.uint8)
    return votes >= 2


def judge(logits: Tensor, predicted_iou: Tensor, targets: Tensor, *, known: Tensor, pick: Tensor, is_click: Tensor) -> Verdict:
    """Losses and IoUs of logits (B, P, 4, h, w) against targets (B, P, 3, h, w).

    Args:
        known: (B, P, 3) bool, which targets exist. Each asks for one good mask among the three; masks may serve several.
        pick: (B, P) the target that the prompt was drawn for; the single mask is held to it.
        is_click: (B, P) bool.
    """
    x, t = logits.flatten(-2).float(), targets.flatten(-2).float()
    pair_loss = _focal_and_dice(x, t)  # (B, P, 4, 3)
    pair_iou = _iou(x.detach(), t)
    at_pick = pick[..., None, None].expand(*pick.shape, 4, 1)
    num_known = known.sum(-1).clamp(min=1)
    best_of_three = pair_loss[:, :, 1:].amin(dim=2)
    single_weight = torch.where(is_click, CLICK_SINGLE_WEIGHT, 1.0)
    single = pair_loss.gather(3, at_pick)[:, :, 0, 0]
    masks = (best_of_three * known).sum(-1) / num_known + single_weight * single
    asked_iou = pair_iou.gather(3, at_pick)[..., 0]  # (B, P, 4)
    any_iou = (pair_iou * known[:, :, None]).amax(dim=-1)
    true_iou = torch.cat([asked_iou[..., :1], any_iou[..., 1:]], dim=-1)
    chosen = predicted_iou[..., 1:].argmax(dim=-1, keepdim=True) + 1
    return Verdict(
        masks=masks,
        iou=functional.mse_loss(predicted_iou.float(), true_iou, reduction="none").mean(-1),
        best_iou=asked_iou[..., 1:].amax(dim=-1),
        chosen_iou=any_iou.gather(2, chosen)[..., 0],
        single_iou=asked_iou[..., 0],
    )


def _focal_and_dice(x: Tensor, t: Tensor) -> Tensor:
    """Loss (B, P, 4, 3) of each mask (B, P, 4, M) against each target (B, P, 3, M), by products instead of twelve passes."""
    probability, cost = x.sigmoid(), functional.softplus(x)
    if_clear = probability.square() * cost
    if_set = (1.0 - probability).square() * (cost - x)  # softplus(-x) = softplus(x) - x
    flipped = t.transpose(-1, -2)
    focal = (if_clear.sum(-1, keepdim=True) + (if_set - if_clear) @ flipped) / x.shape[-1]
    overlap = probability @ flipped
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(-1, keepdim=True) + t.sum(-1)[:, :, None] + 1.0)
    return FOCAL_WEIGHT * focal + dice


def _iou(x: Tensor, t: Tensor) -> Tensor:
    """IoU (B, P, 4, 3) of the masks that logits x (B, P, 4, M) give with the targets (B, P, 3, M)."""
    masks = (x > 0).float()
    overlap = masks @ t.transpose(-1, -2)
    return overlap / (masks.sum(-1, keepdim=True) + t.sum(-1)[:, :, None] - overlap).clamp(min=1.0)


class Hint(nn.Module):
    """A head that is thrown away: pixels of one region shall have like features, at each level.

    It teaches the encoder directly and in every pixel, long before the decoder has learned to pass on what it wants.
    """

    dims = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Linear(channels, 16 * 3 * self.dims)
        self.reach = nn.Parameter(torch.full((3,), 3.0))

    def forward(self, features: Tensor, clicks_xy: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Loss () of features (B, C, h, w) for clicks (B, P, 2) in the input frame with targets (B, P, 3, 4h, 4w)."""
        batch, _, grid_h, grid_w = features.shape
        spread = self.spread(features.float().permute(0, 2, 3, 1)).view(batch, grid_h, grid_w, 4, 4, 3, self.dims)
        embedding = spread.permute(0, 5, 1, 3, 2, 4, 6).reshape(batch, 3, 16 * grid_h * grid_w, self.dims)
        at = (clicks_xy / 2).long()
        index = (at[..., 1] * 4 * grid_w + at[..., 0])[:, None, :, None].expand(-1, 3, -1, self.dims)
        there = embedding.gather(2, index)  # (B, 3, P, dims)
        lengths = there.square().sum(-1)[..., None] + embedding.square().sum(-1)[:, :, None]
        distance = lengths - 2 * there @ embedding.transpose(-1, -2)
        x = (self.reach[:, None, None] - distance).transpose(1, 2)  # (B, P, 3, M)
        t = targets.flatten(-2).float()
        entropy = functional.binary_cross_entropy_with_logits(x, t, reduction="none").mean(-1)
        probability = x.sigmoid()
        dice = 1.0 - (2.0 * (probability * t).sum(-1) + 1.0) / (probability.sum(-1) + t.sum(-1) + 1.0)
        loss: Tensor = ((entropy + dice) * known).sum() / known.sum().clamp(min=1)
        return loss
