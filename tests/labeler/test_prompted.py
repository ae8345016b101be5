"""Masks that prompts ask for: SamPredictor.predict_torch in PyTorch, with the same weights and f32, is the judge."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from segment_anything import SamPredictor

from labeler import rle
from labeler.engine import Engine
from labeler.model_folder import read_model_info
from labeler.options import MaskOptions, PromptOptions
from labeler.predictor import Predictor
from labeler.prompted import Answers, answer_prompts
from labeler.prompts import Prompt
from labeler.types import Image

PHOTOS = {"coffee": skimage.data.coffee(), "astronaut": skimage.data.astronaut()[:, 40:440]}

PROMPTS = {
    "boxes alone": [
        Prompt(prompt_id=number, box_xyxy=(x, y, x + 130.5, y + 90.25))
        for number, (x, y) in enumerate([(10.0, 10.0), (100.0, 60.0), (200.5, 150.0), (250.0, 280.0), (-20.0, 100.0)])
    ],
    "a box and points": [
        Prompt(prompt_id=1, box_xyxy=(120.0, 80.0, 390.0, 330.0), points_xy=((240.0, 200.0),), point_labels=(1,)),
        Prompt(prompt_id=2, box_xyxy=(20.0, 30.0, 290.0, 230.0), points_xy=((140.0, 100.0),), point_labels=(0,)),
    ],
    "points, some outside": [
        Prompt(prompt_id=1, points_xy=((240.0, 200.0), (250.0, 150.0), (20.0, 20.0)), point_labels=(1, 1, 0)),
        Prompt(prompt_id=2, points_xy=((100.0, 300.0), (110.0, 310.0), (300.0, 20.0)), point_labels=(1, 1, 0)),
    ],
    "single points": [
        Prompt(prompt_id=number, points_xy=((x, y),), point_labels=(1,))
        for number, (x, y) in enumerate([(200.0, 200.0), (50.0, 60.0), (399.0, 10.0)])
    ],
}


@pytest.fixture(scope="module")
def predictor(prototype_folder: Path) -> Predictor:
    info = read_model_info(prototype_folder)
    return Predictor(Engine(prototype_folder, info, threads=1), info)


def answer(predictor: Predictor, pixels: np.ndarray, prompts: list[Prompt], *, masks: str = "one", **options: Any) -> Answers:
    picture = Image(pixels=pixels, stored_hw=pixels.shape[:2], **options)
    wanted = PromptOptions.model_validate({"prompt_masks": masks})
    return answer_prompts(picture, prompts, predictor=predictor, options=MaskOptions(), prompt_options=wanted)


def decode(answers: Answers, place: int) -> np.ndarray:
    row = answers.places.tolist().index(place)
    return rle.runs_to_mask(answers.masks.runs(row), image_hw=answers.masks.image_hw)


def ask_reference(judge: SamPredictor, prompt: Prompt, *, multimask: bool) -> tuple[np.ndarray, float]:
    """The mask of highest predicted IoU, and that."""
    size, box, coords, labels = judge.original_size, None, None, None
    if prompt.box_xyxy is not None:
        box = torch.from_numpy(judge.transform.apply_boxes(np.array([prompt.box_xyxy]), size))
    if prompt.points_xy:
        coords = torch.from_numpy(judge.transform.apply_coords(np.array([prompt.points_xy]), size))
        labels = torch.tensor([prompt.point_labels])
    with torch.no_grad():
        masks, ious, _ = judge.predict_torch(coords, labels, box, multimask_output=multimask)
    best = int(ious[0].argmax())
    return masks[0, best].numpy(), float(ious[0, best])


@pytest.mark.parametrize("masks", ["one", "best"])
@pytest.mark.parametrize("photo", PHOTOS)
def test_answers_are_predict_torchs(photo: str, masks: str, predictor: Predictor, prototype_sam: Any) -> None:
    """Of all kinds together, so that batches of different shapes are put in order again; every mask's IoU is 0.999 or more."""
    pixels = np.ascontiguousarray(PHOTOS[photo])
    judge = SamPredictor(prototype_sam)
    judge.set_image(pixels)
    prompts = [prompt for kind in zip(*map(_cycle, PROMPTS.values()), strict=True) for prompt in kind]
    answers = answer(predictor, pixels, prompts, masks=masks)
    assert not answers.errors
    assert answers.places.tolist() == list(range(len(prompts)))
    for place, prompt in enumerate(prompts):
        is_single = prompt.box_xyxy is None and len(prompt.points_xy) == 1
        theirs, iou = ask_reference(judge, prompt, multimask=masks == "best" and is_single)
        ours = decode(answers, place)
        assert (ours & theirs).sum() >= 0.999 * (ours | theirs).sum(), prompt
        assert answers.masks.predicted_iou[place] == pytest.approx(iou, abs=1e-4)


def _cycle(prompts: list[Prompt]) -> list[Prompt]:
    return (prompts * 5)[:5]


def test_a_prompt_that_can_not_be_asked_disturbs_no_other(predictor: Predictor) -> None:
    """Its place has its error; the others' masks are as without it, and a photo without any prompt is not encoded."""
    pixels = PHOTOS["coffee"]
    good = PROMPTS["boxes alone"]
    bad = replace(good[0], box_xyxy=(700.0, 10.0, 800.0, 50.0))
    answers = answer(predictor, pixels, [bad, *good, bad])
    assert {place: error.kind for place, error in answers.errors.items()} == {0: "outside", 6: "outside"}
    assert answers.places.tolist() == [1, 2, 3, 4, 5]
    alone = answer(predictor, pixels, good)
    np.testing.assert_array_equal(answers.masks.run_lengths, alone.masks.run_lengths)
    assert answer(predictor, pixels, [bad]).seconds.encode == 0.0


def test_prompts_in_the_stored_frame_are_turned_with_the_photo(predictor: Predictor) -> None:
    """The same box in both frames gives the same mask, also where masks are wanted in the stored one."""
    upright = np.ascontiguousarray(PHOTOS["coffee"][:, :500])
    height, width = upright.shape[:2]
    box = (150.0, 80.0, 450.0, 330.0)
    stored_box = (box[1], width - box[2], box[3], width - box[0])  # Orientation 6: upright is stored turned clockwise.
    wanted = {"box_xyxy": stored_box, "frame_hw": (width, height)}
    picture = Image(pixels=upright, stored_hw=(width, height), exif_orientation=6)
    ask = {"predictor": predictor, "options": MaskOptions(), "prompt_options": PromptOptions()}
    turned = answer_prompts(picture, [Prompt(prompt_id=1, **wanted)], **ask)  # type: ignore[arg-type]
    plain = answer(predictor, upright, [Prompt(prompt_id=1, box_xyxy=box)])
    assert turned.asked[0].box_xyxy == box
    np.testing.assert_array_equal(turned.masks.run_lengths, plain.masks.run_lengths)
