"""A checkpoint becomes a model folder, or a sentence that says why not."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra convert")

from labeler.architecture import VitEncoder  # noqa: E402
from labeler.cli import main  # noqa: E402
from labeler.convert import (  # noqa: E402
    POSITIONS,
    _hold_folder,
    _publish,
    build_sam,
    convert_checkpoint,
    load_checkpoint,
    round_weights,
)
from labeler.errors import ModelError, OptionsError  # noqa: E402

ARCHITECTURE = Path(__file__).parents[1] / "data" / "prototype" / "arch.json"


def test_half_precision_checkpoints_are_read_as_float32(prototype_checkpoint: Path) -> None:
    """An f16 state dict loads; its numbers are unchanged."""
    stored = torch.load(prototype_checkpoint, weights_only=True)
    state = load_checkpoint(prototype_checkpoint)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(torch.equal(tensor.half(), stored[name]) for name, tensor in state.items())


class _Foreign:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["FOREIGN_FOLDER"],)


def write_bad_checkpoint(path: Path, kind: str, *, good: Path) -> None:
    state = torch.load(good, weights_only=True)
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:100_000])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ec2df6\n")
    elif kind == "code":
        path.write_bytes(pickle.dumps(_Foreign()))
    elif kind == "list":
        torch.save(list(state.values()), path)
    elif kind == "module":
        torch.save({"model": torch.nn.Linear(2, 2)}, path)
    elif kind == "training":
        torch.save({"model": state, "epoch": 3}, path)


PYRAMID = {"encoder": "pyramid", "image_size": 64, "prompt_embed_dim": 32, "decoder_num_heads": 4}

BAD_CHECKPOINTS = {
    "missing": "there is no checkpoint file",
    "truncated": r"100000 bytes\) can't be read as a PyTorch checkpoint",
    "empty": "can't be read as a PyTorch checkpoint",
    "text": "can't be read as a PyTorch checkpoint",
    "code": "can't be read as a PyTorch checkpoint",
    "list": "holds a list, not a state dict",
    "module": r"holds Python objects \(torch.nn.modules.linear.Linear\), .* save only the model's state_dict",
    "training": "not tensors are model, epoch; save only the model's state_dict",
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_files_that_are_no_checkpoint_say_so(
    kind: str, prototype_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncated, foreign and harmful files end as ModelError with the reason, and run no code."""
    monkeypatch.setenv("FOREIGN_FOLDER", str(tmp_path / "made by the checkpoint"))
    path = tmp_path / "checkpoint.pth"
    write_bad_checkpoint(path, kind, good=prototype_checkpoint)
    with pytest.raises(ModelError, match=BAD_CHECKPOINTS[kind]):
        load_checkpoint(path)
    assert not (tmp_path / "made by the checkpoint").exists()


def test_state_dict_that_does_not_fit_names_what_differs(prototype_checkpoint: Path, tmp_path: Path) -> None:
    """Missing, unexpected and reshaped tensors are counted and the first of each named; an older model folder stays."""
    state = torch.load(prototype_checkpoint, weights_only=True)
    for block in range(4):
        del state[f"image_encoder.blocks.{block}.norm1.weight"]
    state["image_encoder.extra"] = torch.zeros(1)
    state["image_encoder.pos_embed"] = torch.zeros(1, 8, 8, 240)
    torch.save(state, tmp_path / "other.pth")
    output = tmp_path / "model"
    output.mkdir()
    (output / "model.json").write_text("an older model")
    with pytest.raises(ModelError) as caught:
        convert_checkpoint(tmp_path / "other.pth", output=output, model_type=str(ARCHITECTURE))
    message = str(caught.value)
    assert "does not fit" in message
    assert "4 missing: image_encoder.blocks.0.norm1.weight" in message
    assert "and 1 more" in message
    assert "1 unexpected: image_encoder.extra" in message
    assert "image_encoder.pos_embed (1, 8, 8, 240) instead of (1, 16, 16, 240)" in message
    assert (output / "model.json").read_text() == "an older model"


def test_positions_and_counts_are_never_rounded() -> None:
    """f16 rounds weights to the nearest; numbers that place points keep all their bits, and so do counts, too large for f16."""
    third = torch.tensor([1 / 3])
    rounded = round_weights({"weight": third, POSITIONS: third, "batches": torch.tensor(125_001)}, weights="f16")
    assert rounded["batches"] == 125_001
    assert rounded["weight"] == third.half()
    assert rounded["weight"] != third
    assert rounded[POSITIONS] == third
    assert POSITIONS in build_sam(ARCHITECTURE).state_dict()


def test_weights_that_f16_can_not_hold_are_refused() -> None:
    """Overflow and numbers that are not finite are errors that name the tensors; f32 takes the large ones."""
    with pytest.raises(ModelError, match="too large for f16: big; use --weights f32"):
        round_weights({"big": torch.tensor([1e6]), "small": torch.ones(1)}, weights="f16")
    assert round_weights({"big": torch.tensor([1e6])}, weights="f32")["big"] == 1e6
    with pytest.raises(ModelError, match="not finite: bad"):
        round_weights({"bad": torch.tensor([float("nan")])}, weights="f32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 16, "depth": 2}, "patch: unknown key; depth: unknown key"),
        ({"image_size": 250}, "image_size 250 must be a multiple of patch_size"),
        ({"patch_size": 2}, "patch_size 2 is less than 4"),
        ({"encoder_global_attn_indexes": [6]}, r"encoder_global_attn_indexes \[6\] name no block"),
        ({"encoder": "resnet"}, "encoder 'resnet' is not one of vit, pyramid"),
        ({"encoder": "pyramid"}, "encoder pyramid does not know encoder_depth"),
        (PYRAMID | {"encoder_dims": [8, 8, 8], "encoder_depths": [1, 1, 1]}, "encoder pyramid can't be built: "),
        (PYRAMID | {"encoder_attention_heads": 5}, "encoder pyramid can't be built: "),
        (PYRAMID | {"encoder_filter_heads": 5}, "encoder pyramid can't be built: "),
        ({"decoder_num_heads": 5}, "prompt_embed_dim 96 must be a multiple of twice decoder_num_heads"),
    ],
)
def test_architectures_that_can_not_be_built_say_why(change: dict[str, Any], message: str) -> None:
    """Unknown keys are errors that name them, and so are numbers that don't fit each other."""
    known = json.loads(ARCHITECTURE.read_text())
    if change.items() > PYRAMID.items():
        known = {key: value for key, value in known.items() if key not in VitEncoder.model_fields}
    with pytest.raises(OptionsError, match=message):
        build_sam({**known, **change})


@pytest.mark.parametrize("text", [None, "{not JSON", "[]", "{}"])
def test_model_types_that_are_no_architecture_say_so(text: str | None, tmp_path: Path) -> None:
    """A name that is neither official nor a JSON file with the keys is an error that names the option."""
    path = tmp_path / "vit_x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionsError, match=r"--model-type: .*vit_x"):
        build_sam(path)


def test_unknown_defaults_are_refused_before_any_work(tmp_path: Path) -> None:
    """A default for an option that does not exist never reaches model.json."""
    with pytest.raises(OptionsError, match="pred-iou-threshold"):
        convert_checkpoint(tmp_path, output=tmp_path, model_type="vit_b", defaults={"pred_iou_threshold": 0.5})


def test_without_torch_the_extra_is_named() -> None:
    """Importing the conversion without its libraries tells which extra to install; the rest of the package works."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import labeler.models\n"
        "try:\n    import labeler.convert\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("ModelError converting a checkpoint needs torch")
    assert 'pip install ".[convert]"' in answer.stdout


def test_official_types_have_the_references_tensors() -> None:
    """vit_b is built with exactly the names and shapes of segment-anything's own builder."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        reference = sam_model_registry["vit_b"]().state_dict()
    given = build_sam("vit_b").state_dict()
    assert {name: tensor.shape for name, tensor in given.items()} == {name: t.shape for name, t in reference.items()}


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    """ONNX files of a folder that never was a model of ours are somebody else's; those of an older model go with it."""
    for place, stays in (("theirs", True), ("ours", False)):
        work, output = tmp_path / place / "work", tmp_path / place / "output"
        work.mkdir(parents=True)
        output.mkdir()
        (work / "model.json").write_text("new")
        (output / "encoder.onnx").write_text("an export")
        if not stays:
            (output / "model.json").write_text("old")
        _publish(work, output, keep_onnx=False)
        assert (output / "encoder.onnx").exists() == stays
        assert (output / "model.json").read_text() == "new"


def test_one_conversion_at_a_time_and_no_leftovers(tmp_path: Path) -> None:
    """What a killed one left goes with the next; a second one beside it is refused with a sentence, and may come after."""
    (tmp_path / ".converting-killed").mkdir()
    (tmp_path / ".converting-killed" / "encoder.onnx").write_text("gigabytes")
    with _hold_folder(tmp_path):
        assert not list(tmp_path.iterdir())
        with pytest.raises(ModelError, match="another conversion is writing"), _hold_folder(tmp_path):
            pass
    with _hold_folder(tmp_path):
        pass


@pytest.mark.parametrize("flag", ["--output", "--checkpoint", "--calibration"])
def test_a_conversion_works_on_this_machines_disk(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A URL is exit 2 before any work, not a local folder "s3:"."""
    monkeypatch.chdir(tmp_path)
    flags = {"--model-type": "vit_b", "--checkpoint": "x.pth", "--output": "x", "--calibration": "x", "--precision": "int8"}
    assert main(["convert", *itertools.chain(*(flags | {flag: "s3://bucket/x"}).items())]) == 2
    assert f"{flag} s3://bucket/x: a conversion works on this machine's disk" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
