"""A training run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.scenes import PhotoBank
from training.train import CHECKPOINT, Recipe, train

SMALL = {
    "encoder": "pyramid",
    "image_size": 128,
    "encoder_dims": [8, 8, 8, 8],
    "encoder_depths": [1, 1, 1, 1],
    "prompt_embed_dim": 16,
    "mask_in_chans": 4,
    "decoder_depth": 1,
    "decoder_mlp_dim": 16,
    "decoder_num_heads": 1,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}
RECIPE = Recipe(
    minutes=0.02,
    first_size=64,
    full_size_from=0.5,
    scenes_a_step=2,
    clicks_a_scene=2,
    boxes_a_scene=1,
    refine_chance=1.0,
    learning_rate=1e-3,
    reuse=2,
    workers=0,
    device="cpu",
    seed=0,
)


def test_a_run_goes_on_where_it_was(tmp_path: Path, bank: PhotoBank, caplog: pytest.LogCaptureFixture) -> None:
    """Given more time, a finished run takes more steps from its checkpoint instead of starting again."""
    train(RECIPE, architecture=SMALL, bank=bank, folder=tmp_path)
    first = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert first["step"] >= 1
    more = replace(RECIPE, minutes=(first["trained_s"] + 0.6) / 60)  # However slow the machine was.
    with caplog.at_level("INFO"):
        train(more, architecture=SMALL, bank=bank, folder=tmp_path)
    second = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert second["step"] > first["step"]
    assert f"going on from step {first['step']}" in caplog.text
