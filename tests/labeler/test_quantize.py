"""INT8 encoders: made of photographs, recorded in the folder, run like any other model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as coco_masks

from labeler.cli import main
from labeler.engine import Engine
from labeler.errors import ModelError, OptionsError
from labeler.generator import generate_masks
from labeler.images import decode_image
from labeler.model_folder import MODEL_JSON, check_model, hash_file, model_sha256, read_model_info
from labeler.options import resolve_mask_options
from labeler.predictor import Predictor

torch = pytest.importorskip("torch", reason="needs the extra convert")
quantize = pytest.importorskip("labeler.quantize", reason="needs the extra convert", exc_type=ModelError)
skimage_data = pytest.importorskip("skimage.data", reason="needs scikit-image")

SHIPPED = Path(skimage_data.__file__).parent
PHOTOS = ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "rocket.jpg")
UNSEEN = "coffee.png"

OPTIONS = {
    "points_per_side": 16,
    "pred_iou_thresh": 0.2,
    "stability_score_thresh": 0.2,
    "stability_score_offset": 0.3,
    "min_mask_region_area": 100,
}

TINY: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "encoder_embed_dim": 32,
    "encoder_depth": 1,
    "encoder_num_heads": 2,
    "encoder_mlp_ratio": 2,
    "encoder_global_attn_indexes": [0],
    "window_size": 2,
    "prompt_embed_dim": 32,
    "mask_in_chans": 8,
    "decoder_depth": 1,
    "decoder_mlp_dim": 32,
    "decoder_num_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of scikit-image's photographs, not all in one folder, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for number, name in enumerate(PHOTOS):
        shutil.copy(SHIPPED / name, (folder if number % 2 else folder / "below") / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def int8_folder(prototype_folder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prototype with its encoder quantized."""
    folder = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(prototype_folder, folder)
    info = read_model_info(folder)
    calibration = quantize.find_calibration(photos)
    quantize.quantize_encoder(folder / "encoder.xml", calibration=calibration, image_size=info.image_size, is_transformer=True)
    files = {name: hash_file(folder / name) for name in info.files}
    changed = info.model_copy(update={"quantization": calibration.describe(), "files": files})
    (folder / MODEL_JSON).write_text(changed.to_json())
    return folder


def find_masks(folder: Path) -> list[Any]:
    """Run lengths of the masks of a photograph the calibration did not see, computed in f32."""
    info = read_model_info(folder)
    predictor = Predictor(Engine(folder, info, threads=1), info)
    pixels = decode_image((SHIPPED / UNSEEN).read_bytes()).pixels
    found, _ = generate_masks(pixels, predictor=predictor, options=resolve_mask_options(OPTIONS))
    height, width = found.image_hw
    return [
        coco_masks.frPyObjects({"size": [height, width], "counts": found.runs(i).tolist()}, height, width)
        for i in range(len(found))
    ]


def test_an_int8_encoder_finds_mostly_the_same_masks(prototype_folder: Path, int8_folder: Path) -> None:
    """Of the masks that f32 finds, most are found again; it takes about half the bytes, and is another model."""
    expected, found = find_masks(prototype_folder), find_masks(int8_folder)
    assert len(expected) >= 8
    best = coco_masks.iou(found, expected, [0] * len(expected)).max(axis=0)
    assert np.median(best) > 0.9
    assert abs(len(found) - len(expected)) < 0.4 * len(expected)
    small, large = ((folder / "encoder.bin").stat().st_size for folder in (int8_folder, prototype_folder))
    assert small < 0.65 * large
    assert model_sha256(check_model(int8_folder)) != model_sha256(check_model(prototype_folder))


def test_products_compute_in_integers(int8_folder: Path) -> None:
    """What is compiled at f32 runs 8-bit matrix products, not floats that were rounded."""
    graph = ov.Core().compile_model(int8_folder / "encoder.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = [node.get_rt_info() for node in graph.get_runtime_model().get_ordered_ops()]
    products = [node["runtimePrecision"].astype(str) for node in nodes if node["layerType"].astype(str) == "FullyConnected"]
    assert np.mean([precision in ("u8", "i8") for precision in products]) > 0.6


def test_convert_makes_such_a_folder(tmp_path: Path, photos: Path, capsys: Any) -> None:
    """One command: calibrated, recorded in model.json, said with its cost, and run at f32."""
    from labeler.convert import build_sam

    torch.save(build_sam(TINY).state_dict(), tmp_path / "tiny.pth")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    command = ["convert", "--model-type", str(tmp_path / "tiny.json"), "--checkpoint", str(tmp_path / "tiny.pth")]
    command += ["--output", str(tmp_path / "model"), "--prompts-per-call", "3"]
    assert main([*command, "--precision", "int8", "--calibration", str(photos)]) == 0
    info = check_model(tmp_path / "model")
    assert info.quantization == quantize.find_calibration(photos).describe()
    assert info.quantization.num_images == len(PHOTOS)
    assert info.prompts_per_call == 3
    assert "nncf" in info.tools
    said = capsys.readouterr().out
    assert f"INT8, calibrated with {len(PHOTOS)} photos" in said
    assert "of the masks were found again" in said
    engine = Engine(tmp_path / "model", info, threads=1)
    assert np.isfinite(engine.encode(np.zeros((1, 3, 64, 64), np.float32))).all()


def test_calibration_does_not_swallow_archives(tmp_path: Path) -> None:
    """A file of a terabyte is passed over by its size, hidden ones by their names; what to do with archives is said."""
    with (tmp_path / "shard-0.tar").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OptionsError, match=r"images in archives .* have to be taken out"):
        quantize.find_calibration(tmp_path)
    (tmp_path / "._photo").write_bytes(b"x")
    PillowImage.new("RGB", (40, 30)).save(tmp_path / "photo", "PNG")
    assert quantize.find_calibration(tmp_path).paths == (tmp_path / "photo",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "int8"], "go together"),
        (["--calibration", "photos"], "go together"),
        (["--precision", "int8", "--calibration", "nowhere"], "there is no folder nowhere"),
        (["--precision", "int8", "--calibration", "."], "none of the 1 files in . is an image"),
        (["--prompts-per-call", "0"], "prompts-per-call"),
    ],
)
def test_calibration_that_can_not_be_is_refused_before_any_work(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Exit 2 and a sentence; the checkpoint is not even looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    command = ["convert", "--model-type", "vit_b", "--checkpoint", "none.pth", "--output", "model"]
    assert main([*command, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_calibration_is_spread_over_a_large_folder(tmp_path: Path) -> None:
    """Of many files some are taken, from the first to the last; the same bytes have the same hash, others another."""
    content = (SHIPPED / "color.png").read_bytes()
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(content if number % 3 else b"no image")
    calibration = quantize.find_calibration(tmp_path)
    numbers = [int(path.stem) for path in calibration.paths]
    assert len(numbers) == quantize.MAX_IMAGES
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 3
    assert numbers[-1] > 36
    assert quantize.find_calibration(tmp_path) == calibration
    calibration.paths[0].write_bytes((SHIPPED / "cell.png").read_bytes())
    assert quantize.find_calibration(tmp_path).sha256 != calibration.sha256


def test_other_files_beside_the_photos_cost_none_of_them(tmp_path: Path) -> None:
    """A data set's annotations outnumber its images; files that say nothing by their names are looked into."""
    photo = (SHIPPED / "cell.png").read_bytes()
    for number in range(200):
        (tmp_path / f"annotation-{number}.xml").write_text("<a/>")
    for number in range(18):
        (tmp_path / f"image-{number:02d}.png").write_bytes(photo if number % 5 else b"broken")
    assert len(quantize.find_calibration(tmp_path).paths) == 14
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "photo").write_bytes(photo)
    assert len(quantize.find_calibration(tmp_path / "bare").paths) == 1


def test_a_graph_nncf_can_not_read_is_a_model_error(tmp_path: Path, photos: Path) -> None:
    """It names the file, not a library's class."""
    (tmp_path / "encoder.xml").write_text("<net>")
    with pytest.raises(ModelError, match=r"encoder\.xml"):
        quantize.quantize_encoder(
            tmp_path / "encoder.xml", calibration=quantize.find_calibration(photos), image_size=64, is_transformer=False
        )
