"""From a training run to the embedded model."""

from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_masks

from labeler.convert import load_sam
from training.model import build_model
from training.release import list_regions, write_state
from training.scenes import Scene
from training.train import CHECKPOINT

SMALL = {
    "encoder": "pyramid",
    "image_size": 64,
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


def test_equal_regions_of_several_levels_count_once() -> None:
    """A thing without parts is the same region at each level; specks and id 0 are no regions."""
    levels = np.ones((3, 64, 64), np.uint16)
    levels[:, :20, :20] = 2
    levels[0, 5:10, 5:10] = 3
    levels[:, 60, 60] = 4
    levels[:, 40:, :10] = 0
    scene = Scene(pixels=np.zeros((64, 64, 3), np.uint8), levels=levels, last_found=0)
    areas = sorted(int(coco_masks.area(region)) for region in list_regions(scene, image_size=64))
    assert areas == [25, 375, 400, 64 * 64 - 400 - 240 - 1]


def test_a_checkpoints_state_loads_as_its_architecture_says(tmp_path: Path) -> None:
    """The f16 state and tiny.json are all that convert needs."""
    sam = build_model(SMALL)
    torch.save({"sam": sam.state_dict(), "architecture": SMALL}, tmp_path / CHECKPOINT)
    state = write_state(tmp_path, folder=tmp_path / "state")
    assert all(tensor.dtype == torch.float16 for tensor in torch.load(state, weights_only=True).values())
    loaded = load_sam(state, model_type=str(tmp_path / "state" / "tiny.json"))
    weight = sam.mask_decoder.iou_token.weight
    assert torch.equal(loaded.mask_decoder.iou_token.weight, weight.half().float())
