"""Every option that changes a mask, declared once: type, range, default and help text.

From this one declaration come the Python API, the flags and their help, the config-file keys, the checks, the record in
a run's ``run.json`` and the run's fingerprint. Must not know workers, threads or storage: what changes only the speed
lives in ``jobs.options``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from labeler.errors import OptionsError

Precision = Literal["f32", "bf16", "f16"]
Exif = Literal["apply", "ignore"]
Points = Literal["all", "adaptive"]
Preset = Literal["sa1b"]
Frame = Literal["upright", "stored"]
PromptMasks = Literal["one", "best"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The SA-1B recipe (Segment Anything, appendix B): 32x32 points on the image, 16x16 on each of 2x2 crops, 8x8 on 4x4.
    "sa1b": {
        "points_per_side": 32,
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
        "max_mask_area_ratio": 0.95,
    },
}


def _read_point_grids(value: object) -> object:
    """A path to a JSON file becomes its content, so that a run's record holds the points and not a file name."""
    if not isinstance(value, str | Path):
        return value
    try:
        return json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"can't read {value}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{value} is not JSON: {error}") from error


_Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
_PointGrid = tuple[tuple[_Fraction, _Fraction], ...]


class MaskOptions(BaseModel):
    """How masks are made. SAM's generator options keep their names, meanings and defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    points_per_side: int = Field(32, ge=1, le=1024)
    """Points along one side of the grid on the whole image: 32 means 32 x 32 = 1024 points. Ignored with point_grids."""

    points: Points = "all"
    """'adaptive' asks a coarse part of the grid first and skips points well inside the masks that it found. Some things that
    lie inside others are lost: on 26 photos an earlier tiny found 14.7 instead of 15.5 % of people's
    regions (AR), 68 instead of 85 masks a photo, in about half the time."""

    point_grids: Annotated[tuple[_PointGrid, ...] | None, BeforeValidator(_read_point_grids)] = None
    """A JSON file with one list of [x, y] a crop layer, each 0-1 of the crop's width and height, instead of the grids."""

    pred_iou_thresh: float = Field(0.88, ge=0.0, le=2.0)
    """Keep a mask whose IoU as predicted by the model is greater than this. 0 keeps all."""

    stability_score_thresh: _Fraction = 0.95
    """Keep a mask at least this stable when its threshold moves by stability_score_offset. 0 keeps all."""

    stability_score_offset: float = Field(1.0, ge=0.0, le=100.0)
    """How far, in logits, the threshold moves up and down to measure stability."""

    box_nms_thresh: _Fraction = 0.7
    """Of two masks of a crop whose boxes overlap more than this (IoU), the one of lower predicted IoU is dropped."""

    crop_n_layers: int = Field(0, ge=0, le=5)
    """Label also crops: layer i cuts the image into 2^i x 2^i overlapping crops, each labeled alone. Finds small things."""

    crop_nms_thresh: _Fraction = 0.7
    """Of two masks of different crops whose boxes overlap more than this (IoU), the one of the larger crop is dropped."""

    crop_overlap_ratio: _Fraction = 512 / 1500
    """How much the crops of the first layer overlap, as a fraction of the image's shorter side; halved each layer."""

    crop_n_points_downscale_factor: int = Field(1, ge=1, le=1024)
    """The grid of a crop of layer i has points_per_side / this^i points a side."""

    min_mask_region_area: int = Field(0, ge=0, le=1_000_000_000)
    """Fill holes and drop islands smaller than this many pixels, then drop masks that became duplicates. 0 leaves all."""

    max_mask_area_ratio: float = Field(1.0, gt=0.0, le=1.0)
    """Drop masks that cover more than this part of the image, before any duplicate is looked for. SA-1B used 0.95."""

    precision: Precision = "f32"
    """What the CPU computes in. bf16 and f16 are faster where the CPU has them and move masks: with an earlier
    model tiny bf16 found 70 % of f32's masks again (IoU 0.9), f16 98 %, as many of people's regions."""

    exif: Exif = "apply"
    """Turn photos upright as their EXIF orientation says, or take the stored pixels. Masks are in the frame chosen here."""

    max_pixels: int = Field(178_956_970, ge=1)
    """An image with more pixels than this is an error (too_large) and never decoded."""

    @model_validator(mode="after")
    def _grids_fit_the_layers(self) -> Self:
        if self.point_grids is not None and len(self.point_grids) != self.crop_n_layers + 1:
            needed = self.crop_n_layers + 1
            raise ValueError(f"point_grids holds {len(self.point_grids)} grids, but {needed} are needed, one a crop layer")
        return self


class PromptOptions(BaseModel):
    """How prompts are answered, in a run that has them. Of ``MaskOptions`` only ``USED_WITH_PROMPTS`` have a say there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt_masks: PromptMasks = "one"
    """'one': the model's single answer to a prompt. 'best': for a single point, which may mean a part or the whole, the
    most trusted of its three; boxes and several points mean one thing and keep the single one."""

    prompts_frame: Frame | None = None
    """The frame of boxes and points on photos that EXIF turns: 'upright' as viewers show them, or 'stored'. Not set: the
    one that has the width and height in the prompts' file; where those can't tell, the prompt is an error (frame)."""


USED_WITH_PROMPTS = frozenset({"stability_score_offset", "precision", "exif", "max_pixels"})
"""The mask options that also change what a prompt is answered; all others are about the grid and its many masks."""


def refuse_unused_options(given: Iterable[str], *, preset: Preset | None) -> None:
    """With prompts, an option that would do nothing is an error, for who typed it expects something.

    Raises:
        OptionsError: names it.
    """
    unused = sorted(set(given) - USED_WITH_PROMPTS) + (["preset"] if preset else [])
    if unused:
        names = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise OptionsError(f"{names}: without effect with --prompts, where each prompt gets its one mask; leave it out")


def resolve_mask_options(
    *given: Mapping[str, Any], preset: Preset | None = None, model_defaults: Mapping[str, Any] | None = None
) -> MaskOptions:
    """The options of a run: what was given wins over the preset, that over the model's own defaults, those over SAM's.

    Args:
        given: option names and values; later mappings win.
        preset: a name in ``PRESETS``.
        model_defaults: the ``defaults`` of the model folder's ``model.json``.

    Raises:
        OptionsError: an unknown name, or a value out of its range; names the option.
    """
    values: dict[str, Any] = {**(model_defaults or {}), **(PRESETS[preset] if preset else {})}
    for mapping in given:
        values.update(mapping)
    try:
        return MaskOptions(**values)
    except ValidationError as error:
        raise OptionsError(describe_validation_error(error)) from error


def check_given_options(given: Mapping[str, Any], *, preset: Preset | None) -> None:
    """Say what is wrong with options before a model is fetched. Whether grids fit the layers depends on its defaults, too.

    Raises:
        OptionsError: see ``resolve_mask_options``.
    """
    resolve_mask_options({name: value for name, value in given.items() if name != "point_grids"}, preset=preset)


def refuse_empty(given: Iterable[tuple[str, str]]) -> None:
    """Refuse empty texts among what was typed, by option: as a path, one would be the current folder.

    Raises:
        OptionsError: one is, as where a shell's variable was not set.
    """
    for name, text in given:
        if not text.strip():
            raise OptionsError(f"{name} is empty: is a variable unset?")


def name_prices(options: MaskOptions) -> list[str]:
    """What options that trade masks for time cost where it was measured, a sentence each; for who has chosen them."""
    prices = []
    if options.precision != "f32":
        prices.append(
            f"--precision {options.precision} moves masks: bf16 found 70 % of f32's again (IoU 0.9), f16 98 %, with an earlier "
            "tiny; python -m benchmarks.precision, in the source tree, measures yours"
        )
    if options.points == "adaptive":
        prices.append("--points adaptive skips points, and so loses some masks; its help says how many where it was measured")
    return prices


def describe_validation_error(error: ValidationError) -> str:
    """One sentence a fault, each naming its option as it is typed on the command line."""
    faults = []
    for fault in error.errors():
        name = "--" + str(fault["loc"][0]).replace("_", "-") if fault["loc"] else "options"
        message = fault["msg"].removeprefix("Value error, ")
        given = f", not {fault['input']!r}" if fault["loc"] and isinstance(fault["input"], str | int | float) else ""
        faults.append(f"{name}: {message[0].lower()}{message[1:]}{given}")
    return "; ".join(faults)


def fingerprint(options: MaskOptions, *, model_sha256: str, prompts: Mapping[str, Any] | None = None) -> str:
    """The sha256 (hex) of everything that decides a run's masks: these options, the model, and the prompts if any."""
    record: dict[str, Any] = {"options": options.model_dump(mode="json"), "model": model_sha256}
    record |= {"prompts": dict(prompts)} if prompts else {}
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
