"""Small image encoders."""

import pytest
import torch

from labeler.encoders import ENCODERS, PyramidEncoder

SMALL = {"encoder_dims": [8, 8, 16, 16], "encoder_depths": [1, 1, 1, 1]}


@pytest.mark.parametrize("image_size", [64, 96])
@torch.no_grad()
def test_features_lie_at_stride_8(image_size: int) -> None:
    """C channels, an eighth of the input's side."""
    encoder = ENCODERS["pyramid"](image_size=image_size, prompt_embed_dim=24, **SMALL)
    features = encoder(torch.randn(2, 3, image_size, image_size))
    assert features.shape == (2, 24, image_size // 8, image_size // 8)


def test_a_side_that_strides_do_not_divide_is_refused() -> None:
    """The message names the size."""
    with pytest.raises(ValueError, match="image_size 100"):
        PyramidEncoder(image_size=100, prompt_embed_dim=24)


@torch.no_grad()
def test_a_pictures_features_do_not_depend_on_the_batch() -> None:
    """No statistics are shared between pictures, in training neither."""
    encoder = PyramidEncoder(image_size=64, prompt_embed_dim=24, **SMALL).train()
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.allclose(encoder(pixels)[:1], encoder(pixels[:1]), atol=1e-5)
