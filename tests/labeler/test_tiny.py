"""The embedded model: what it came from, and that it answers without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageDraw
from pycocotools import mask as coco_mask

from labeler.convert import convert_checkpoint
from labeler.engine import Engine
from labeler.model_folder import read_model_info
from labeler.models import find_model

STATE = Path(__file__).parents[1] / "data" / "tiny"


def test_the_embedded_folder_is_its_states_conversion(tmp_path: Path) -> None:
    """The state under tests/, converted anew, answers as the folder that the package brings."""
    embedded = find_model("tiny")
    info = read_model_info(embedded)
    made = convert_checkpoint(
        STATE / "state_f16.pth",
        output=tmp_path / "tiny",
        model_type=str(STATE / "tiny.json"),
        defaults=info.defaults,
        prompts_per_call=info.prompts_per_call,
    )
    left_out = {"files", "tools"}  # Their last bits may be another processor's.
    assert made.model_dump(exclude=left_out) == info.model_dump(exclude=left_out)
    random = np.random.default_rng(0)
    pixels = random.normal(size=(1, 3, info.image_size, info.image_size)).astype(np.float32)
    points = random.uniform(0, info.image_size, (4, 2, 2)).astype(np.float32)
    labels = np.tile(np.array([1, -1], np.int32), (4, 1))
    answers = []
    for folder in (embedded, tmp_path / "tiny"):
        engine = Engine(folder, info, threads=1)
        features = engine.encode(pixels)
        answers.append((features, engine.predict(features, points=points, labels=labels)))
    (features, given), (features_again, again) = answers
    np.testing.assert_allclose(features_again, features, atol=1e-3 * features.std())
    np.testing.assert_allclose(again.logits, given.logits, atol=1e-3 * given.logits.std())
    np.testing.assert_allclose(again.predicted_iou, given.predicted_iou, atol=1e-3)


@pytest.mark.parametrize("size_wh", [(480, 320), (300, 500)])
def test_a_click_on_a_disc_gives_the_disc(size_wh: tuple[int, int], tmp_path: Path) -> None:
    """From the command line, with nothing but the package: a red disc on gray, clicked in its middle."""
    width, height = size_wh
    picture = PillowImage.new("RGB", size_wh, (120, 130, 120))
    disc = (width // 2 - 80, height // 2 - 90, width // 2 + 80, height // 2 + 70)
    ImageDraw.Draw(picture).ellipse(disc, fill=(200, 30, 40))
    picture.save(tmp_path / "disc.png")
    command = [sys.executable, "-c", "import sys; sys.modules['torch'] = None; from labeler.cli import main; sys.exit(main())"]
    point = f"{width // 2},{height // 2 - 10}"
    options = ["--model", "tiny", "--point", point, "--output", tmp_path / "mask.png", "--threads", "1"]
    subprocess.run([*command, "prompt", tmp_path / "disc.png", *options], check=True)
    with PillowImage.open(tmp_path / "mask.png") as opened:
        mask = np.asarray(opened.convert("L")) > 0
    y, x = np.mgrid[:height, :width] + 0.5
    wanted = (x - width / 2) ** 2 + (y - height / 2 + 10) ** 2 < 80**2
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.8


def test_its_defaults_find_things(tmp_path: Path) -> None:
    """Four things of one colour each on a plain ground: each is among the masks, which are not hundreds."""
    picture = PillowImage.new("RGB", (400, 300), (210, 205, 190))
    draw = ImageDraw.Draw(picture)
    boxes = [(30, 30, 130, 120), (220, 40, 360, 130), (40, 170, 150, 270), (250, 170, 350, 270)]
    for box, colour in zip(boxes, [(180, 40, 40), (40, 90, 170), (50, 140, 60), (60, 50, 60)], strict=True):
        draw.rectangle(box, fill=colour)
    picture.save(tmp_path / "boxes.png")
    command = [sys.executable, "-m", "labeler", "masks", tmp_path / "boxes.png", "--model", "tiny", "--threads", "1"]
    subprocess.run([*command, "--output", tmp_path / "masks.json"], check=True)
    found = [record["segmentation"] for record in json.loads((tmp_path / "masks.json").read_text())]
    assert 4 <= len(found) <= 100
    for x0, y0, x1, y1 in boxes:
        thing = np.zeros((300, 400), np.uint8, order="F")
        thing[y0 : y1 + 1, x0 : x1 + 1] = 1
        assert coco_mask.iou(found, [coco_mask.encode(thing)], [0]).max() > 0.5
