"""What a SAM is built like: one of those with a published checkpoint, or another one described by a JSON file.

Must not know torch, weights or graphs: it is what ``model.json`` records and what ``labeler.convert`` builds from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator

from labeler.errors import OptionsError


def _check_divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    if value % divisor:
        what = divisor_name if divisor_name.isdigit() else f"{divisor_name} ({divisor})"
        raise ValueError(f"{name} {value} must be a multiple of {what}")


class VitEncoder(BaseModel):
    """The keys of segment-anything's own image encoder, ``"encoder": "vit"``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    patch_size: PositiveInt
    encoder_embed_dim: PositiveInt
    encoder_depth: PositiveInt
    encoder_num_heads: PositiveInt
    encoder_mlp_ratio: PositiveFloat
    encoder_global_attn_indexes: tuple[int, ...]
    window_size: PositiveInt

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        _check_divides("encoder_num_heads", self.encoder_num_heads, "encoder_embed_dim", self.encoder_embed_dim)
        outside = [i for i in self.encoder_global_attn_indexes if not 0 <= i < self.encoder_depth]
        if outside:
            raise ValueError(f"encoder_global_attn_indexes {outside} name no block of encoder_depth {self.encoder_depth}")
        return self


class Architecture(BaseModel):
    """Everything needed to build a SAM without its weights.

    The keys that are not named here belong to the encoder: those of ``VitEncoder``, or for another ``encoder`` whatever
    its constructor in ``labeler.encoders`` takes.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    encoder: str = "vit"
    image_size: PositiveInt
    prompt_embed_dim: PositiveInt
    mask_in_chans: PositiveInt
    decoder_depth: PositiveInt
    decoder_mlp_dim: PositiveInt
    decoder_num_heads: PositiveInt
    iou_head_depth: PositiveInt
    iou_head_hidden_dim: PositiveInt

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        _check_divides("8", 8, "prompt_embed_dim", self.prompt_embed_dim)
        _check_divides("4", 4, "mask_in_chans", self.mask_in_chans)
        # Cross attention halves the width before it is cut into heads.
        _check_divides("twice decoder_num_heads", 2 * self.decoder_num_heads, "prompt_embed_dim", self.prompt_embed_dim)
        if self.encoder == "vit":
            vit = VitEncoder.model_validate(self.encoder_options)
            _check_divides("patch_size", vit.patch_size, "image_size", self.image_size)
            if vit.patch_size < 4:
                raise ValueError(f"patch_size {vit.patch_size} is less than 4: its masks would be finer than the input")
        return self

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The keys that belong to the encoder."""
        return dict(self.model_extra or {})


def _publish(**encoder: Any) -> Architecture:
    """A published SAM; they differ in their encoder only."""
    return Architecture.model_validate(
        {
            **encoder,
            "image_size": 1024,
            "prompt_embed_dim": 256,
            "mask_in_chans": 16,
            "decoder_depth": 2,
            "decoder_mlp_dim": 2048,
            "decoder_num_heads": 8,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": 256,
        }
    )


def _vit(*, embed_dim: int, depth: int, num_heads: int, global_attn_indexes: tuple[int, ...]) -> Architecture:
    """One of Meta's three."""
    return _publish(
        encoder="vit",
        patch_size=16,
        encoder_embed_dim=embed_dim,
        encoder_depth=depth,
        encoder_num_heads=num_heads,
        encoder_mlp_ratio=4,
        encoder_global_attn_indexes=global_attn_indexes,
        window_size=14,
    )


PUBLISHED_ARCHITECTURES: Mapping[str, Architecture] = {
    "vit_b": _vit(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": _vit(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": _vit(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
    # MobileSAM's, by the name that its own registry has for it.
    "vit_t": _publish(
        encoder="tiny_vit",
        encoder_embed_dims=(64, 128, 160, 320),
        encoder_depths=(2, 2, 6, 2),
        encoder_num_heads=(4, 5, 10),
        window_sizes=(7, 14, 7),
    ),
}


def read_architecture(model_type: str | Path | Mapping[str, Any]) -> Architecture:
    """The architecture of this name, in this JSON file, or with these keys.

    Raises:
        OptionsError: neither a name nor a readable JSON file; or keys that are unknown, missing or do not fit, named.
    """
    if isinstance(model_type, str) and model_type in PUBLISHED_ARCHITECTURES:
        return PUBLISHED_ARCHITECTURES[model_type]
    if isinstance(model_type, Mapping):
        return _parse_architecture(model_type, source="the architecture")
    try:
        keys = json.loads(Path(model_type).read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(PUBLISHED_ARCHITECTURES)
        raise OptionsError(
            f"--model-type: {model_type} is neither one of {names} nor a readable JSON file ({error.strerror})"
        ) from error
    except ValueError as error:
        raise OptionsError(f"--model-type: {model_type} is not JSON: {error}") from error
    return _parse_architecture(keys, source=str(model_type))


def _parse_architecture(keys: object, *, source: str) -> Architecture:
    try:
        return Architecture.model_validate(keys)
    except ValidationError as error:
        raise OptionsError(f"--model-type: {source}: " + "; ".join(_describe_faults(error))) from error


def _describe_faults(error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"])
        message = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
        faults.append(f"{name}: {message}" if name else message)
    return faults
