"""Fixtures that several test files share."""

from pathlib import Path
from typing import Any

import pytest

from labeler.errors import ModelError

PROTOTYPE = Path(__file__).parent / "data" / "prototype"


@pytest.fixture(scope="session")
def prototype_checkpoint() -> Path:
    """A small trained SAM (f16 state dict); ``arch.json`` beside it describes it."""
    return PROTOTYPE / "state_f16.pth"


@pytest.fixture(scope="session")
def prototype_folder(prototype_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prototype as a model folder, with its ONNX files; converted once a session."""
    try:
        from labeler import convert
    except ModelError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("prototype")
    convert.convert_checkpoint(prototype_checkpoint, output=folder, model_type=str(PROTOTYPE / "arch.json"), keep_onnx=True)
    return folder


@pytest.fixture(scope="session")
def prototype_sam(prototype_checkpoint: Path) -> Any:
    """The prototype in PyTorch, with the rounded weights its model folder holds: the oracle."""
    convert = pytest.importorskip("labeler.convert", reason="needs the extra convert", exc_type=Exception)
    sam = convert.build_sam(PROTOTYPE / "arch.json")
    sam.load_state_dict(convert.load_checkpoint(prototype_checkpoint))
    return sam
