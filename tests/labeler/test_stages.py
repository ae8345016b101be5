"""The decoder in stages against segment-anything's own modules, where rounding and overflow would show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from labeler import stages  # noqa: E402
from labeler.convert import build_sam, convert_checkpoint  # noqa: E402
from labeler.engine import Engine  # noqa: E402
from labeler.graphs import MaskPredictor  # noqa: E402
from labeler.model_folder import read_model_info  # noqa: E402

ARCHITECTURE: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 12,
    "encoder_embed_dim": 12,
    "encoder_depth": 1,
    "encoder_num_heads": 2,
    "encoder_mlp_ratio": 2,
    "encoder_global_attn_indexes": [0],
    "window_size": 4,
    "prompt_embed_dim": 32,
    "mask_in_chans": 8,
    "decoder_depth": 3,
    "decoder_mlp_dim": 20,
    "decoder_num_heads": 4,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 17,
}


def make_sam(*, depth: int = 3, score: float = 1.0) -> Any:
    """Random weights; queries and keys scaled so that attention's scores reach about this size."""
    sam = build_sam(ARCHITECTURE | {"decoder_depth": depth})
    generator = torch.Generator().manual_seed(depth)
    state = {name: torch.randn(w.shape, generator=generator) * 0.3 for name, w in sam.state_dict().items()}
    for name in state:
        if "transformer" in name and ("q_proj" in name or "k_proj" in name):
            state[name] *= score**0.5 * (0.7 if "bias" in name else 0.35)
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    sam.load_state_dict(state)
    return sam


def compute_in_double(sam: Any) -> None:
    """All but where a place is encoded: segment-anything makes that in f32 whatever the weights are."""
    places = sam.prompt_encoder.get_dense_pe().double()
    sam.double()
    sam.prompt_encoder.pe_layer.float()
    sam.prompt_encoder.get_dense_pe = lambda: places


def make_prompts(sam: Any, *, num_prompts: int, num_points: int) -> tuple[Any, ...]:
    """Features, points and labels; every label there is, the last one padding."""
    generator = torch.Generator().manual_seed(num_points)
    encoder = sam.prompt_encoder
    features = torch.randn(1, encoder.embed_dim, *encoder.image_embedding_size, generator=generator)
    points = torch.rand(num_prompts, num_points, 2, generator=generator) * ARCHITECTURE["image_size"]
    labels = torch.randint(0, 4, (num_prompts, num_points), generator=generator, dtype=torch.int32)
    labels[:, -1] = -1
    return features, points, labels


def run_stages(sam: Any, features: Any, points: Any, labels: Any, mask_logits: Any = None) -> tuple[Any, Any]:
    """All stages, one after the other, for all prompts at once or, with masks, one by one."""
    if mask_logits is not None:
        rows = []
        for i in range(len(points)):
            shared = stages.ImageSide(sam)(features, mask_logits[i : i + 1])
            rows.append(finish(sam, shared, points[i : i + 1], labels[i : i + 1]))
        return tuple(torch.cat(column) for column in zip(*rows, strict=True))
    return finish(sam, stages.ImageSide(sam)(features), points, labels)


def finish(sam: Any, shared: Any, points: Any, labels: Any) -> tuple[Any, Any]:
    iou_token, mask_tokens, image = stages.PromptStage(sam)(*shared, points, labels)
    return stages.MaskStage(sam)(mask_tokens, image), stages.IouStage(sam)(iou_token)


def measure_largest_score(sam: Any, *inputs: Any) -> float:
    """The largest attention score between tokens and image while the plain predictor runs."""
    largest = 0.0
    projected: dict[Any, Any] = {}

    def watch(attention: Any, kind: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            nonlocal largest
            projected[attention, kind] = output
            if kind == "k":
                q, k = (attention._separate_heads(projected[attention, name], attention.num_heads) for name in "qk")
                largest = max(largest, float((q @ k.transpose(2, 3)).abs().max()) / q.shape[-1] ** 0.5)

        return hook

    handles = [
        getattr(module, f"{kind}_proj").register_forward_hook(watch(module, kind))
        for name, module in sam.mask_decoder.transformer.named_modules()
        if name.endswith(("token_to_image", "image_to_token"))
        for kind in "qk"
    ]
    MaskPredictor(sam)(*inputs)
    for handle in handles:
        handle.remove()
    return largest


def assert_same(given: tuple[Any, Any], expected: tuple[Any, Any], *, tolerance: float) -> None:
    for ours, theirs in zip(given, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (np.abs(np.asarray(ours) - np.asarray(theirs)) <= tolerance * float(np.asarray(theirs).std())).all()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("with_mask", [False, True], ids=["", "with masks"])
@pytest.mark.parametrize("num_points", [1, 2, 7, 64])
def test_stages_give_the_plain_decoders_numbers(num_points: int, with_mask: bool, depth: int) -> None:
    """For any number of points, blocks and with mask prompts: the same numbers, in f64 (but for the f32 places of points)."""
    sam = make_sam(depth=depth)
    compute_in_double(sam)
    features, points, labels = make_prompts(sam, num_prompts=3, num_points=num_points)
    features = features.double()
    generator = torch.Generator().manual_seed(depth)
    size = sam.prompt_encoder.mask_input_size
    masks = 4 * torch.randn(3, 1, *size, generator=generator, dtype=torch.float64) if with_mask else None
    with torch.no_grad():
        expected = MaskPredictor(sam)(features, points, labels, masks)
        assert_same(run_stages(sam, features, points, labels, masks), expected, tolerance=1e-6)


def test_extreme_scores_neither_overflow_nor_vanish() -> None:
    """At scores beyond +-200 float32's exp is infinite or zero; the answers stay the plain decoder's."""
    sam = make_sam(score=200.0)
    inputs = make_prompts(sam, num_prompts=3, num_points=3)
    with torch.no_grad():
        assert measure_largest_score(sam, *inputs) > 200
        given = run_stages(sam, *inputs)
        assert_same(given, MaskPredictor(sam)(*inputs), tolerance=1e-3)


@pytest.mark.parametrize("low", [-200.0, -1e30])
def test_each_head_has_its_own_maximum(low: float) -> None:
    """A head whose scores lie 400 and more below another's is no division of zero by zero."""
    scores = torch.stack([torch.full((7, 5), 200.0), torch.full((7, 5), low)]).flatten(0, 1)[None]
    scores[0, 9] += abs(low) / 10
    shares = stages._softmax_tokens(scores, 2)
    torch.testing.assert_close(shares.unflatten(1, (2, 7)), scores.unflatten(1, (2, 7)).softmax(2))


def test_extreme_scores_in_openvino(tmp_path: Path) -> None:
    """The converted stages, in f32, as the engine runs them."""
    sam = make_sam(score=200.0)
    torch.save(sam.state_dict(), tmp_path / "extreme.pth")
    (tmp_path / "extreme.json").write_text(json.dumps(ARCHITECTURE))
    folder = tmp_path / "model"
    convert_checkpoint(tmp_path / "extreme.pth", output=folder, model_type=str(tmp_path / "extreme.json"), weights="f32")
    inputs = make_prompts(sam, num_prompts=3, num_points=3)
    answers = Engine(folder, read_model_info(folder), threads=1).predict(
        inputs[0].numpy(), points=inputs[1].numpy(), labels=inputs[2].numpy()
    )
    with torch.no_grad():
        expected = MaskPredictor(sam)(*inputs)
    assert_same((answers.logits, answers.predicted_iou), expected, tolerance=1e-3)
