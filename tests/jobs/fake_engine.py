"""An engine that draws discs at its prompts, so that job tests need no model. Some pictures make it misbehave."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from labeler.engine import Prediction
from labeler.errors import ModelError
from labeler.model_folder import ModelInfo

# Colours of a picture that make the engine do what an engine should not.
EXITS, RAISES, HANGS, SLOW = (255, 0, 255), (0, 255, 255), (255, 255, 0), (0, 255, 0)
_MEAN, _STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


class DiscEngine:
    """Answers each point with four discs around it whose sizes depend on the picture's brightness."""

    def __init__(self, folder: Path, info: ModelInfo, **_settings: Any) -> None:
        if "FAKE_ENGINE_FAILS" in os.environ:
            raise ModelError("this machine can't compute that")
        if "FAKE_ENGINE_EXITS" in os.environ:
            os._exit(1)
        self._shape = info.embedding_shape
        self.threads = 1
        self.has_bf16 = "FAKE_ENGINE_BF16" in os.environ

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """(1, 3, S, S) -> (1, C, h, w) whose first value is the mean of the picture."""
        first = tuple(np.round(pixels[0, :, 0, 0] * _STD + _MEAN).astype(int))
        if first == EXITS:
            os._exit(1)
        if first == RAISES:
            raise ValueError("the engine does not like this picture")
        if first == HANGS:
            time.sleep(600)
        if first == SLOW:
            time.sleep(float(os.environ.get("FAKE_ENGINE_SLOW_S", "0.5")))
        features = np.zeros(self._shape, np.float32)
        features[0, 0, 0, 0] = pixels.mean()
        return features

    def predict(
        self, features: np.ndarray, *, points: np.ndarray, labels: np.ndarray, wanted: Any = None, receive: Any, **_more: Any
    ) -> Any:
        """Predicted IoU (P, 4); the logits (4, 4h, 4w) of each prompt whose masks are wanted go to who receives them."""
        side = 4 * self._shape[2]
        y, x = np.mgrid[:side, :side]
        radii = np.array([6.0, 4.0, 8.0, 12.0]) + np.clip(features[0, 0, 0, 0], -1, 1)
        distance = np.hypot(x - points[:, 0, 0, None, None], y - points[:, 0, 1, None, None])
        logits = (radii[None, :, None, None] - distance[:, None]) * 4
        iou = np.tile(np.array([0.95, 0.97, 0.93, 0.5]), (len(points), 1)) + points[:, 0, :1] * 1e-4
        iou = iou.astype(np.float32)
        rows = np.flatnonzero(wanted(iou)) if wanted else np.arange(len(points))
        for row in rows:
            receive(row, iou[row], logits[row].astype(np.float32))
        return Prediction(predicted_iou=iou, rows=rows, logits=logits[:0])
