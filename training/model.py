"""A SAM of our own, and its mask decoder run for many prompts of many pictures at once.

``decode`` gives what segment-anything's ``MaskDecoder.predict_masks`` gives with the same weights (a test holds it to that),
but computes what the prompts of a picture share only once and never leaves the tokens' layout. Must not know scenes or losses.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from labeler.convert import build_sam

ARCHITECTURE: dict[str, Any] = {
    "encoder": "pyramid",
    "image_size": 320,
    "encoder_dims": [48, 96, 160, 240],
    "encoder_depths": [2, 3, 2, 1],
    "encoder_attention_heads": 3,
    "encoder_filter_heads": 6,
    "prompt_embed_dim": 64,
    "mask_in_chans": 16,
    "decoder_depth": 2,
    "decoder_mlp_dim": 256,
    "decoder_num_heads": 2,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 128,
}


def build_model(architecture: Mapping[str, Any]) -> Sam:
    """A SAM with fresh weights, its cross-attentions started as ``align_attention`` says."""
    sam = build_sam(architecture)
    align_attention(sam)
    return sam.train()


def align_attention(sam: Sam, *, gain: float = 1.6) -> None:
    """Start each cross-attention's query and key projections as one orthogonal matrix, without bias.

    Then equal positions attend to each other from the first step; from an ordinary start the decoder needs many hundreds of
    steps to find where the click is.
    """
    for module in sam.mask_decoder.modules():
        if isinstance(module, Attention) and module.internal_dim < module.embedding_dim:
            nn.init.orthogonal_(module.q_proj.weight, gain)
            with torch.no_grad():
                module.k_proj.weight.copy_(module.q_proj.weight)
            nn.init.zeros_(module.q_proj.bias)
            nn.init.zeros_(module.k_proj.bias)


def set_input_size(sam: Sam, size: int) -> None:
    """Train at another resolution: the same weights, a grid of ``size / stride``."""
    side = size // int(sam.image_encoder.stride)
    sam.image_encoder.img_size = size
    sam.prompt_encoder.image_embedding_size = (side, side)
    sam.prompt_encoder.input_image_size = (size, size)


def encode(sam: Sam, pixels: Tensor, sizes_hw: Tensor) -> Tensor:
    """Features (B, C, h, w) of padded pixels (B, S, S, 3) uint8; sizes_hw (B, 2) say where the padding starts."""
    normed = (pixels.permute(0, 3, 1, 2).float() - sam.pixel_mean) / sam.pixel_std
    side = torch.arange(pixels.shape[1], device=pixels.device)
    inside = (side[None, :, None] < sizes_hw[:, 0, None, None]) & (side[None, None, :] < sizes_hw[:, 1, None, None])
    features: Tensor = sam.image_encoder((normed * inside[:, None]).contiguous(memory_format=torch.channels_last))
    return features


def embed_points(sam: Sam, points_xy: Tensor, labels: Tensor) -> Tensor:
    """Tokens (B, P, N, C) of points (B, P, N, 2) in the input frame with labels -1 to 3, as SAM's prompt encoder gives them."""
    encoder = sam.prompt_encoder
    shape = points_xy.shape[:-1]
    place = encoder.pe_layer.forward_with_coords(points_xy.flatten(0, 1) + 0.5, encoder.input_image_size)
    place = place.unflatten(0, shape[:2])
    kinds = torch.stack([encoder.not_a_point_embed.weight[0], *(kind.weight[0] for kind in encoder.point_embeddings)])
    return torch.where(labels[..., None] == -1, 0.0, place) + kinds[labels + 1]


def decode(
    sam: Sam, features: Tensor, prompt_tokens: Tensor, mask_logits: Tensor | None = None, *, cells: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, P, 4, 4h, 4w) and predicted IoUs (B, P, 4) of P prompts for each of B pictures.

    Args:
        features: (B, C, h, w).
        prompt_tokens: (B, P, N, C).
        mask_logits: (B, P, 4h, 4w) of an earlier round.
        cells: (B, P, n) of the h * w features: masks are drawn there only, and are (B, P, 4, n * 16) in the order of
            ``losses.order_by_cells``.
    """
    decoder = sam.mask_decoder
    batch, _, grid_h, grid_w = features.shape
    num_prompts = prompt_tokens.shape[1]
    place = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)  # (1, hw, C)
    keys = features.flatten(2).transpose(1, 2)[:, None]  # (B, 1, hw, C): shared by the prompts of a picture
    if mask_logits is None:
        keys = keys + sam.prompt_encoder.no_mask_embed.weight
    else:
        dense = sam.prompt_encoder.mask_downscaling(mask_logits.flatten(0, 1)[:, None])
        keys = keys + dense.flatten(2).transpose(1, 2).unflatten(0, (batch, num_prompts))
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(batch, num_prompts, -1, -1), prompt_tokens], dim=2)
    queries, keys = _attend_both_ways(decoder.transformer, tokens, keys, place)
    mask_tokens = queries[:, :, 1 : 1 + decoder.num_mask_tokens]
    keys = keys.expand(-1, num_prompts, -1, -1)
    if cells is None:
        masks = _put_in_rows(_draw_cells(decoder, mask_tokens, keys), (grid_h, grid_w))
    else:
        keys = keys.gather(2, cells[..., None].expand(-1, -1, -1, keys.shape[-1]))
        masks = _draw_cells(decoder, mask_tokens, keys).flatten(2, 3).transpose(2, 3)
    iou: Tensor = decoder.iou_prediction_head(queries[:, :, 0])
    return masks, iou


def _attend_both_ways(transformer: TwoWayTransformer, tokens: Tensor, keys: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    queries = tokens
    for layer in transformer.layers:
        queries, keys = _two_way_block(layer, queries, keys, tokens, place)
    final = transformer.final_attn_token_to_image
    queries = transformer.norm_final_attn(queries + _look(final, queries + tokens, keys, place))
    return queries, keys


def _two_way_block(
    block: TwoWayAttentionBlock, queries: Tensor, keys: Tensor, tokens: Tensor, place: Tensor
) -> tuple[Tensor, Tensor]:
    flat = queries.flatten(0, 1)
    if block.skip_first_layer_pe:
        flat = block.self_attn(q=flat, k=flat, v=flat)
    else:
        placed = flat + tokens.flatten(0, 1)
        flat = flat + block.self_attn(q=placed, k=placed, v=flat)
    queries = block.norm1(flat).unflatten(0, queries.shape[:2])
    queries = block.norm2(queries + _look(block.cross_attn_token_to_image, queries + tokens, keys, place))
    queries = block.norm3(queries + block.mlp(queries))
    return queries, block.norm4(keys + _tell(block.cross_attn_image_to_token, queries + tokens, queries, keys, place))


def _heads(features: Tensor, num_heads: int) -> Tensor:
    """(..., n, c) to (..., heads, n, c / heads)."""
    return features.view(*features.shape[:-1], num_heads, -1).transpose(-3, -2)


def _look(attention: Attention, queries: Tensor, keys: Tensor, place: Tensor) -> Tensor:
    """Tokens (B, P, N, C) look at the picture: keys (B, 1 or P, hw, C)."""
    batch, num_prompts, num_tokens = queries.shape[:3]
    q = attention.q_proj(queries)
    # W(keys + place) = W keys + W place, and the second term is the same for all.
    k = attention.k_proj(keys) + functional.linear(place, attention.k_proj.weight)
    v = attention.v_proj(keys)
    if keys.shape[1] == 1:  # all prompts of a picture as one long row of queries
        q = q.flatten(1, 2)[:, None]
    out = functional.scaled_dot_product_attention(
        _heads(q, attention.num_heads).flatten(0, 1),
        _heads(k, attention.num_heads).flatten(0, 1),
        _heads(v, attention.num_heads).flatten(0, 1),
    )
    seen: Tensor = attention.out_proj(out.transpose(1, 2).flatten(2).reshape(batch, num_prompts, num_tokens, -1))
    return seen


def _tell(attention: Attention, placed_queries: Tensor, queries: Tensor, keys: Tensor, place: Tensor) -> Tensor:
    """The picture looks at the tokens: what each of its cells (B, P, hw, C) learns from them."""
    q = attention.q_proj(keys) + functional.linear(place, attention.q_proj.weight)
    q = _heads(q / math.sqrt(attention.internal_dim / attention.num_heads), attention.num_heads)  # (B, 1 or P, heads, hw, d)
    k, v = (_heads(x, attention.num_heads) for x in (attention.k_proj(placed_queries), attention.v_proj(queries)))
    batch_shape = k.shape[:3]
    scores = torch.bmm(q.expand(*batch_shape, -1, -1).flatten(0, 2), k.flatten(0, 2).transpose(1, 2))  # (B * P * heads, hw, N)
    told = torch.bmm(scores.softmax(dim=-1), v.flatten(0, 2)).view(*batch_shape, *scores.shape[1:2], -1)
    out: Tensor = attention.out_proj(told.transpose(-3, -2).flatten(-2))
    return out


def _draw_cells(decoder: MaskDecoder, tokens: Tensor, keys: Tensor) -> Tensor:
    """Logits (B, P, n, 16, 4) of n cells: both transposed convolutions as products on the cells.

    In float32 even under autocast: a logit is the small sum of large products. In bfloat16 it was off by 0.07 to 0.57
    in the mean, which decides near borders, and training suits the weights to that.
    """
    with torch.autocast(keys.device.type, enabled=False):
        first, norm, _, second, _ = decoder.output_upscaling
        fine = functional.gelu(_norm_channels(_spread(first, keys.float()), norm))  # (B, P, n, 4, C/4)
        fine = functional.gelu(_spread(second, fine)).flatten(-3, -2)  # (B, P, n, 16, C/8)
        tokens = tokens.float()
        weights = torch.stack([mlp(tokens[:, :, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=2)
        logits = fine.flatten(2, 3) @ weights.transpose(-1, -2)
    return logits.unflatten(2, (keys.shape[2], 16))


def _put_in_rows(cells: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Logits (B, P, hw, 16, 4) of all cells as masks (B, P, 4, 4h, 4w)."""
    batch, num_prompts = cells.shape[:2]
    halves = cells.view(batch, num_prompts, *grid_hw, 2, 2, 2, 2, -1)  # (B, P, h, w, y1, x1, y2, x2, 4)
    return halves.permute(0, 1, 8, 2, 4, 6, 3, 5, 7).reshape(batch, num_prompts, -1, 4 * grid_hw[0], 4 * grid_hw[1])


def _spread(conv: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """(..., C) to (..., 4, C'): a 2x2 transposed convolution with stride 2 gives each cell its own four."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * C', C)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    return functional.linear(cells, weight, bias).view(*cells.shape[:-1], 4, -1)


def _norm_channels(cells: Tensor, norm: LayerNorm2d) -> Tensor:
    """SAM's LayerNorm2d on channels that lie last."""
    return functional.layer_norm(cells, (cells.shape[-1],), norm.weight, norm.bias, norm.eps)
