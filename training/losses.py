"""What a step of training asks of the masks: right masks for what a click may mean, honest predicted IoUs.

Must not know scenes, optimisers or files. Masks are compared at the decoder's own resolution, half the input's, in a sample of
its cells (4x4 pixels of one feature): all of those that a border runs through, some of the others, weighed by their chance.
"""

import math
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from labeler.encoders import EdgeAwareFilter

FOCAL_WEIGHT = 20.0
CELL = 4  # pixels of a mask that one feature's upscaling draws, each way
NEAR_A_BORDER, INSIDE, ELSEWHERE = 8.0, 2.0, 1.0  # how likely a cell is drawn
HINT_PLACES, HINT_PIXELS = 16, 1024
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


INSIDE_IT, UNSURE = 2, 1
"""What a target holds, of uint8. Where a region has half of a mask's pixel either is right; 0 is outside."""


def target_masks(levels: Tensor, ids: Tensor) -> Tensor:
    """Targets (B, P, 3, S/2, S/2) of the regions ``ids`` (B, P, 3) in ``levels`` (B, 3, S, S); outside where the id is 0.

    Of a region that is hardly more than such halves (a line) they are inside.
    """
    wanted = torch.where(ids == 0, -1, ids).to(levels.dtype)[..., None, None]
    votes = torch.zeros((), dtype=torch.uint8, device=levels.device)
    for down in (0, 1):
        for right in (0, 1):
            corner = levels[:, :, down::2, right::2].contiguous()[:, None]
            votes = votes + (corner == wanted).to(torch.uint8)
    has_half = votes == 2
    num_halves = has_half.flatten(-2).sum(-1)
    is_thin = num_halves > (votes > 2).flatten(-2).sum(-1)
    return torch.where(has_half & ~is_thin[..., None, None], UNSURE, torch.where(votes >= 2, INSIDE_IT, 0)).to(torch.uint8)


@dataclass(frozen=True)
class Sample:
    """Cells to compare masks in, M pixels in all: index (B, P, n), and for its pixels in ``order_by_cells``' order, a column
    a target, weights (B, P, M, 3): one over the chance of being here, 0 where it is unsure; and inside (B, P, M, 3): the same
    where it is inside, else 0. areas (B, P, 3) count all pixels inside, num_pixels all of a mask's.
    """

    index: Tensor
    inside: Tensor
    weights: Tensor
    areas: Tensor
    num_pixels: int


def order_by_cells(masks: Tensor) -> Tensor:
    """Masks (..., 4h, 4w) to (..., h * w, 16): the pixels of each cell, its quarters one after the other."""
    *batch, height, width = masks.shape
    halves = masks.reshape(*batch, height // CELL, 2, 2, width // CELL, 2, 2)  # y, y1, y2, x, x1, x2
    first = len(batch)
    order = [*range(first), *(first + i for i in (0, 3, 1, 4, 2, 5))]
    return halves.permute(order).reshape(*batch, -1, CELL * CELL)


def draw_sample(targets: Tensor, known: Tensor, *, num_cells: int) -> Sample:
    """Cells of each prompt's own, of masks with targets (B, P, 3, 4h, 4w) of which ``known`` (B, P, 3) exist."""
    cells = order_by_cells(targets)  # (B, P, 3, hw, 16)
    share = cells.float().mean(-1) / INSIDE_IT
    of_known = known[..., None]
    border = ((share > 0) & (share < 1) & of_known).any(2)
    inside = ((share == 1) & of_known).any(2)
    chance = _even_out(torch.where(border, NEAR_A_BORDER, torch.where(inside, INSIDE, ELSEWHERE)), num_cells)
    # Systematic sampling: exactly ``num_cells`` of them, each with exactly its chance.
    ends = chance.cumsum(-1).clamp(max=num_cells - 1e-3)
    ends[..., -1] = num_cells
    steps = torch.arange(num_cells, device=chance.device) + torch.rand(*chance.shape[:2], 1, device=chance.device) * 0.999
    index = torch.searchsorted(ends, steps)
    weights = 1.0 / chance.gather(-1, index)
    pixels = index[:, :, None, :, None].expand(-1, -1, 3, -1, CELL * CELL)
    asked = cells.gather(3, pixels).flatten(-2).transpose(-1, -2)  # (B, P, M, 3)
    weights = weights.repeat_interleave(CELL * CELL, dim=-1)[..., None]
    return Sample(
        index=index,
        inside=weights * (asked == INSIDE_IT),
        weights=weights * (asked != UNSURE),
        areas=(targets == INSIDE_IT).flatten(-2).sum(-1).float(),
        num_pixels=targets.shape[-1] * targets.shape[-2],
    )


def _even_out(likely: Tensor, number: int) -> Tensor:
    """Chances (B, P, hw), at most 1, that add up to ``number`` and go with ``likely`` below 1."""
    chance = likely * (number / likely.sum(-1, keepdim=True))
    for _ in range(4):
        is_sure = chance >= 1.0
        rest = torch.where(is_sure, 0.0, chance)
        left = number - is_sure.sum(-1, keepdim=True)
        chance = torch.where(is_sure, 1.0, rest * (left / rest.sum(-1, keepdim=True).clamp(min=1e-6)))
    return chance.clamp(max=1.0)


def judge(logits: Tensor, predicted_iou: Tensor, sample: Sample, *, known: Tensor, pick: Tensor, is_click: Tensor) -> Verdict:
    """Losses and IoUs of logits (B, P, 4, M) in a sample's cells.

    Args:
        known: (B, P, 3) bool, which targets exist. Each asks for one good mask among the three; masks may serve several.
        pick: (B, P) the target that the prompt was drawn for; the single mask is held to it.
        is_click: (B, P) bool.
    """
    x = logits.float()
    pair_loss = _focal_and_dice(x, sample)  # (B, P, 4, 3)
    pair_iou = _iou(x.detach(), sample)
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


def _focal_and_dice(x: Tensor, sample: Sample) -> Tensor:
    """Loss (B, P, 4, 3) of each mask (B, P, 4, M) against each target, by products instead of twelve passes."""
    probability, cost = x.sigmoid(), functional.softplus(x)
    if_clear = probability.square() * cost
    if_set = (1.0 - probability).square() * (cost - x)  # softplus(-x) = softplus(x) - x
    focal = (if_clear @ sample.weights + (if_set - if_clear) @ sample.inside) / sample.num_pixels
    overlap = probability @ sample.inside
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability @ sample.weights + sample.areas[:, :, None] + 1.0)
    return FOCAL_WEIGHT * focal + dice


def _iou(x: Tensor, sample: Sample) -> Tensor:
    """IoU (B, P, 4, 3), as far as the sample tells, of the masks that logits x (B, P, 4, M) give with the targets."""
    masks = (x > 0).float()
    overlap = masks @ sample.inside
    union = masks @ sample.weights + sample.areas[:, :, None] - overlap
    return (overlap / union.clamp(min=1.0)).clamp(max=1.0)


class Hint(nn.Module):
    """A head that is thrown away: pixels of one region shall have like features, at each level.

    It teaches the encoder directly and in every pixel, long before the decoder has learned to pass on what it wants.
    """

    dims = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Linear(channels, 16 * 3 * self.dims)
        self.reach = nn.Parameter(torch.full((3,), 3.0))

    def forward(self, features: Tensor, levels: Tensor, clicks_xy: Tensor) -> Tensor:
        """Loss () of features (B, C, h, w), with levels (B, 3, S, S) of ids, 0 where nothing is sure.

        Asked at the clicks (B, P, 2), in the input frame, and at places anywhere, of a sample of pixels.
        """
        batch, _, grid_h, grid_w = features.shape
        spread = self.spread(features.float().permute(0, 2, 3, 1)).view(batch, grid_h, grid_w, 4, 4, 3, self.dims)
        embedding = spread.permute(0, 5, 1, 3, 2, 4, 6).reshape(batch, 3, 16 * grid_h * grid_w, self.dims)
        regions = levels[:, :, ::2, ::2].flatten(2).int()  # (B, 3, M)
        at = (clicks_xy / 2).long()
        anywhere = torch.randint(regions.shape[-1], (batch, HINT_PLACES), device=features.device)
        places = torch.cat([at[..., 1] * 4 * grid_w + at[..., 0], anywhere], dim=1)
        some = torch.randperm(regions.shape[-1], device=features.device)[:HINT_PIXELS]
        there = embedding.gather(2, places[:, None, :, None].expand(-1, 3, -1, self.dims))  # (B, 3, Q, dims)
        asked = regions.gather(2, places[:, None].expand(-1, 3, -1))
        embedding, regions = embedding[:, :, some], regions[:, :, some]
        lengths = there.square().sum(-1)[..., None] + embedding.square().sum(-1)[:, :, None]
        distance = lengths - 2 * there @ embedding.transpose(-1, -2)
        x = self.reach[:, None, None] - distance  # (B, 3, Q, some)
        t, known = (regions[:, :, None] == asked[..., None]).float(), asked > 0
        entropy = functional.binary_cross_entropy_with_logits(x, t, reduction="none").mean(-1)
        probability = x.sigmoid()
        dice = 1.0 - (2.0 * (probability * t).sum(-1) + 1.0) / (probability.sum(-1) + t.sum(-1) + 1.0)
        loss: Tensor = ((entropy + dice) * known).sum() / known.sum().clamp(min=1)
        return loss


class BorderHint:
    """The filters of an encoder are told where borders run: their first three heads' those of the three levels.

    Args:
        encoder: each time it runs, its filters' borders are kept until they are judged.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._told: list[Tensor] = []
        for module in encoder.modules():
            if isinstance(module, EdgeAwareFilter):
                module.borders.register_forward_hook(lambda _module, _args, told: self._told.append(told))

    def __call__(self, levels: Tensor) -> Tensor:
        """Loss () with levels (B, 3, S, S) of ids, 0 where nothing is sure: exp(-border) is the chance of one region."""
        loss = torch.zeros((), device=levels.device)
        for told in self._told:
            right, below = functional.softplus(told.float()).chunk(2, dim=1)  # (B, heads, H, W)
            step = levels.shape[-1] // told.shape[-1]
            ids = levels[:, :, step // 2 :: step, step // 2 :: step].int()
            loss = loss + _judge_borders(right, ids) + _judge_borders(below.transpose(2, 3), ids.transpose(2, 3))
        self._told.clear()
        return loss


def _judge_borders(borders: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy () of borders (B, heads, H, W), each to the place after it in the row, and ids (B, 3, H, W)."""
    border, here, there = borders[:, :3, :, :-1].clamp(min=1e-4), ids[..., :-1], ids[..., 1:]
    known = (here > 0) & (there > 0)
    cost = torch.where(here == there, border, -torch.log(-torch.expm1(-border)))
    return (cost * known).sum() / known.sum().clamp(min=1)


class AimHint:
    """The points of a prompt are told to look where they are: the first head of each of their looks at the picture.

    Unless told they hardly do so at the first look, the only one of which the mask's tokens hear from the points themselves.

    Args:
        sam: each time its decoder runs, what its points ask and what the picture answers is kept until it is judged.
    """

    def __init__(self, sam: Sam) -> None:
        self._sam = sam
        self._kept: dict[nn.Module, Tensor] = {}
        self._looks = [layer.cross_attn_token_to_image for layer in sam.mask_decoder.transformer.layers]
        for attention in self._looks:
            for projection in (attention.q_proj, attention.k_proj):
                projection.register_forward_hook(lambda module, _args, out: self._kept.__setitem__(module, out))

    def __call__(self, points_xy: Tensor, labels: Tensor) -> Tensor:
        """Loss () of the decoder's last run, with its points (B, P, N, 2) in the input frame and their labels (B, P, N).

        Cross entropy with the places around each point, weighed as for bilinear interpolation.
        """
        place = self._sam.prompt_encoder.get_dense_pe()  # (1, C, h, w)
        stride = self._sam.image_encoder.img_size / place.shape[-1]
        index, weights = _find_places((points_xy + 0.5) / stride - 0.5, grid_hw=(place.shape[2], place.shape[3]))
        loss = torch.zeros((), device=labels.device)
        for attention in self._looks:
            width = attention.internal_dim // attention.num_heads
            asked = self._kept.pop(attention.q_proj)[:, :, -labels.shape[-1] :, :width].float()  # (B, P, N, d)
            there = self._kept.pop(attention.k_proj)[..., :width].float()  # (B, 1 or P, hw, d)
            there = there + functional.linear(place.flatten(2).transpose(1, 2), attention.k_proj.weight[:width])
            likely = (asked @ there.transpose(-1, -2) / math.sqrt(width)).log_softmax(dim=-1)
            loss = loss - ((likely.gather(-1, index) * weights).sum(-1) * (labels >= 0)).sum() / (labels >= 0).sum()
        return loss


def _find_places(at_xy: Tensor, *, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Index (..., 4) in h * w of the places around points (..., 2), in units of places, and their weights (..., 4)."""
    limit = torch.tensor([grid_hw[1], grid_hw[0]], device=at_xy.device) - 1
    at = torch.minimum(at_xy.clamp(min=0), limit)
    first = torch.minimum(at.floor(), limit - 1)
    x, y = (at - first).unbind(-1)
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    left, top = first.long().unbind(-1)
    start = top * grid_hw[1] + left
    return torch.stack([start, start + 1, start + grid_hw[1], start + grid_hw[1] + 1], dim=-1), weights
