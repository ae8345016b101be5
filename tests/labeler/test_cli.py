"""``python -m labeler`` as a person runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cyclopts import App
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask
from stores import S3_KEYS

from labeler.cli import main
from labeler.errors import ModelError
from labeler.flags import run_command
from labeler.models import find_model
from labeler.stores import use_store_options


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A bright disc on dark ground, 96 high and 128 wide."""
    y, x = np.mgrid[:96, :128]
    pixels = np.full((96, 128, 3), (30, 40, 60), np.uint8)
    pixels[(y - 50) ** 2 + (x - 60) ** 2 < 30**2] = (230, 200, 40)
    PillowImage.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_masks_are_amg_records(prototype_folder: Path, photo: Path, tmp_path: Path) -> None:
    """In a process of its own: JSON of amg.py's keys, COCO run lengths of the photo's size, boxes and areas of the masks."""
    output, overlay = tmp_path / "masks.json", tmp_path / "masks.png"
    options = ["--points-per-side", "6", "--pred-iou-thresh", "0.2", "--stability-score-thresh", "0.2", "--threads", "1"]
    command = [sys.executable, "-m", "labeler", "masks", photo, "--model", prototype_folder]
    answer = subprocess.run(
        [*command, "--output", output, "--overlay", overlay, *options], capture_output=True, text=True, check=True
    )
    records = json.loads(output.read_text())
    assert f"{len(records)} masks" in answer.stdout
    assert records
    keys = {"segmentation", "bbox", "area", "predicted_iou", "point_coords", "stability_score", "crop_box"}
    for record in records:
        assert record.keys() == keys
        assert record["segmentation"]["size"] == [96, 128]
        assert record["area"] == coco_mask.area(record["segmentation"])
        assert record["bbox"] == coco_mask.toBbox(record["segmentation"]).tolist()
        assert record["predicted_iou"] > 0.2
        assert record["crop_box"] == [0, 0, 128, 96]
        assert len(record["point_coords"]) == 1
    with PillowImage.open(overlay) as painted, PillowImage.open(photo) as original:
        assert painted.size == original.size
        assert not np.array_equal(np.asarray(painted), np.asarray(original))


@pytest.mark.parametrize(
    "prompts",
    [
        ["--point", "60,50"],
        ["--point", "60,50", "--multimask"],
        ["--point", "60,50", "--point", "70,50", "--negative", "5,5"],
        ["--box", "28,18,92,82"],
        ["--box", "28,18,92,82", "--negative", "5,5", "--overlay", "overlay.png"],
    ],
    ids=" ".join,
)
def test_a_prompt_gives_a_black_and_white_picture(
    prompts: list[str], prototype_folder: Path, photo: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The mask has the photo's size, is pure black and white, and lies where it was asked for."""
    monkeypatch.chdir(tmp_path)
    assert main(["prompt", str(photo), "--model", str(prototype_folder), *prompts, "--output", "mask.png"]) == 0
    with PillowImage.open("mask.png") as opened:
        mask = np.asarray(opened.convert("L"))
    assert mask.shape == (96, 128)
    assert set(np.unique(mask)) <= {0, 255}
    y, x = np.mgrid[:96, :128]
    disc = (y - 50) ** 2 + (x - 60) ** 2 < 30**2
    assert (mask[disc] > 0).mean() > 0.3  # The prototype's masks follow objects loosely.
    assert disc[mask > 0].mean() > 0.7
    assert f"{np.count_nonzero(mask)} pixels" in capsys.readouterr().out
    assert Path("overlay.png").exists() == ("--overlay" in prompts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ""),
        (["mask", "PHOTO"], "mask"),
        (["masks", "PHOTO", "--output", "x"], "--model"),
        (["masks", "PHOTO", "--model", "m", "--output", "x", "--points-per-side", "0"], "--points-per-side"),
        (["masks", "PHOTO", "--model", "m", "--output", "x", "--points-per-sid", "8"], "--points-per-sid"),
        (["masks", "PHOTO", "--model", "m", "--output", "x", "--point-grids", "none.json"], "--point-grids"),
        (["masks", "PHOTO", "--model", "m", "--output", "x", "--preset", "sa2b"], "--preset"),
        (["masks", "PHOTO", "--model", "m", "--output", "x", "--threads", "0"], "--threads"),
        (["prompt", "PHOTO", "--model", "m", "--output", "x"], "--point"),
        (["prompt", "PHOTO", "--model", "m", "--output", "x", "--point", "5"], "'5' is not x,y"),
        (["prompt", "PHOTO", "--model", "m", "--output", "x", "--point", "5,nan"], "'5,nan' is not x,y"),
        (["prompt", "PHOTO", "--model", "m", "--output", "x", "--box", "9,9,5,5"], "--box"),
        (["prompt", "PHOTO", "--model", "m", "--output", "x", "--point", "129,5"], "128 x 96"),
        (["convert", "--model-type", "vit_b", "--output", "x"], "--checkpoint"),
    ],
)
def test_misuse_is_exit_2(
    arguments: list[str], words: str, prototype_folder: Path, photo: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """One sentence names what is wrong, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    places = {"PHOTO": str(photo), "m": str(prototype_folder)}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    assert words in capsys.readouterr().err
    assert not Path("x").exists()


def test_photo_and_mask_may_lie_in_a_bucket(s3: Any, endpoint: str, prototype_folder: Path, photo: Path, capsys: Any) -> None:
    """With the store's options as flags, everywhere or for one place; an option that is malformed is exit 2."""
    s3.upload_file(str(photo), "photos", "in/a photo.jpg")
    use_store_options({})
    options = [f"endpoint_url={endpoint}", f"photo.key={S3_KEYS['key']}", f"photo.secret={S3_KEYS['secret']}"]
    options += [f"output.{name}={value}" for name, value in S3_KEYS.items()]
    command = ["prompt", "s3://photos/in/a photo.jpg", "--model", str(prototype_folder), "--point", "20,20"]
    command += ["--output", "s3://labels/mask.png"]
    assert main([*command, *(text for option in options for text in ("--storage-options", option))]) == 0
    assert s3.get_object(Bucket="labels", Key="mask.png")["Body"].read()[:4] == b"\x89PNG"
    assert main([*command, "--storage-options", "pohto.key=secret-value"]) == 2
    assert "secret-value" not in capsys.readouterr().err


def test_what_is_missing_or_broken_is_exit_1(prototype_folder: Path, photo: Path, tmp_path: Path, capsys: Any) -> None:
    """No photo, one that is none, a folder to write into that is a file: each sentence names it. No such model is exit 2."""
    broken = tmp_path / "broken.jpg"
    broken.write_text("<html>")
    model, output = str(prototype_folder), str(tmp_path / "masks.json")
    for photo_name, model_name, output_name, words in [
        ("no/such.jpg", model, output, "no/such.jpg"),
        (str(broken), model, output, "broken.jpg"),
        (str(photo), model, str(photo / "masks.json"), "masks.json"),
    ]:
        arguments = ["masks", photo_name, "--model", model_name, "--output", output_name, "--points-per-side", "1"]
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert main(["masks", str(photo), "--model", "no/such/model", "--output", output]) == 2
    assert "no/such/model" in capsys.readouterr().err


def test_a_command_that_is_terminated_ends_as_an_interrupted_one(capsys: Any) -> None:
    """What it has begun is cleaned up, and the exit code is the shell's for it."""
    app, steps = App(name="x", suppress_keyboard_interrupt=False), list[str]()

    @app.command
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            steps.append("cleaned up")

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(app, ["work"]) == 143
    assert (steps, signal.getsignal(signal.SIGTERM)) == (["cleaned up"], before)
    assert "terminated" in capsys.readouterr().err


def test_help_teaches_and_is_quick() -> None:
    """Examples that can be copied, every mask option, and no engine loaded for it."""
    for command, example in [
        ("convert", "python -m labeler convert --model-type vit_b"),
        ("masks", "python -m labeler masks photo.jpg --model vit_b"),
        ("prompt", "python -m labeler prompt photo.jpg --model vit_b --point 500,375"),
    ]:
        answer = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "labeler", command, "--help"], capture_output=True, text=True, check=True
        )
        assert example in " ".join(answer.stdout.split())
        assert ("--stability-score-offset" in answer.stdout) == (command == "masks")
        loaded = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
        assert not loaded & {"openvino", "numba", "torch", "pyarrow"}


def test_a_name_that_is_no_text_is_printed_all_the_same(photo: Path, tmp_path: Path) -> None:
    """What went well must not end in a traceback because of its name."""
    output = os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.json")
    command = [sys.executable, "-m", "labeler", "masks", photo, "--model", "tiny", "--points-per-side", "2", "--output", output]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9.json" in done.stdout
    assert Path(output).exists()


def test_names_are_utf_8_or_nothing_is_done(photo: Path, tmp_path: Path) -> None:
    """In another encoding they would be written wrongly into exports, without a word."""
    code = (
        "import sys; sys.getfilesystemencoding = lambda: 'iso8859-1'\n"
        "from labeler.cli import app; from labeler.flags import run_command; sys.exit(run_command(app))"
    )
    done = subprocess.run([sys.executable, "-c", code, "masks", photo], capture_output=True, text=True)
    assert (done.returncode, "PYTHONUTF8=1" in done.stderr) == (2, True), done.stderr


def test_a_user_without_a_home_needs_one_only_for_downloads(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a container's user is but a number."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    for name in ("SAM_LABELER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert find_model("tiny").is_dir()
    with pytest.raises(ModelError, match="set SAM_LABELER_CACHE"):
        find_model("vit_b")
