"""MobileSAM's encoder against MobileSAM's own code, which no package holds: what it computed once is kept as data."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from torch import Tensor  # noqa: E402

from labeler.architecture import PUBLISHED_ARCHITECTURES  # noqa: E402
from labeler.convert import build_sam, convert_checkpoint, load_sam  # noqa: E402
from labeler.engine import Engine  # noqa: E402
from labeler.errors import OptionsError  # noqa: E402

FEATURES = Path(__file__).parent.parent / "data" / "mobile_sam_features.npy"
"""Features[0, ::32, ::9, ::9] of the commit below for the weights of ``draw_weights`` and the pixels of ``draw_pixels``."""
# Of ChaoningZhang/MobileSAM at 34bbbfdface3c18e5221aa7de6032d7220c6c6a1, build_sam_vit_t(): a line for each tensor.
NAMES_SHA256 = "6025c6954c4950f231faaaf610fc2623e2e2e73d0f48e58e1d1e7fd353d01100"

SMALL: dict[str, Any] = {
    **PUBLISHED_ARCHITECTURES["vit_t"].model_dump(),
    "image_size": 144,  # 36, 18 and 9 places a side: windows stick out of each, the last are larger than the picture.
    "prompt_embed_dim": 32,
    "encoder_embed_dims": [16, 24, 40, 60],
    "encoder_num_heads": [2, 5, 3],
    "window_sizes": [7, 14, 10],
    "decoder_mlp_dim": 64,
}


def draw_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that keep numbers in range, the same wherever they are drawn: by the tensors' order of names."""
    return {name: draw_tensor(name, state[name], seed) for seed, name in enumerate(sorted(state))}


def draw_tensor(name: str, like: Tensor, seed: int) -> Tensor:
    """One tensor's weights."""
    if not like.is_floating_point():
        return torch.full_like(like, 125_000)  # Batches seen: more than a float16 holds.
    drawn = np.random.RandomState(seed).uniform(-1.0, 1.0, tuple(like.shape))
    if name.endswith("running_var") or (like.ndim == 1 and name.endswith("weight")):
        drawn = 1.0 + 0.5 * drawn
    elif like.ndim > 1 and not name.endswith("attention_biases"):
        drawn *= (3.0 / np.prod(like.shape[1:])) ** 0.5
    return torch.from_numpy(drawn.astype(np.float32))


def draw_pixels() -> Tensor:
    """What stands for a picture, (1, 3, 1024, 1024)."""
    return torch.from_numpy(np.random.RandomState(1).standard_normal((1, 3, 1024, 1024)).astype(np.float32))


def hash_names(state: dict[str, Tensor]) -> str:
    """One digest for the names and shapes of all tensors."""
    lines = sorted(f"{name} {tuple(tensor.shape)}\n" for name, tensor in state.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_checkpoint_of_mobile_sam_has_these_tensors() -> None:
    """Names and shapes are those of MobileSAM's own model, its unused classifier included."""
    assert hash_names(build_sam("vit_t").state_dict()) == NAMES_SHA256


def test_features_are_mobile_sams() -> None:
    """The encoder computes what MobileSAM's does, batch norms with statistics and windows that stick out included."""
    encoder = build_sam("vit_t").image_encoder
    encoder.load_state_dict(draw_weights(encoder.state_dict()))
    with torch.inference_mode():
        features = encoder(draw_pixels())
    assert features.shape == (1, 256, 64, 64)
    expected = np.load(FEATURES)
    assert np.abs(features[0, ::32, ::9, ::9].numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_model_folder_computes_the_same(tmp_path: Path) -> None:
    """Checkpoint, ONNX, OpenVINO: a small one's features are those of PyTorch with the rounded weights."""
    state = build_sam(SMALL).state_dict()
    torch.save(draw_weights(state), tmp_path / "small.pth")
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    info = convert_checkpoint(
        tmp_path / "small.pth", output=tmp_path / "model", model_type=str(tmp_path / "small.json"), prompts_per_call=4
    )
    assert info.embedding_shape == (1, 32, 9, 9)
    sam = load_sam(tmp_path / "small.pth", model_type=SMALL, weights="f16")
    pixels = draw_pixels()[:, :, :144, :144].contiguous()
    with torch.inference_mode():
        expected = sam.image_encoder(pixels).numpy()
    given = Engine(tmp_path / "model", info, threads=1).encode(pixels.numpy())
    assert np.abs(given - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of 16"),
        ({"window_sizes": [7, 14]}, "encoder tiny_vit can't be built"),
        ({"encoder_num_heads": [2, 7, 3]}, "encoder tiny_vit can't be built"),
        ({"patch_size": 16}, "encoder tiny_vit does not know patch_size"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    """Numbers that make no encoder are a sentence, not a traceback."""
    with pytest.raises(OptionsError, match=message):
        build_sam({**SMALL, **change})
