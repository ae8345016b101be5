"""What stands in a model folder: ``model.json``, the graphs it names, and whether they are whole.

Must not know where the folder came from, how it was made, or how its graphs are run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from labeler.errors import ModelError, OptionsError
from labeler.options import resolve_mask_options

FORMAT_VERSION: Literal[1] = 1
MODEL_JSON = "model.json"

Weights = Literal["f16", "f32"]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # Never a path: a folder may come from a store.


class Quantization(BaseModel):
    """How an encoder became one of integers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    encoder: Literal["int8"]
    """What its products compute in, at every ``--precision``."""
    num_images: PositiveInt
    """On how many photographs the ranges were measured."""
    images_sha256: _Sha256
    """Of those photographs' files."""


class ModelInfo(BaseModel):
    """The content of ``model.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[1] = FORMAT_VERSION
    """Raised when a folder's meaning changes."""
    model_type: str
    """vit_b, vit_l, vit_h, vit_t, or the name of the JSON file that described the architecture."""
    architecture: Mapping[str, Any]
    """What ``--model-type`` takes as a JSON file; builds the same SAM again."""
    image_size: PositiveInt
    """S, the side of the encoder's square input in pixels."""
    embedding_shape: tuple[Literal[1], PositiveInt, PositiveInt, PositiveInt]
    """1, C, h, w of the encoder's output; low-resolution logits are 4h x 4w."""
    mask_threshold: FiniteFloat
    """A pixel whose logit is strictly greater belongs to the mask."""
    defaults: Mapping[str, Any]
    """Mask options that this model wants other than SAM's, by name."""
    prompts_per_call: PositiveInt
    """How many prompts the predictor is compiled for."""
    weights: Weights
    """Precision of the weights on disk; what is computed in is ``--precision``."""
    quantization: Quantization | None = None
    """None, and not in the file, where the encoder computes in floats as the predictor does."""
    checkpoint_sha256: _Sha256
    """Of the file the folder was converted from."""
    files: Mapping[_FileName, _Sha256]
    """Every file the model needs, by its name in the folder."""
    tools: Mapping[str, str]
    """The libraries that made it, and their versions."""

    def to_json(self) -> str:
        """The text of ``model.json``: equal content gives equal bytes."""
        left_out = {"quantization"} if self.quantization is None else None
        return json.dumps(self.model_dump(mode="json", exclude=left_out), indent=2, sort_keys=True) + "\n"


def parse_model_info(text: str | bytes, *, source: str) -> ModelInfo:
    """``model.json``'s text, which came from ``source``.

    Raises:
        ModelError: it is no JSON, of another format version, or lacks something; says what.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{source} is not JSON: {error}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ModelError(f"{source} has format_version {version}, but this version reads {FORMAT_VERSION}: convert it again")
    try:
        info = ModelInfo.model_validate(record)
        resolve_mask_options(model_defaults=info.defaults)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ModelError(f"{source} does not describe a model: {faults}") from error
    except OptionsError as error:
        raise ModelError(f"{source} has defaults that are none, {error}: was it made by a newer version?") from error
    return info


def read_model_info(folder: Path) -> ModelInfo:
    """What a folder's ``model.json`` says, with every file it names in place; contents are ``check_model``'s business.

    Raises:
        ModelError: no such folder, no ``model.json`` in it, a malformed one, or files that lack.
    """
    path = folder / MODEL_JSON
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise ModelError(f"there is no model folder {folder}") from error
        raise ModelError(f"{folder} has no {MODEL_JSON}: not a model folder, or its conversion did not finish") from error
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror}") from error
    info = parse_model_info(text, source=str(path))
    missing = [name for name in sorted(info.files) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"model folder {folder} lacks {', '.join(missing)}")
    return info


def check_model(folder: Path) -> ModelInfo:
    """Read every file of a model folder and compare it with ``model.json``.

    Raises:
        ModelError: what ``read_model_info`` raises, or files whose sha256 differs, named.
    """
    info = read_model_info(folder)
    changed = [name for name, sha256 in sorted(info.files.items()) if hash_file(folder / name) != sha256]
    if changed:
        raise ModelError(f"model folder {folder} is damaged: {', '.join(changed)} differ from what {MODEL_JSON} says")
    return info


def model_sha256(info: ModelInfo) -> str:
    """The sha256 (hex) that names a model's masks: its graphs and what is applied to their outputs.

    Default thresholds are left out (a run records the resolved options), so is the number of prompts a call.
    """
    record = {"files": dict(info.files), "image_size": info.image_size, "mask_threshold": info.mask_threshold}
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """The sha256 (hex) of a file, read in pieces.

    Raises:
        ModelError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror}") from error
