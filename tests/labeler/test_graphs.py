"""The graphs of a model folder against their oracle: segment-anything's modules in PyTorch, with the same rounded weights."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from labeler import graphs  # noqa: E402
from labeler.call_size import CALL_SIZES  # noqa: E402
from labeler.convert import (  # noqa: E402
    build_sam,
    convert_checkpoint,
    load_sam,
)
from labeler.engine import Engine  # noqa: E402
from labeler.model_folder import check_model, hash_file, read_model_info  # noqa: E402

ARCHITECTURE = Path(__file__).parents[1] / "data" / "prototype" / "arch.json"

SMALL: dict[str, Any] = {  # Nothing here is a power of two, nor equal to anything else.
    "image_size": 120,
    "patch_size": 12,
    "encoder_embed_dim": 36,
    "encoder_depth": 2,
    "encoder_num_heads": 3,
    "encoder_mlp_ratio": 2.5,
    "encoder_global_attn_indexes": [1],
    "window_size": 4,
    "prompt_embed_dim": 24,
    "mask_in_chans": 8,
    "decoder_depth": 1,
    "decoder_mlp_dim": 20,
    "decoder_num_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 17,
}

PROMPTS = {
    "one point": (3, [1, -1], False),
    "negative points": (1, [1, 0, 0, -1], False),
    "box": (5, [2, 3], False),
    "points and box": (2, [0, 1, 2, 3], False),
    "mask and point": (2, [1, -1], True),
    "mask and box": (4, [2, 3], True),
    "mask alone": (2, [-1], True),
}
"""Number of prompts, labels of each, with a mask."""


@pytest.fixture(scope="module")
def sam(prototype_checkpoint: Path) -> Any:
    """The prototype in PyTorch, with the weights its f16 folder holds."""
    return load_sam(prototype_checkpoint, model_type=ARCHITECTURE, weights="f16")


@pytest.fixture(scope="module")
def small_sam() -> Any:
    """A SAM of odd sizes whose every weight is random, relative positions too."""
    return randomize(build_sam(SMALL))


@pytest.fixture(scope="module")
def small_folder(small_sam: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model folder with f32 weights, made over an older one."""
    folder = tmp_path_factory.mktemp("small")
    torch.save(small_sam.state_dict(), folder / "small.pth")
    (folder / "small.json").write_text(json.dumps(SMALL))
    output = folder / "deep" / "model"
    output.mkdir(parents=True)
    (output / "encoder.onnx").touch()
    (output / "model.json").write_text("an older model")
    convert_checkpoint(
        folder / "small.pth",
        output=output,
        model_type=str(folder / "small.json"),
        weights="f32",
        defaults={"pred_iou_thresh": 0.5},
    )
    return output


def randomize(model: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    state = {name: torch.randn(w.shape, generator=generator) * 0.3 for name, w in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def make_inputs(model: Any, kind: str) -> dict[str, np.ndarray]:
    """Arrays as a caller of the predictor gives them."""
    count, labels, with_mask = PROMPTS[kind]
    random = np.random.default_rng(len(kind))
    encoder = model.prompt_encoder
    inputs = {
        "features": random.normal(size=(1, encoder.embed_dim, *encoder.image_embedding_size)).astype(np.float32),
        "points": (random.random((count, len(labels), 2)) * encoder.input_image_size[0]).astype(np.float32),
        "labels": np.tile(np.array(labels, np.int32), (count, 1)),
    }
    inputs["points"][inputs["labels"] == -1] = 0
    if with_mask:
        inputs["mask_logits"] = random.normal(scale=4, size=(count, 1, *encoder.mask_input_size)).astype(np.float32)
    return inputs


def predict_as_sam(model: Any, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The reference's own way, in which the padding point and the box are its business."""
    labels = inputs["labels"]
    points, given = torch.from_numpy(inputs["points"]), torch.from_numpy(labels)
    num_points = int(((labels[0] == 0) | (labels[0] == 1)).sum())
    boxes = points[:, -2:].reshape(-1, 4) if (labels[0] == 2).any() else None
    masks = torch.from_numpy(inputs["mask_logits"]) if "mask_logits" in inputs else None
    clicks = (points[:, :num_points], given[:, :num_points]) if num_points or boxes is None else None
    with torch.no_grad():
        sparse, dense = model.prompt_encoder(points=clicks, boxes=boxes, masks=masks)
        logits, iou = model.mask_decoder.predict_masks(
            image_embeddings=torch.from_numpy(inputs["features"]),
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
    return logits.numpy(), iou.numpy()


def encode_as_sam(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels, and their features."""
    side = model.image_encoder.img_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        return pixels, model.image_encoder(torch.from_numpy(pixels)).numpy()


def run_openvino(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Exactly as the engine runs it: static shapes, f32."""
    core = ov.Core()
    model = core.read_model(path)
    model.reshape({name: ov.PartialShape(list(array.shape)) for name, array in inputs.items()})
    answer = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
    return {port.any_name: np.array(value) for port, value in answer.items()}


def run_engine(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All the graphs after the encoder, as they are used."""
    answers = Engine(folder, read_model_info(folder), threads=1).predict(**inputs)
    return {"logits": answers.logits, "iou": answers.predicted_iou}


def run_onnx(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same from the kept ONNX files; masks one prompt a time, and so is all else where there is a mask prompt."""

    def run(graph: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(folder / f"{graph}.onnx")
        names = [port.name for port in session.get_outputs()]
        return dict(zip(names, session.run(names, arrays), strict=True))

    if "mask_logits" in inputs:
        rows = [
            {name: a if name == "features" else a[i : i + 1] for name, a in inputs.items()}
            for i in range(len(inputs["labels"]))
        ]
        sides = [run("image_side_mask", {name: row.pop(name) for name in ("features", "mask_logits")}) for row in rows]
    else:
        rows = [{name: inputs[name] for name in ("points", "labels")}]
        sides = [run("image_side", {"features": inputs["features"]})]
    states = [run("prompts", side | row) for side, row in zip(sides, rows, strict=True)]
    state = {name: np.concatenate([one[name] for one in states]) for name in states[0]}
    logits = [
        run("masks", {name: state[name][i : i + 1] for name in ("mask_tokens", "seen_image")})["logits"]
        for i in range(len(inputs["labels"]))
    ]
    return {"logits": np.concatenate(logits)} | run("iou_head", {"iou_token": state["iou_token"]})


def assert_close(given: np.ndarray, expected: np.ndarray) -> None:
    """Differences below 1e-4 of the values' own spread."""
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("run", [run_onnx, run_engine])
@pytest.mark.parametrize("kind", PROMPTS)
def test_predictors_give_pytorchs_numbers(prototype_folder: Path, sam: Any, kind: str, run: Any) -> None:
    """The kept ONNX files and the folder's graphs answer every kind of prompt, any number of them, as SAM's own modules do."""
    inputs = make_inputs(sam, kind)
    logits, iou = predict_as_sam(sam, inputs)
    given = run(prototype_folder, inputs)
    assert_close(given["logits"], logits)
    np.testing.assert_allclose(given["iou"], iou, atol=1e-5)


def test_encoder_gives_pytorchs_numbers(prototype_folder: Path, sam: Any) -> None:
    """The encoder agrees with PyTorch in onnxruntime and in OpenVINO."""
    pixels, features = encode_as_sam(sam)
    session = onnxruntime.InferenceSession(prototype_folder / "encoder.onnx")
    assert_close(session.run(["features"], {"pixels": pixels})[0], features)
    assert_close(run_openvino(prototype_folder / "encoder.xml", {"pixels": pixels})["features"], features)


def test_onnx_files_are_valid_and_hold_no_path_of_this_machine(prototype_folder: Path) -> None:
    """onnx's checker accepts the kept files; they don't tell where they were made."""
    for graph in graphs.GRAPHS:
        path = prototype_folder / f"{graph}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        assert b"site-packages" not in path.read_bytes()


def test_number_of_prompts_and_points_is_open_in_the_file(prototype_folder: Path) -> None:
    """One file serves every number of prompts and points; its other sides are fixed, in the agreed types."""
    model = ov.Core().read_model(prototype_folder / "prompts.xml")
    shapes = {port.any_name: (str(port.partial_shape), port.element_type.get_type_name()) for port in model.inputs}
    assert shapes == {
        "image": ("[1,256,96]", "f32"),
        "first_keys": ("[4,12,256]", "f32"),
        "first_values": ("[4,256,12]", "f32"),
        "first_queries": ("[4,12,256]", "f32"),
        "points": ("[?,?,2]", "f32"),
        "labels": ("[?,?]", "i32"),
    }
    assert [port.any_name for port in model.outputs] == ["iou_token", "mask_tokens", "seen_image"]


def read_constants(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Every f32 value a graph computes with, by name, and how many of them are stored as f16."""
    values, num_f16 = {}, 0
    for node in ov.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32:
            values[node.get_friendly_name()] = np.array(node.data)
        elif node.get_type_name() == "Convert" and "decompression_0" in node.get_rt_info():
            values[node.get_friendly_name()] = np.array(node.input_value(0).get_node().data).astype(np.float32)
            num_f16 += 1
    return values, num_f16


@pytest.mark.parametrize("graph", graphs.GRAPHS)
def test_compression_loses_nothing(prototype_folder: Path, tmp_path: Path, graph: str) -> None:
    """Stored as f16 or not, the graph computes with the very same numbers; most of them are stored as f16."""
    graphs.onnx_to_openvino(prototype_folder / f"{graph}.onnx", xml_path=tmp_path / f"{graph}.xml", compress=False)
    plain, _ = read_constants(tmp_path / f"{graph}.xml")
    compressed, num_f16 = read_constants(prototype_folder / f"{graph}.xml")
    assert plain.keys() == compressed.keys()
    assert all(np.array_equal(plain[name], compressed[name]) for name in plain)
    assert num_f16 > 0.6 * len(plain)
    # The dense positions were computed from rounded weights; f16 would round them again.
    if graph not in ("encoder", "iou_head"):
        assert num_f16 < len(plain)


def test_rounded_weights_are_those_in_the_folder(prototype_folder: Path, sam: Any) -> None:
    """What parity is measured with in PyTorch is bit by bit what the folder holds."""
    constants, _ = read_constants(prototype_folder / "encoder.xml")
    weight = sam.image_encoder.patch_embed.proj.weight.detach().numpy()
    assert any(value.shape == weight.shape and np.array_equal(value, weight) for value in constants.values())


def test_the_same_onnx_gives_the_same_bytes(prototype_folder: Path, tmp_path: Path) -> None:
    """Converted again, later in another process, the graph is the same file."""
    path = tmp_path / "prompts.xml"
    graphs.onnx_to_openvino(prototype_folder / "prompts.onnx", xml_path=path, compress=True)
    assert hash_file(path) == hash_file(prototype_folder / "prompts.xml")
    assert hash_file(path.with_suffix(".bin")) == hash_file(prototype_folder / "prompts.bin")


def test_the_same_weights_give_the_same_onnx(sam: Any, prototype_folder: Path, tmp_path: Path) -> None:
    """The exporter writes the same bytes again."""
    path = graphs.export_onnx(sam, graph="encoder", folder=tmp_path)
    assert hash_file(path) == hash_file(prototype_folder / "encoder.onnx")


def test_model_json_describes_the_folder(prototype_folder: Path, prototype_checkpoint: Path) -> None:
    """model.json holds what the contract lists, its hashes hold, and nothing of the work is left behind."""
    info = check_model(prototype_folder)
    assert (info.model_type, info.image_size, info.embedding_shape) == ("arch", 256, (1, 96, 16, 16))
    assert (info.mask_threshold, info.weights, info.quantization, info.defaults) == (0.0, "f16", None, {})
    assert info.prompts_per_call in CALL_SIZES
    assert info.checkpoint_sha256 == hash_file(prototype_checkpoint)
    assert set(info.files) == {f"{graph}.{kind}" for graph in graphs.GRAPHS for kind in ("xml", "bin")}
    assert {"torch", "onnx", "openvino", "segment-anything"} <= info.tools.keys()
    assert {path.name for path in prototype_folder.iterdir()} == {
        "model.json",
        *info.files,
        *(f"{graph}.onnx" for graph in graphs.GRAPHS),
    }
    assert build_sam(info.architecture).image_encoder.img_size == 256


@pytest.mark.parametrize("kind", ["one point", "mask and box"])
def test_odd_sizes_convert_and_agree(small_sam: Any, small_folder: Path, kind: str) -> None:
    """Nothing depends on 1024, 16, 64 or 256: an odd architecture goes the same way."""
    inputs = make_inputs(small_sam, kind)
    logits, iou = predict_as_sam(small_sam, inputs)
    assert logits.shape[2:] == (40, 40)
    given = run_engine(small_folder, inputs)
    assert_close(given["logits"], logits)
    assert_close(given["iou"], iou)


def test_encoder_of_odd_sizes_agrees(small_sam: Any, small_folder: Path) -> None:
    """Windows that don't divide the embedding, relative positions and all."""
    pixels, features = encode_as_sam(small_sam)
    assert_close(run_openvino(small_folder / "encoder.xml", {"pixels": pixels})["features"], features)


def test_models_too_large_for_one_onnx_file_go_the_same_way(
    small_sam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights in a file of their own, as vit_h needs, ONNX stays valid and gives the same graph."""
    monkeypatch.setattr(graphs, "_EXTERNAL_DATA_BYTES", 0)
    pixels, features = encode_as_sam(small_sam)
    path = graphs.export_onnx(small_sam, graph="encoder", folder=tmp_path)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["encoder.onnx", "encoder.onnx.data"]
    assert_close(onnxruntime.InferenceSession(path).run(["features"], {"pixels": pixels})[0], features)
    graphs.onnx_to_openvino(path, xml_path=tmp_path / "encoder.xml", compress=True)
    constants, num_f16 = read_constants(tmp_path / "encoder.xml")
    weight = small_sam.image_encoder.patch_embed.proj.weight.detach().numpy()  # Not rounded: f16 can't hold it.
    assert any(value.shape == weight.shape and np.array_equal(value, weight) for value in constants.values())
    assert num_f16 < len(constants) / 2
    assert_close(run_openvino(tmp_path / "encoder.xml", {"pixels": pixels})["features"], features)


def test_named_encoders_agree(tmp_path: Path) -> None:
    """Encoders of labeler.encoders go the same way; the size of what they give is found, not assumed."""
    decoder = {name: SMALL[name] for name in SMALL if not name.startswith("encoder_") and "_size" not in name}
    sam = randomize(build_sam({**decoder, "encoder": "pyramid", "image_size": 96}))
    pixels, features = encode_as_sam(sam)
    assert sam.prompt_encoder.image_embedding_size == features.shape[2:]
    onnx_path = graphs.export_onnx(sam, graph="encoder", folder=tmp_path)
    graphs.onnx_to_openvino(onnx_path, xml_path=tmp_path / "encoder.xml", compress=False)
    assert_close(run_openvino(tmp_path / "encoder.xml", {"pixels": pixels})["features"], features)


def test_f32_weights_and_no_onnx_on_request(small_sam: Any, small_folder: Path) -> None:
    """--weights f32 stores every weight as it is; without --keep-onnx no ONNX file stays, older ones neither."""
    info = check_model(small_folder)
    assert (info.weights, info.model_type, info.defaults) == ("f32", "small", {"pred_iou_thresh": 0.5})
    assert {path.name for path in small_folder.iterdir()} == {"model.json", *info.files}
    constants, num_f16 = read_constants(small_folder / "encoder.xml")
    weight = small_sam.image_encoder.patch_embed.proj.weight.detach().numpy()
    assert any(value.shape == weight.shape and np.array_equal(value, weight) for value in constants.values())
    assert num_f16 == 0


def test_a_disk_that_is_full_is_said(prototype_folder: Path, tmp_path: Path) -> None:
    """Files that can't grow stand for a disk that is full: OpenVINO says of both no more than "iostream error"."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="is the disk full"):
            graphs.onnx_to_openvino(prototype_folder / "encoder.onnx", xml_path=tmp_path / "encoder.xml", compress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
