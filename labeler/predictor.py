"""A promptable model as values instead of sessions: ``embed`` a crop once, ``predict`` for it as often as you like.

Follows ``segment_anything/predictor.py`` and ``prompt_encoder.py``; must not know files, the point grid or filters.
"""

from dataclasses import replace

import numpy as np

from labeler.engine import Engine, Prediction, Receive
from labeler.geometry import fit_in_square, points_to_input
from labeler.images import resize_image
from labeler.masks import Tracer, Upsampling, plan_upsampling, upsample_logits
from labeler.model_folder import ModelInfo
from labeler.types import MAX_POINTS, Bool, Box, Embedding, Float32, Int32, Prompts, Size, UInt8

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)

_BOX_CORNER_LABELS = (2, 3)
_PADDING_LABEL = -1


def fill_input(pixels: UInt8, *, side: int) -> tuple[Float32, Size]:
    """(H, W, 3) uint8 RGB -> what the encoder reads, (1, 3, side, side), and the size of the picture within it."""
    height, width = fit_in_square((pixels.shape[0], pixels.shape[1]), side=side)
    resized = resize_image(pixels, size_hw=(height, width))
    padded = np.zeros((1, 3, side, side), np.float32)  # Padding comes after normalising: zeros are the mean colour.
    padded[0, :, :height, :width] = ((resized.astype(np.float32) - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)
    return padded, (height, width)


class Predictor:
    """One model, ready to answer. Holds no image: the embedding is the caller's."""

    def __init__(self, engine: Engine, info: ModelInfo) -> None:
        self._engine = engine
        self.info = info
        self.threads = engine.threads
        self.has_bf16 = engine.has_bf16

    def embed(self, pixels: UInt8, *, crop_xyxy: Box | None = None) -> Embedding:
        """Encode an (H, W, 3) uint8 RGB image, or a part of it (half-open box)."""
        image_hw = (pixels.shape[0], pixels.shape[1])
        x0, y0, x1, y1 = crop_xyxy or (0, 0, image_hw[1], image_hw[0])
        padded, input_hw = fill_input(pixels[y0:y1, x0:x1], side=self.info.image_size)
        return Embedding(features=self._engine.encode(padded), crop_xyxy=(x0, y0, x1, y1), image_hw=image_hw, input_hw=input_hw)

    def predict(
        self,
        embedding: Embedding,
        prompts: Prompts,
        *,
        multimask: bool = True,
        iou_above: float | None = None,
        receive: Receive | None = None,
    ) -> Prediction:
        """Answer each prompt with three masks (for ambiguous prompts, such as one point) or with one.

        Args:
            iou_above: make masks only for prompts with a predicted IoU greater than this; it halves the work of others.
            receive: called with a prompt's place, predicted IoU (K,) and logits (K, h, w), as soon as they are there, from
                several threads at once; the logits last as long as the call. Without it all are kept.

        Raises:
            ValueError: a prompt without point, box or mask, or with more than 64 points.
        """
        points, labels = self._to_model_points(embedding, prompts)
        kept = slice(1, None) if multimask else slice(0, 1)

        def has_sure_mask(iou: Float32, /) -> Bool:
            sure: Bool = np.any(iou[:, kept] > np.float32(iou_above or 0.0), axis=1)
            return sure

        def receive_kept(prompt: int, iou: Float32, logits: Float32) -> None:
            if receive is not None:
                receive(prompt, iou[kept], logits[kept])

        answer = self._engine.predict(
            embedding.features,
            points=points,
            labels=labels,
            mask_logits=prompts.mask_logits,
            wanted=None if iou_above is None else has_sure_mask,
            receive=None if receive is None else receive_kept,
        )
        return replace(answer, predicted_iou=answer.predicted_iou[:, kept], logits=answer.logits[:, kept])

    def upsample(self, embedding: Embedding, logits: Float32) -> Float32:
        """(M, h, w) low-resolution logits -> (M, H, W) at the crop's size."""
        rows, columns = self._plan_upsampling(embedding)
        return upsample_logits(logits, rows=rows, columns=columns)

    def binarize(self, embedding: Embedding, logits: Float32) -> Bool:
        """(M, h, w) low-resolution logits -> (M, H, W) bool masks at the crop's size."""
        masks: Bool = self.upsample(embedding, logits) > self.info.mask_threshold
        return masks

    def make_tracer(self, embedding: Embedding, *, stability_score_offset: float) -> Tracer:
        """What makes masks in the image's frame of this embedding's low-resolution logits."""
        rows, columns = self._plan_upsampling(embedding)
        return Tracer(
            rows=rows,
            columns=columns,
            crop_xyxy=embedding.crop_xyxy,
            image_hw=embedding.image_hw,
            mask_threshold=self.info.mask_threshold,
            stability_score_offset=stability_score_offset,
        )

    def _plan_upsampling(self, embedding: Embedding) -> tuple[Upsampling, Upsampling]:
        """How the crop's rows and columns of pixels are made of logits."""
        rows, columns = (
            plan_upsampling(low_res_length=4 * low, input_side=self.info.image_size, input_length=inner, crop_length=outer)
            for low, inner, outer in zip(self.info.embedding_shape[2:], embedding.input_hw, embedding.crop_hw, strict=True)
        )
        return rows, columns

    def _to_model_points(self, embedding: Embedding, prompts: Prompts) -> tuple[Float32, Int32]:
        """Points, then a box's two corners; or, where there are points but no box, SAM's one padding point."""
        count, num_points = prompts.labels.shape
        if num_points > MAX_POINTS:
            raise ValueError(f"a prompt may hold {MAX_POINTS} points at most, not {num_points}")
        if num_points == 0 and prompts.boxes_xyxy is None and prompts.mask_logits is None:
            raise ValueError("a prompt needs a point, a box or a mask")
        points, labels = prompts.points_xy, prompts.labels
        if prompts.boxes_xyxy is not None:
            points = np.concatenate([points, prompts.boxes_xyxy.reshape(count, 2, 2)], axis=1)
            labels = np.concatenate([labels, np.tile(np.array(_BOX_CORNER_LABELS, np.int32), (count, 1))], axis=1)
        points = points_to_input(points, crop_hw=embedding.crop_hw, input_hw=embedding.input_hw)
        if num_points and prompts.boxes_xyxy is None:
            points = np.concatenate([points, np.zeros((count, 1, 2))], axis=1)
            labels = np.concatenate([labels, np.full((count, 1), _PADDING_LABEL, np.int32)], axis=1)
        return points.astype(np.float32), labels.astype(np.int32)
