"""Small image encoders."""

import pytest
import torch

from labeler.encoders import ENCODERS, EdgeAwareFilter, PyramidEncoder

SMALL = {"encoder_dims": [8, 8, 16, 16], "encoder_depths": [1, 1, 1, 1]}


@pytest.mark.parametrize("image_size", [64, 96])
@torch.no_grad()
def test_features_lie_at_stride_8(image_size: int) -> None:
    """C channels, an eighth of the input's side."""
    encoder = ENCODERS["pyramid"](image_size=image_size, prompt_embed_dim=24, **SMALL)
    features = encoder(torch.randn(2, 3, image_size, image_size))
    assert features.shape == (2, 24, image_size // 8, image_size // 8)


@torch.no_grad()
def test_attention_starts_as_nothing_and_sees_the_whole_picture() -> None:
    """A network that learned without it goes on as it was; once it sees, a far corner changes what is told of the other."""
    torch.manual_seed(0)
    plain = PyramidEncoder(image_size=64, prompt_embed_dim=24, **SMALL)
    looking = PyramidEncoder(image_size=64, prompt_embed_dim=24, **SMALL, encoder_attention_heads=2)
    assert not looking.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(looking(pixels), plain(pixels))
    for attention in looking.look:
        torch.nn.init.normal_(attention.out.weight)
    changed = pixels.clone()
    changed[..., 48:, 48:] += 1.0
    assert not torch.allclose(looking(changed)[..., 0, 0], looking(pixels)[..., 0, 0], atol=1e-3)
    rows, columns = looking._tell_places(torch.empty(1, 8, 8, 8))
    assert (rows + columns.T[:, None]).flatten(1).unique(dim=1).shape == (8, 64)


@torch.no_grad()
def test_the_filter_starts_as_nothing_and_stops_at_borders() -> None:
    """What lies behind a border tells nothing, be it far or near; within one thing the way round a corner is open."""
    torch.manual_seed(0)
    spread = EdgeAwareFilter(8, num_heads=2)
    features, place = torch.randn(1, 8, 6, 7), (torch.zeros(8, 1, 1), torch.zeros(7, 8))
    assert torch.equal(spread(features, place), features)
    torch.nn.init.normal_(spread.out.weight)
    borders = torch.full((1, 4, 6, 7), -20.0)  # of softplus: none
    borders[:, :2, :, 2] = 30.0  # between columns 2 and 3, for both heads
    spread.borders.register_forward_hook(lambda *_: borders)
    told = spread(features, place) - features
    for part in (slice(0, 3), slice(3, 7)):
        assert torch.allclose(told[..., part], told[..., :1, part.start : part.start + 1], atol=1e-4)
    assert not torch.allclose(told[..., 2], told[..., 3], atol=1e-2)
    changed = features.clone()
    changed[..., 3, 3:] += 1.0 * torch.randn(8, 1)
    there = spread(changed, place) - changed
    assert torch.allclose(there[..., :3], told[..., :3], atol=1e-4)
    assert not torch.allclose(there[..., 5, 6], told[..., 5, 6], atol=1e-3)


@torch.no_grad()
def test_filters_do_not_need_attentions() -> None:
    """A network that learned without either goes on as it was."""
    plain = PyramidEncoder(image_size=64, prompt_embed_dim=24, **SMALL)
    spreading = PyramidEncoder(image_size=64, prompt_embed_dim=24, **SMALL, encoder_filter_heads=2)
    assert not spreading.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(spreading(pixels), plain(pixels))


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
