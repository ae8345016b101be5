"""TinyViT, MobileSAM's image encoder, with weights named as in MobileSAM's checkpoint.

Must not know prompts, masks, files or where checkpoints are published: pixels in, features out.

Sources: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (2022); Zhang et al., "Faster Segment
Anything: Towards Lightweight SAM for Mobile Applications" (2023), which leaves the last stage at stride 16 and adds SAM's neck.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

_STRIDE = 16
_EXPANSION = 4
"""How much wider a block is inside than outside."""
_NUM_CLASSES = 1000


def _convolve(inputs: int, outputs: int, *, kernel_size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(c=convolution, bn=nn.BatchNorm2d(outputs)))


class ConvolutionBlock(nn.Module):
    """MobileNet's inverted residual: wider, along each channel alone, narrower again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = _EXPANSION * channels
        self.conv1 = _convolve(channels, wide)
        self.conv2 = _convolve(wide, wide, kernel_size=3, groups=wide)
        self.conv3 = _convolve(wide, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(features))))
        return functional.gelu(features + self.conv3(hidden))


class Merging(nn.Module):
    """From one stage's channels and stride to the next one's."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolve(inputs, outputs)
        self.conv2 = _convolve(outputs, outputs, kernel_size=3, stride=stride, groups=outputs)
        self.conv3 = _convolve(outputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        merged: Tensor = self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(features)))))
        return merged


class WindowAttention(nn.Module):
    """The places of a square window look at each other; a bias for how far apart two are in y and in x."""

    attention_places: Tensor

    def __init__(self, channels: int, *, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        apart = (torch.arange(window_size)[:, None] - torch.arange(window_size)).abs()  # (w, w)
        places = (window_size * apart[:, None, :, None] + apart[None, :, None, :]).reshape(window_size**2, window_size**2)
        self.register_buffer("attention_places", places, persistent=False)

    def forward(self, cells: Tensor) -> Tensor:
        """Windows (B, N, C) to the same shape."""
        heads = self.qkv(self.norm(cells)).unflatten(2, (self.num_heads, 3, -1))  # (B, N, heads, 3, c)
        query, key, value = heads.permute(3, 0, 2, 1, 4)  # each (B, heads, N, c)
        bias = self.attention_biases[:, self.attention_places]  # (heads, N, N)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        told: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return told


class WindowBlock(nn.Module):
    """Attention within windows, a convolution along each channel that crosses their borders, and an MLP."""

    def __init__(self, channels: int, *, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = WindowAttention(channels, num_heads=num_heads, window_size=window_size)
        self.local_conv = _convolve(channels, channels, kernel_size=3, groups=channels)
        self.mlp = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(channels),
                fc1=nn.Linear(channels, _EXPANSION * channels),
                act=nn.GELU(),
                fc2=nn.Linear(_EXPANSION * channels, channels),
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        cells = features.permute(0, 2, 3, 1)
        seen = (cells + self._attend(cells)).permute(0, 3, 1, 2)
        cells = self.local_conv(seen).permute(0, 2, 3, 1)
        refined: Tensor = (cells + self.mlp(cells)).permute(0, 3, 1, 2)
        return refined

    def _attend(self, cells: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape, in windows; those that stick out below and to the right are filled with zeros."""
        batch, height, width, channels = cells.shape
        side = self.window_size
        rows, columns = -(-height // side), -(-width // side)
        padded = functional.pad(cells, (0, 0, 0, columns * side - width, 0, rows * side - height))
        windows = padded.reshape(batch, rows, side, columns, side, channels).transpose(2, 3)
        seen = self.attn(windows.reshape(-1, side * side, channels))
        whole: Tensor = seen.reshape(batch, rows, columns, side, side, channels).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole[:, :height, :width]


class Stage(nn.Module):
    """Blocks at one stride, and the way to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], *, downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the next stage's shape, or the same at the last."""
        for block in self.blocks:
            features = block(features)
        return features if self.downsample is None else self.downsample(features)


class TinyVit(nn.Module):
    """Convolutions at stride 4, then three stages of windowed attention at strides 8, 16 and 16, and SAM's neck.

    Args:
        image_size: S, the side of the padded input in pixels; a multiple of 16.
        prompt_embed_dim: C, channels of the features.
        encoder_embed_dims: channels of the four stages.
        encoder_depths: blocks of the four stages.
        encoder_num_heads: of the last three stages.
        window_sizes: sides in places of the last three stages' windows.
    """

    def __init__(
        self,
        *,
        image_size: int,
        prompt_embed_dim: int,
        encoder_embed_dims: Sequence[int],
        encoder_depths: Sequence[int],
        encoder_num_heads: Sequence[int],
        window_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        if image_size % _STRIDE:
            raise ValueError(f"image_size {image_size} is not a multiple of {_STRIDE}")
        first, *_, last = dims = list(encoder_embed_dims)
        first_depth, *depths = encoder_depths
        self.patch_embed = nn.Sequential(
            OrderedDict(
                seq=nn.Sequential(
                    _convolve(3, first // 2, kernel_size=3, stride=2),
                    nn.GELU(),
                    _convolve(first // 2, first, kernel_size=3, stride=2),
                )
            )
        )
        stages: list[list[nn.Module]] = [[ConvolutionBlock(first) for _ in range(first_depth)]]
        stages += [
            [WindowBlock(dim, num_heads=heads, window_size=side) for _ in range(depth)]
            for dim, depth, heads, side in zip(dims[1:], depths, encoder_num_heads, window_sizes, strict=True)
        ]
        merging = [Merging(dims[i], dims[i + 1], stride=stride) for i, stride in enumerate((2, 2, 1))]
        self.layers = nn.ModuleList(
            Stage(blocks, downsample=downsample) for blocks, downsample in zip(stages, [*merging, None], strict=True)
        )
        # Of the classifier that it was before: in the checkpoint, and never used.
        self.norm_head = nn.LayerNorm(last)
        self.head = nn.Linear(last, _NUM_CLASSES)
        self.neck = nn.Sequential(
            nn.Conv2d(last, prompt_embed_dim, kernel_size=1, bias=False),
            LayerNorm2d(prompt_embed_dim),
            nn.Conv2d(prompt_embed_dim, prompt_embed_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(prompt_embed_dim),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised, zero-padded pixels (B, 3, S, S) to features (B, C, S/16, S/16)."""
        features = self.patch_embed(pixels)
        for layer in self.layers:
            features = layer(features)
        told: Tensor = self.neck(features)
        return told
