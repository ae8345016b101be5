"""SAM's prompt encoder and mask decoder in stages, rewritten for CPUs: torch modules that ``labeler.graphs`` exports.

Must not know files, ONNX or OpenVINO. Every stage computes what segment-anything's modules compute, in exact arithmetic;
``graphs.MaskPredictor`` is the plain form, and what the tests compare with. What differs, and why (N image tokens, C
channels; a prompt has T tokens, cut into h heads of d; h * T and h * d are far below N and C):

- What the first block makes of the image is the same for every prompt (``ImageSide``): computed once.
- Attention between tokens and image projects the tokens, not the image: q . (W x) = (W^T q) . x, and likewise
  sum_j a_j (W x_j) = W (sum_j a_j x_j). A bias on the image side of a softmax adds the same to a whole row and is left out.
- Scores stay (h * T, N): the softmax over T tokens then runs along N, eight or sixteen image tokens at a time.
- Of the last attention to the image, predicted IoU needs one token only (``PromptStage``); the other four ask when their
  masks are wanted (``MaskStage``).
- A transposed convolution of kernel 2 and stride 2 is a linear layer to the 2x2 pixels of each; its upper and its lower row
  are made apart, so that all pixels of a row lie side by side in order and nothing has to be put in order afterwards.
- The norm after the first one subtracts no mean: the weights before it are centred.
"""

import math
from typing import Any

import torch
from segment_anything.modeling import PromptEncoder, Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional

_PART_FLOATS = 1 << 16
"""How much of a mask's first enlargement is made at a time: what a core's cache holds. The transformer gains nothing by
parts (measured)."""


class ImageSide(nn.Module):
    """What all prompts share: the image as keys, and its projections in the first block."""

    places: Tensor  # (1, N, C)

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = sam.prompt_encoder
        block = sam.mask_decoder.transformer.layers[0]
        self.to_image, self.to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        self.register_buffer("places", _flatten_image(sam.prompt_encoder.get_dense_pe()).detach())

    def forward(self, features: Tensor, mask_logits: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prepare one image, or one image under one mask prompt.

        Args:
            features: (1, C, h, w).
            mask_logits: (1, 1, 4h, 4w), or None.

        Returns:
            Image tokens (1, N, C); the first block's keys (heads, d, N) and values (heads, N, d) for tokens that look at
            the image, and queries (heads, d, N) of the image that looks at tokens, the scores' scale in them.
        """
        if mask_logits is None:
            dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        else:
            dense = self.prompt_encoder.mask_downscaling(mask_logits)
        image = _flatten_image(features + dense)
        placed = image + self.places
        heads = self.to_image.num_heads
        scale = _score_scale(self.to_image)
        first_keys = _cut_heads(placed @ self.to_image.k_proj.weight.t(), heads)[0] * scale
        first_values = _cut_heads(self.to_image.v_proj(image), heads)[0]
        first_queries = _cut_heads(self.to_tokens.q_proj(placed), heads)[0] * scale
        return image, first_keys.transpose(1, 2), first_values, first_queries.transpose(1, 2)


class PromptStage(nn.Module):
    """Prompts through the transformer, as far as predicted IoU needs it."""

    places: Tensor  # (1, N, C)

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = sam.prompt_encoder
        self.decoder = sam.mask_decoder
        self.register_buffer("places", _flatten_image(sam.prompt_encoder.get_dense_pe()).detach())
        self.last_look = LookAtImage(sam)

    def forward(
        self, image: Tensor, first_keys: Tensor, first_values: Tensor, first_queries: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answer P prompts of N points about the image that ``ImageSide`` prepared.

        Returns:
            The IoU token (P, C), finished; the mask tokens (P, 4, C) before their last look at the image; and the image
            tokens (P, N, C) as this prompt sees them.
        """
        decoder = self.decoder
        queries = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, C)
        queries = queries[None].expand(points.shape[0], -1, -1)
        origin = torch.cat([queries, embed_points(self.prompt_encoder, points, labels)], dim=1)  # (P, T, C)
        tokens, placed = origin, image
        for index, block in enumerate(decoder.transformer.layers):
            # Tokens look at each other.
            if index == 0:
                tokens = block.self_attn(q=tokens, k=tokens, v=tokens)
            else:
                query = tokens + origin
                tokens = tokens + block.self_attn(q=query, k=query, v=tokens)
            tokens = block.norm1(tokens)
            # Tokens look at the image.
            if index == 0:
                seen = _look_at_shared(block.cross_attn_token_to_image, tokens + origin, first_keys, first_values)
            else:
                seen = _look(block.cross_attn_token_to_image, tokens + origin, placed=placed, image=image)
            tokens = block.norm2(tokens + seen)
            tokens = block.norm3(tokens + block.mlp(tokens))
            # The image looks at the tokens.
            back = block.cross_attn_image_to_token
            query = tokens + origin
            scores = _score_shared(back, query, first_queries) if index == 0 else _score_tokens(back, query, placed)
            shares = _softmax_tokens(scores, back.num_heads)  # (P, h * T, N)
            answer = shares.transpose(1, 2) @ _project_values(back, tokens) + back.out_proj.bias
            image = block.norm4(image + answer)  # (P, N, C)
            placed = image + self.places
        iou_token = self.last_look(tokens[:, :1], origin[:, :1], image)
        return iou_token[:, 0], tokens[:, 1 : 1 + decoder.num_mask_tokens], image


class LookAtImage(nn.Module):
    """The transformer's last attention, of some tokens to the image."""

    projected_places: Tensor  # (1, h, d, N)

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        transformer = sam.mask_decoder.transformer
        self.attention, self.norm = transformer.final_attn_token_to_image, transformer.norm_final_attn
        places = _flatten_image(sam.prompt_encoder.get_dense_pe())
        projected = _cut_heads(places @ self.attention.k_proj.weight.t(), self.attention.num_heads)
        self.register_buffer("projected_places", projected.transpose(2, 3).detach())

    def forward(self, tokens: Tensor, origin: Tensor, image: Tensor) -> Tensor:
        """(P, T, C), the tokens' own places of the same shape, (P, N, C) -> (P, T, C)."""
        # With few tokens the positions are cheaper added to the scores than to the image.
        seen = _look(self.attention, tokens + origin, placed=image, image=image, projected_places=self.projected_places)
        looked: Tensor = self.norm(tokens + seen)
        return looked


class IouStage(nn.Module):
    """The IoU head, apart: it runs in f32 where the rest may not, for near 0.88 bf16 steps by 0.004."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.head = sam.mask_decoder.iou_prediction_head

    def forward(self, iou_token: Tensor) -> Tensor:
        """(P, C) -> (P, 4)."""
        iou: Tensor = self.head(iou_token)
        return iou


class MaskStage(nn.Module):
    """The masks of prompts that are worth it."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.decoder = sam.mask_decoder
        self.embedding_hw = sam.prompt_encoder.image_embedding_size
        self.last_look = LookAtImage(sam)
        height, width = self.embedding_hw
        floats = height * width * sam.prompt_encoder.embed_dim // 2
        self.num_parts = next(parts for parts in range(1, height + 1) if height % parts == 0 and floats <= parts * _PART_FLOATS)

    def forward(self, mask_tokens: Tensor, image: Tensor) -> Tensor:
        """(P, 4, C) and (P, N, C) of ``PromptStage`` -> logits (P, 4, 4h, 4w), the single mask first."""
        decoder = self.decoder
        answers = self.last_look(mask_tokens, decoder.mask_tokens.weight, image)
        kernels = torch.stack([mlp(answers[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
        # Some rows of the image at a time, so that its pixels are still in the cache when they are summed.
        parts = [self._draw_rows(kernels, part) for part in image.chunk(self.num_parts, dim=1)]
        height, width = self.embedding_hw
        return torch.cat(parts, dim=2).reshape(-1, kernels.shape[1], 4 * height, 4 * width)

    def _draw_rows(self, kernels: Tensor, image: Tensor) -> Tensor:
        """(P, 4, C / 8) and n rows of the image (P, n * w, C) -> logits (P, 4, n, 4, 4 * w): each row becomes four."""
        first, norm, _, second, _ = self.decoder.output_upscaling
        rows = []
        for weight, bias in _split_rows(first, centered=True):
            pixels = _enlarge(image, weight, bias)  # (P, n * 2w, C / 4)
            deviation = torch.rsqrt(pixels.square().mean(-1, keepdim=True) + norm.eps)
            pixels = functional.gelu(pixels * deviation * norm.weight + norm.bias)
            for weight_below, bias_below in _split_rows(second):
                fine = functional.gelu(_enlarge(pixels, weight_below, bias_below))  # (P, n * 4w, C / 8)
                rows.append(_split(kernels @ fine.transpose(1, 2), 2, (-1, 1, 4 * self.embedding_hw[1])))
        return torch.cat(rows, dim=3)


def embed_points(encoder: PromptEncoder, points: Tensor, labels: Tensor) -> Tensor:
    """(P, N, 2) and (P, N) -> (P, N, C). A padding point has no place: its position counts nothing."""
    height, width = encoder.input_image_size
    in_unit = (points + 0.5) / torch.tensor([width, height], dtype=points.dtype)  # To the pixel's centre.
    place = encoder.pe_layer._pe_encoding(in_unit)
    table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])  # (5, C)
    kind = functional.embedding(labels.long() + 1, table)
    return torch.where((labels == -1)[..., None], torch.zeros_like(place), place) + kind


def _flatten_image(image: Tensor) -> Tensor:
    """(1, C, h, w) -> (1, N, C)."""
    return image.flatten(2).transpose(1, 2)


def _cut_heads(tokens: Tensor, heads: int) -> Tensor:
    """(P, T, h * d) -> (P, h, T, d)."""
    cut: Tensor = _split(tokens, -1, (heads, -1)).transpose(1, 2)
    return cut


def _split(tensor: Any, dim: int, sizes: tuple[int, ...]) -> Any:
    """``Tensor.unflatten``, which has no types in torch."""
    return tensor.unflatten(dim, sizes)


def _score_scale(attention: Attention) -> float:
    return 1 / math.sqrt(attention.internal_dim // attention.num_heads)


def _look_at_shared(attention: Attention, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens (P, T, C) look at an image that is projected already, the scores' scale in the keys."""
    projected = _cut_heads(attention.q_proj(query), attention.num_heads)
    seen = (projected @ keys).softmax(-1) @ values  # (P, h, T, d)
    answer: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2))
    return answer


def _look(
    attention: Attention, query: Tensor, *, placed: Tensor, image: Tensor, projected_places: Tensor | None = None
) -> Tensor:
    """Tokens (P, T, C) look at an image (P, N, C): scores by ``placed``, values from ``image``.

    Args:
        projected_places: (1, h, d, N), positions that are not in ``placed``, as keys.
    """
    heads, num_tokens = attention.num_heads, query.shape[1]
    projected = _cut_heads(attention.q_proj(query), heads) * _score_scale(attention)  # (P, h, T, d)
    folded = projected @ attention.k_proj.weight.unflatten(0, (heads, -1))  # (P, h, T, C)
    scores = folded.flatten(1, 2) @ placed.transpose(1, 2)  # (P, h * T, N)
    if projected_places is not None:
        scores = scores + (projected @ projected_places).flatten(1, 2)
    seen = (scores.softmax(-1) @ image).unflatten(1, (heads, num_tokens))  # (P, h, T, C)
    seen = seen @ attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)  # (P, h, T, d)
    answer: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return answer


def _score_shared(attention: Attention, key: Tensor, queries: Tensor) -> Tensor:
    """Scores (P, h * T, N) of an image that is projected already for tokens (P, T, C)."""
    return (_cut_heads(attention.k_proj(key), attention.num_heads) @ queries).flatten(1, 2)


def _score_tokens(attention: Attention, key: Tensor, placed: Tensor) -> Tensor:
    """Scores (P, h * T, N) of the image's tokens (P, N, C) for tokens (P, T, C)."""
    heads = attention.num_heads
    projected = _cut_heads(attention.k_proj(key), heads) * _score_scale(attention)  # (P, h, T, d)
    folded = projected @ attention.q_proj.weight.unflatten(0, (heads, -1))  # (P, h, T, C)
    offset = projected @ attention.q_proj.bias.unflatten(0, (heads, -1, 1))  # (P, h, T, 1), not the same for all tokens
    scores: Tensor = folded.flatten(1, 2) @ placed.transpose(1, 2) + offset.flatten(1, 2)
    return scores


def _softmax_tokens(scores: Tensor, heads: int) -> Tensor:
    """Softmax over the T tokens of each head, (P, h * T, N), safe for any finite score."""
    scores = _split(scores, 1, (heads, -1))
    powers = (scores - scores.amax(2, keepdim=True)).exp()
    return (powers / powers.sum(2, keepdim=True)).flatten(1, 2)


def _project_values(attention: Attention, tokens: Tensor) -> Tensor:
    """(P, T, C) -> (P, h * T, C): what each head of each token gives to who looks at it."""
    heads = attention.num_heads
    values = _cut_heads(attention.v_proj(tokens), heads)
    given: Tensor = (values @ attention.out_proj.weight.t().unflatten(0, (heads, -1))).flatten(1, 2)
    return given


def _split_rows(convolution: Any, *, centered: bool = False) -> list[tuple[Tensor, Tensor]]:
    """A transposed convolution (C, C', 2, 2) of stride 2 as two linear layers (2 * C', C), of its upper and its lower row.

    Args:
        centered: the mean over the C' channels is taken away from each pixel.
    """
    weight, bias = convolution.weight, convolution.bias
    if centered:
        weight, bias = weight - weight.mean(1, keepdim=True), bias - bias.mean()
    return [(weight[:, :, row].permute(2, 1, 0).flatten(0, 1), bias.repeat(2)) for row in (0, 1)]


def _enlarge(pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(P, M, C) -> (P, 2 * M, C'): a row of pixels to twice as many side by side."""
    enlarged: Tensor = _split(functional.linear(pixels, weight, bias), -1, (2, -1)).flatten(1, 2)
    return enlarged
