"""Small image encoders, by the name an architecture's ``encoder`` gives.

Must not know prompts, masks, files or how a model is trained: pixels in, features out.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from labeler.tiny_vit import TinyVit

Place = tuple[Tensor, Tensor]
"""What tells places apart: (C, H, 1) for the rows and (W, C) for the columns."""


def place_features(features: Tensor, place: Place) -> Tensor:
    """Features (B, C, H, W) with their places, (B, H * W, C)."""
    rows, columns = place
    cells = (features + rows).permute(0, 2, 3, 1)
    # Two sums with a change of layout between them: else OpenVINO adds rows and columns up and stores H * W of them.
    return (cells + columns).flatten(1, 2)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel: no running statistics, and padding can't shift what its neighbours see."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        channels_last = features.permute(0, 2, 3, 1)
        normed = functional.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, 1e-6)
        return normed.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity. The second starts at a tenth, so that a deep stack starts near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        hidden = functional.relu(self.conv1(self.norm(features)))
        refined: Tensor = features + self.conv2(hidden)
        return refined


class SimilarityAttention(nn.Module):
    """Every place looks at all places like it, so that the whole of a thing gets to know that it is one.

    Queries and keys start as the same orthogonal matrix: like attends to like from the first step. What is seen starts at zero.
    """

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.orthogonal_(self.query.weight)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.key.weight.copy_(self.query.weight)

    def forward(self, features: Tensor, place: Place) -> Tensor:
        """(B, C, H, W) to the same shape."""
        height, width = features.shape[2:]
        normed = self.norm(features)
        cells, placed = normed.flatten(2).transpose(1, 2), place_features(normed, place)  # (B, HW, C)
        heads = [
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(placed), self.key(placed), self.value(cells))
        ]
        seen = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        refined: Tensor = features + self.out(seen).transpose(1, 2).unflatten(2, (height, width))
        return refined


class EdgeAwareFilter(nn.Module):
    """Every place gets the mean of those around it as far as no border lies between: so all of a thing gets alike.

    The domain transform (Gastal & Oliveira, 2011) with borders that are learned: along rows, then columns, the weight of a
    place falls with the borders on the way to it. Each head has borders of its own; what comes out starts at zero.
    """

    rounds = 2

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelNorm(channels)
        self.borders = nn.Conv2d(channels, 2 * num_heads, kernel_size=3, padding=1)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.constant_(self.borders.get_parameter("bias"), -1.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, place: Place) -> Tensor:
        """(B, C, H, W) to the same shape."""
        height, width = features.shape[2:]
        normed = self.norm(features)
        right, below = functional.softplus(self.borders(normed).float()).chunk(2, dim=1)  # (B, heads, H, W)
        rows, columns = _weigh_along(right), _weigh_along(below.transpose(2, 3))
        cells = self.value(place_features(normed, place))  # (B, HW, C)
        cells = cells.unflatten(2, (self.num_heads, -1)).transpose(1, 2).unflatten(2, (height, width))  # (B, heads, H, W, c)
        for _ in range(self.rounds):
            cells = (columns @ (rows @ cells).transpose(2, 3)).transpose(2, 3)
        told = self.out(cells.flatten(2, 3).transpose(1, 2).flatten(2))
        refined: Tensor = features + told.transpose(1, 2).unflatten(2, (height, width))
        return refined


def _weigh_along(borders: Tensor) -> Tensor:
    """Weights (..., n, n) of the places of a row for each other; borders (..., n), each between a place and the next."""
    way = borders.cumsum(-1) - borders
    return (-(way[..., :, None] - way[..., None, :]).abs()).softmax(dim=-1)


def make_waves(length: int) -> Tensor:
    """(n, 8): sines and cosines of the way along a side, of one to eight half turns."""
    angles = ((torch.arange(length) + 0.5) / length)[:, None] * torch.pi * 2.0 ** torch.arange(4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PyramidEncoder(nn.Module):
    """Convolutions down to stride 32 for what a thing is, and back up to stride 8 for where its border runs.

    Args:
        image_size: S, the side of the padded input in pixels; a multiple of 32.
        prompt_embed_dim: C, channels of the features.
        encoder_dims: channels at strides 4, 8, 16 and 32.
        encoder_depths: residual blocks at strides 4, 8, 16 and 32.
        encoder_attention_heads: of the attentions at stride 8, one on the way down and two on the way up; 0: there are none.
        encoder_filter_heads: of the edge-aware filters at stride 8, one after each attention on the way up; 0: there are none.
    """

    stride = 8

    def __init__(
        self,
        *,
        image_size: int,
        prompt_embed_dim: int,
        encoder_dims: Sequence[int] = (48, 96, 160, 256),
        encoder_depths: Sequence[int] = (2, 3, 2, 2),
        encoder_attention_heads: int = 0,
        encoder_filter_heads: int = 0,
    ) -> None:
        super().__init__()
        if image_size % 32:
            raise ValueError(f"image_size {image_size} is not a multiple of 32")
        self.img_size = image_size
        dims = list(encoder_dims)
        self.stem = nn.Sequential(
            nn.Conv2d(3, dims[0] // 2, kernel_size=4, stride=2, padding=1),
            ChannelNorm(dims[0] // 2),
            nn.ReLU(),
            nn.Conv2d(dims[0] // 2, dims[0], kernel_size=4, stride=2, padding=1),
        )
        self.down = nn.ModuleList(
            nn.Sequential(ChannelNorm(narrow), nn.Conv2d(narrow, wide, kernel_size=2, stride=2))
            for narrow, wide in pairwise(dims)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(dim) for _ in range(depth))) for dim, depth in zip(dims, encoder_depths, strict=True)
        )
        # Two by two pixels of stride 4 as channels: the decoder draws masks at stride 2 out of stride-8 features.
        self.fine = nn.Conv2d(dims[0], dims[1], kernel_size=2, stride=2)
        self.lateral16 = nn.Conv2d(dims[3], dims[2], kernel_size=1)
        self.lateral8 = nn.Conv2d(dims[2], dims[1], kernel_size=1)
        self.merge16 = ResidualBlock(dims[2])
        self.merge8 = nn.Sequential(ResidualBlock(dims[1]), ResidualBlock(dims[1]), ChannelNorm(dims[1]))
        num_looks, num_spreads = 3 if encoder_attention_heads else 0, 2 if encoder_filter_heads else 0
        self.place = nn.Linear(16, dims[1], bias=False) if num_looks or num_spreads else None
        self.look = nn.ModuleList(SimilarityAttention(dims[1], num_heads=encoder_attention_heads) for _ in range(num_looks))
        self.spread = nn.ModuleList(EdgeAwareFilter(dims[1], num_heads=encoder_filter_heads) for _ in range(num_spreads))
        self.neck = nn.Sequential(nn.Conv2d(dims[1], prompt_embed_dim, kernel_size=1), ChannelNorm(prompt_embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised, zero-padded pixels (B, 3, S, S) to features (B, C, S/8, S/8)."""
        at4 = self.stages[0](self.stem(pixels))
        at8 = self.stages[1](self.down[0](at4))
        place = self._tell_places(at8)
        at8 = _refine(self.look, 0, at8, place)
        at16 = self.stages[2](self.down[1](at8))
        at32 = self.stages[3](self.down[2](at16))
        at16 = self.merge16(at16 + functional.interpolate(self.lateral16(at32), scale_factor=2.0, mode="nearest"))
        at8 = at8 + functional.interpolate(self.lateral8(at16), scale_factor=2.0, mode="nearest") + self.fine(at4)
        *blocks, norm = self.merge8
        for i, block in enumerate(blocks):
            at8 = _refine(self.spread, i, _refine(self.look, i + 1, block(at8), place), place)
        features: Tensor = self.neck(norm(at8))
        return features

    def _tell_places(self, features: Tensor) -> Place | None:
        if self.place is None:
            return None
        of_rows, of_columns = self.place.weight.chunk(2, dim=1)
        rows, columns = (
            functional.linear(weight, make_waves(side).to(weight))  # (C, n)
            for side, weight in zip(features.shape[2:], (of_rows, of_columns), strict=True)
        )
        # The same for all pictures, so they are stored: as short as weights.
        return rows.half().to(features.dtype)[:, :, None], columns.half().to(features.dtype).T


def _refine(modules: nn.ModuleList, which: int, features: Tensor, place: Place | None) -> Tensor:
    """What one of the attentions or filters makes of features; the same where the encoder has none."""
    return modules[which](features, place) if len(modules) else features


ENCODERS: dict[str, Callable[..., nn.Module]] = {"pyramid": PyramidEncoder, "tiny_vit": TinyVit}
"""By the architecture's ``encoder``; each is called with the architecture's keys that aren't the decoder's."""
