"""SamPredictor in PyTorch, with the same weights and f32, is the judge of every kind of prompt."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from labeler.engine import Engine
from labeler.model_folder import read_model_info
from labeler.predictor import Predictor
from labeler.types import MAX_POINTS, Prompts

PIXELS = skimage.data.coffee()


@pytest.fixture(scope="module")
def predictor(prototype_folder: Path) -> Predictor:
    info = read_model_info(prototype_folder)
    return Predictor(Engine(prototype_folder, info, threads=2), info)


@pytest.fixture(scope="module")
def reference(prototype_sam: Sam) -> SamPredictor:
    judge = SamPredictor(prototype_sam)
    judge.set_image(PIXELS)
    return judge


def points(*xyl: tuple[float, float, int]) -> Prompts:
    return Prompts(
        points_xy=np.array([[p[:2] for p in xyl]], np.float64).reshape(1, -1, 2),
        labels=np.array([[p[2] for p in xyl]], np.int32).reshape(1, -1),
    )


def boxes(*xyxy: tuple[float, float, float, float], negative: tuple[float, float] | None = None) -> Prompts:
    count = 0 if negative is None else 1
    return Prompts(
        points_xy=np.tile(np.array([negative] if negative else np.zeros((0, 2)), np.float64), (len(xyxy), 1, 1)),
        labels=np.zeros((len(xyxy), count), np.int32),
        boxes_xyxy=np.array(xyxy, np.float64),
    )


PROMPTS = {
    "one point": points((300, 200, 1)),
    "three points, one outside": points((300, 200, 1), (310, 150, 1), (20, 20, 0)),
    "only a point outside": points((300, 200, 0)),
    "a point on the corner": points((0, 0, 1)),
    "a box": boxes((150, 80, 450, 330)),
    "a box and a point outside": boxes((150, 80, 450, 330), negative=(200, 100)),
    "many boxes": boxes(*[(x, y, x + 120.5, y + 90.25) for x in range(0, 480, 60) for y in range(0, 310, 30)]),
    "as many points as may be": points(*[(5 + 9 * i, 5 + 6 * i, i % 2) for i in range(MAX_POINTS)]),
}


def ask_reference(reference: SamPredictor, prompts: Prompts, *, multimask: bool) -> tuple[np.ndarray, ...]:
    """Masks at image size, predicted IoU and low-resolution logits of SamPredictor."""
    sized = reference.transform
    coords = labels = corners = None
    if prompts.labels.shape[1]:
        coords = torch.from_numpy(sized.apply_coords(prompts.points_xy, reference.original_size))
        labels = torch.from_numpy(prompts.labels)
    if prompts.boxes_xyxy is not None:
        corners = torch.from_numpy(sized.apply_boxes(prompts.boxes_xyxy, reference.original_size))
    earlier = None if prompts.mask_logits is None else torch.from_numpy(prompts.mask_logits)
    with torch.no_grad():
        answer = reference.predict_torch(coords, labels, corners, earlier, multimask_output=multimask)
    return tuple(a.numpy() for a in answer)


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "one mask"])
@pytest.mark.parametrize("with_mask", [False, True], ids=["", "and an earlier answer"])
@pytest.mark.parametrize("name", PROMPTS)
def test_answers_are_sam_predictors(
    name: str, with_mask: bool, multimask: bool, predictor: Predictor, reference: SamPredictor
) -> None:
    """Logits within 1e-3 of their spread, predicted IoU within 1e-4, masks of IoU 0.999 and more."""
    prompts = PROMPTS[name]
    if with_mask:
        earlier = ask_reference(reference, prompts, multimask=False)[2]
        prompts = Prompts(prompts.points_xy, prompts.labels, prompts.boxes_xyxy, earlier)
    masks, ious, low_res = ask_reference(reference, prompts, multimask=multimask)
    embedding = predictor.embed(PIXELS)
    prediction = predictor.predict(embedding, prompts, multimask=multimask)
    assert prediction.logits.shape == low_res.shape
    assert np.abs(prediction.logits - low_res).max() <= 1e-3 * low_res.std()
    np.testing.assert_allclose(prediction.predicted_iou, ious, atol=1e-4)
    ours = predictor.binarize(embedding, prediction.logits.reshape(-1, *low_res.shape[2:])).reshape(masks.shape)
    shared, total = (ours & masks).sum((2, 3)), (ours | masks).sum((2, 3))
    assert np.all(shared >= 0.999 * total)


def test_an_earlier_answer_alone_is_a_prompt(predictor: Predictor, reference: SamPredictor) -> None:
    """A low-resolution mask without point or box, as SamPredictor takes it: no padding point either."""
    low_res = ask_reference(reference, PROMPTS["a box"], multimask=False)[2]
    prompts = Prompts(np.zeros((1, 0, 2)), np.zeros((1, 0), np.int32), None, low_res)
    with torch.no_grad():
        _, ious, logits = (a.numpy() for a in reference.predict_torch(None, None, None, torch.from_numpy(low_res)))
    prediction = predictor.predict(predictor.embed(PIXELS), prompts)
    assert np.abs(prediction.logits - logits).max() <= 1e-3 * logits.std()
    np.testing.assert_allclose(prediction.predicted_iou, ious, atol=1e-4)


def test_a_crop_is_answered_like_an_image_of_its_own(predictor: Predictor, reference: SamPredictor) -> None:
    """Embedding a part of an image is embedding the picture cut out; points are pixels of the crop."""
    crop = (100, 50, 420, 390)
    x0, y0, x1, y1 = crop
    inside = predictor.embed(PIXELS, crop_xyxy=crop)
    alone = predictor.embed(np.ascontiguousarray(PIXELS[y0:y1, x0:x1]))
    np.testing.assert_array_equal(inside.features, alone.features)
    assert inside.crop_hw == alone.crop_hw == (340, 320)
    assert inside.image_hw == PIXELS.shape[:2]


def test_a_batch_answers_each_prompt_as_alone(predictor: Predictor) -> None:
    """Padding a call's prompts changes none of them and drops none."""
    embedding = predictor.embed(PIXELS)
    many = PROMPTS["many boxes"]
    together = predictor.predict(embedding, many)
    assert len(together.logits) == len(many)
    for i in (0, 63, 64, len(many) - 1):
        alone = predictor.predict(embedding, many[i : i + 1])
        np.testing.assert_allclose(together.logits[i], alone.logits[0], atol=1e-3 * alone.logits.std())


@pytest.mark.parametrize("prompts", [points(), points(*[(1.0, 1.0, 1)] * (MAX_POINTS + 1))], ids=["none", "too many"])
def test_prompts_that_say_nothing_or_too_much_are_refused(prompts: Prompts, predictor: Predictor) -> None:
    """The message says what a prompt may hold."""
    with pytest.raises(ValueError, match="a prompt"):
        predictor.predict(predictor.embed(PIXELS), prompts)
