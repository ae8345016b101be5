"""The decoder for many prompts against segment-anything's own."""

import pytest
import torch
from segment_anything.modeling import Sam

from training.losses import order_by_cells
from training.model import ARCHITECTURE, _draw_cells, build_model, decode, embed_points

SMALL = {
    **ARCHITECTURE,
    "image_size": 64,
    "encoder_dims": [8, 16, 16, 16],
    "encoder_depths": [1, 1, 1, 1],
    "encoder_attention_heads": 2,
    "encoder_filter_heads": 2,
    "prompt_embed_dim": 32,
    "mask_in_chans": 8,
    "decoder_mlp_dim": 32,
}


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A small SAM whose every weight is off its start."""
    torch.manual_seed(0)
    model = build_model(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("with_masks", [False, True])
@torch.no_grad()
def test_decode_gives_what_segment_anything_gives(sam: Sam, with_masks: bool) -> None:
    """Logits and IoUs of several prompts of several pictures, with and without masks of an earlier round."""
    features, points = torch.randn(2, 32, 8, 8), torch.rand(2, 3, 2, 2) * 63
    labels = torch.tensor([[[1, -1], [2, 3], [0, 1]]] * 2)
    earlier = torch.randn(2, 3, 32, 32) if with_masks else None
    tokens = embed_points(sam, points, labels)
    logits, iou = decode(sam, features, tokens, earlier)
    for picture in range(2):
        _, dense = sam.prompt_encoder(points=None, boxes=torch.zeros(1, 4), masks=None)
        if earlier is not None:
            dense = sam.prompt_encoder.mask_downscaling(earlier[picture][:, None])
        expected_logits, expected_iou = sam.mask_decoder.predict_masks(
            features[picture : picture + 1], sam.prompt_encoder.get_dense_pe(), tokens[picture], dense
        )
        assert torch.allclose(logits[picture], expected_logits, atol=1e-4)
        assert torch.allclose(iou[picture], expected_iou, atol=1e-4)


@torch.no_grad()
def test_some_cells_are_those_of_the_whole(sam: Sam) -> None:
    """Masks drawn in a few cells only are the pixels of the whole masks there."""
    features, points = torch.randn(2, 32, 8, 8), torch.rand(2, 3, 2, 2) * 63
    tokens = embed_points(sam, points, torch.tensor([[[1, -1], [2, 3], [0, 1]]] * 2))
    cells = torch.stack([torch.randperm(64)[:5] for _ in range(6)]).view(2, 3, 5)
    whole, iou = decode(sam, features, tokens)
    some, same_iou = decode(sam, features, tokens, cells=cells)
    expected = order_by_cells(whole).gather(3, cells[:, :, None, :, None].expand(-1, -1, 4, -1, 16)).flatten(-2)
    assert torch.allclose(some, expected, atol=1e-5)
    assert torch.equal(iou, same_iou)


@torch.no_grad()
def test_masks_are_drawn_in_float32_under_autocast(sam: Sam) -> None:
    """Weights that were trained must give the same masks where nothing is rounded."""
    keys, tokens = torch.randn(1, 2, 5, 32).bfloat16(), torch.randn(1, 2, 4, 32).bfloat16()
    expected = _draw_cells(sam.mask_decoder, tokens.float(), keys.float())
    with torch.autocast("cpu", torch.bfloat16):
        drawn = _draw_cells(sam.mask_decoder, tokens, keys)
    assert torch.equal(drawn, expected)


@torch.no_grad()
def test_points_are_embedded_as_segment_anything_does(sam: Sam) -> None:
    """A click with its padding point, and a box."""
    points = torch.tensor([[[[10.0, 20.0], [0.0, 0.0]], [[3.0, 4.0], [40.0, 50.0]]]])
    tokens = embed_points(sam, points, torch.tensor([[[1, -1], [2, 3]]]))
    click, _ = sam.prompt_encoder(points=(points[0, :1, :1], torch.tensor([[1]])), boxes=None, masks=None)
    box, _ = sam.prompt_encoder(points=None, boxes=points[0, 1].reshape(1, 4), masks=None)
    assert torch.allclose(tokens[0, 0], click[0], atol=1e-5)
    assert torch.allclose(tokens[0, 1], box[0], atol=1e-5)
