"""The encoder with its attention cut into heads gives segment-anything's numbers."""

from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
segment_anything = pytest.importorskip("segment_anything")

from segment_anything.modeling import ImageEncoderViT  # noqa: E402

from labeler import heads  # noqa: E402


def make_encoder(*, use_rel_pos: bool) -> Any:
    """Four blocks, the second and last over the whole image; no weight is zero."""
    encoder = ImageEncoderViT(
        img_size=128,
        embed_dim=48,
        depth=4,
        num_heads=3,
        out_chans=16,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=use_rel_pos,
        window_size=3,
        global_attn_indexes=(1, 3),
    )
    generator = torch.Generator().manual_seed(1)
    encoder.load_state_dict({name: torch.randn(w.shape, generator=generator) / 4 for name, w in encoder.state_dict().items()})
    return encoder.double().eval()


@pytest.mark.parametrize("use_rel_pos", [True, False])
def test_split_heads_give_the_same_features(monkeypatch: pytest.MonkeyPatch, use_rel_pos: bool) -> None:
    """Global attention is split, windows are not, weights are shared, and the given encoder stays as it was."""
    monkeypatch.setattr(heads, "_LARGEST_SCORES", 0)
    encoder = make_encoder(use_rel_pos=use_rel_pos)
    split: Any = heads.split_heads(encoder)
    assert [isinstance(block.attn, heads.HeadByHead) for block in split.blocks] == [False, True, False, True]
    assert not any(isinstance(block.attn, heads.HeadByHead) for block in encoder.blocks)
    assert split.blocks[1].attn.whole.qkv.weight is encoder.blocks[1].attn.qkv.weight
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(split(pixels), encoder(pixels), rtol=1e-12, atol=1e-12)


def test_few_scores_stay_together() -> None:
    """A small image's attention is not cut: many small products would be slower."""
    split: Any = heads.split_heads(make_encoder(use_rel_pos=True))
    assert not any(isinstance(block.attn, heads.HeadByHead) for block in split.blocks)


def test_an_encoder_of_another_kind_is_left_alone() -> None:
    """One without blocks of attention passes as it is."""
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    pixels = torch.zeros(1, 3, 8, 8)
    assert torch.equal(heads.split_heads(encoder)(pixels), encoder(pixels))
