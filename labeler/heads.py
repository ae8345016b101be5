"""The image encoder's global attention, one head after the other. Part of the torch seam; must not know ONNX or files.

segment-anything scores every image token against every other for all heads at once: of vit_b's 4096 tokens and twelve heads
that is 805 MB of floats, twice. A head at a time gives the same numbers at the same speed in a twelfth of the memory.
"""

import copy
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos
from torch import Tensor, nn

_LARGEST_SCORES = 1 << 24
"""Scores that one attention may hold at a time; up to here all heads go together."""


class HeadByHead(nn.Module):
    """segment-anything's attention of an image to itself, in exact arithmetic the same."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.whole = attention

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        whole = self.whole
        batch, height, width, _ = tokens.shape
        qkv = whole.qkv(tokens).reshape(batch, height * width, 3, whole.num_heads, -1)
        seen = []
        for head in range(whole.num_heads):
            query, key, value = qkv[:, :, :, head].unbind(2)  # (B, N, d)
            scores = (query * whole.scale) @ key.transpose(1, 2)
            if whole.use_rel_pos:
                sides = (height, width)
                scores = add_decomposed_rel_pos(scores, query, whole.rel_pos_h, whole.rel_pos_w, sides, sides)
            seen.append(scores.softmax(dim=-1) @ value)
        answer: Tensor = whole.proj(torch.stack(seen, dim=2).reshape(batch, height, width, -1))
        return answer


def split_heads(encoder: nn.Module) -> nn.Module:
    """The encoder with ``HeadByHead`` where its scores are many; shares all weights, leaves the given one as it is."""
    weights: dict[int, Any] = {id(weight): weight for weight in [*encoder.parameters(), *encoder.buffers()]}
    split = copy.deepcopy(encoder, memo=weights)
    for block in getattr(split, "blocks", []):
        attention = getattr(block, "attn", None)
        if isinstance(attention, Attention) and _count_scores(encoder, block, attention) > _LARGEST_SCORES:
            block.attn = HeadByHead(attention)
    return split


def _count_scores(encoder: Any, block: Any, attention: Attention) -> int:
    """Of one attention over a whole image: in windows none is large."""
    if block.window_size:
        return 0
    num_tokens: int = (encoder.img_size // encoder.patch_embed.proj.stride[0]) ** 2
    return int(attention.num_heads) * num_tokens**2
