"""Small image encoders for SAMs of our own, by the name an architecture's ``encoder`` gives.

Must not know prompts, masks, files or how a model is trained: pixels in, features out.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


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

    def forward(self, features: Tensor, place: Tensor) -> Tensor:
        """(B, C, H, W) with what tells places apart, (H * W, C), to the same shape."""
        height, width = features.shape[2:]
        cells = self.norm(features).flatten(2).transpose(1, 2)  # (B, HW, C)
        placed = cells + place
        heads = [
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(placed), self.key(placed), self.value(cells))
        ]
        seen = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        refined: Tensor = features + self.out(seen).transpose(1, 2).unflatten(2, (height, width))
        return refined


def make_waves(height: int, width: int) -> Tensor:
    """(H * W, 16): sines and cosines of x and y over the input, of one to eight half turns."""
    ys = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    xs = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    turns = torch.pi * 2.0 ** torch.arange(4)
    angles = torch.stack([ys, xs], dim=-1)[..., None] * turns  # (H, W, 2, 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(height * width, 16)


class PyramidEncoder(nn.Module):
    """Convolutions down to stride 32 for what a thing is, and back up to stride 8 for where its border runs.

    Args:
        image_size: S, the side of the padded input in pixels; a multiple of 32.
        prompt_embed_dim: C, channels of the features.
        encoder_dims: channels at strides 4, 8, 16 and 32.
        encoder_depths: residual blocks at strides 4, 8, 16 and 32.
        encoder_attention_heads: of the attentions at stride 8, one on the way down and two on the way up; 0: there are none.
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
        if encoder_attention_heads:
            self.place = nn.Linear(16, dims[1], bias=False)
            self.look = nn.ModuleList(SimilarityAttention(dims[1], num_heads=encoder_attention_heads) for _ in range(3))
        self.has_attention = encoder_attention_heads > 0
        self.neck = nn.Sequential(nn.Conv2d(dims[1], prompt_embed_dim, kernel_size=1), ChannelNorm(prompt_embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised, zero-padded pixels (B, 3, S, S) to features (B, C, S/8, S/8)."""
        at4 = self.stages[0](self.stem(pixels))
        at8 = self.stages[1](self.down[0](at4))
        place = self._tell_places(at8)
        at8 = self._look(at8, place, 0)
        at16 = self.stages[2](self.down[1](at8))
        at32 = self.stages[3](self.down[2](at16))
        at16 = self.merge16(at16 + functional.interpolate(self.lateral16(at32), scale_factor=2.0, mode="nearest"))
        at8 = at8 + functional.interpolate(self.lateral8(at16), scale_factor=2.0, mode="nearest") + self.fine(at4)
        first, second, norm = self.merge8
        at8 = self._look(second(self._look(first(at8), place, 1)), place, 2)
        features: Tensor = self.neck(norm(at8))
        return features

    def _tell_places(self, features: Tensor) -> Tensor | None:
        if not self.has_attention:
            return None
        place: Tensor = self.place(make_waves(features.shape[2], features.shape[3]).to(features))
        return place.half().to(place.dtype)  # The same for all pictures, so it is stored: as short as a weight.

    def _look(self, features: Tensor, place: Tensor | None, which: int) -> Tensor:
        if place is None:
            return features
        seen: Tensor = self.look[which](features, place)
        return seen


ENCODERS: dict[str, Callable[..., nn.Module]] = {"pyramid": PyramidEncoder}
"""By the architecture's ``encoder``; each is called with the architecture's keys that aren't the decoder's."""
