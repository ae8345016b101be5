"""What every export can be asked for: which masks, which side of the split, which frame and names. Declared once.

Must not know rows or formats.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Frame = Literal["upright", "stored"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class SelectionOptions(BaseModel):
    """Which images and masks are exported, in which frame and under which names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    min_predicted_iou: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    """Leave out masks whose predicted IoU is lower than this; those refined or drawn by hand stay. Not set: none."""

    min_stability_score: Fraction | None = None
    """Leave out masks whose stability score is lower than this; those refined or drawn by hand stay. Not set: none."""

    min_area: Annotated[int, Field(ge=0)] = 0
    """Leave out masks of fewer pixels than this."""

    max_area: Annotated[int, Field(ge=1)] | None = None
    """Leave out masks of more pixels than this. Not set: none."""

    min_area_ratio: Fraction = 0.0
    """Leave out masks that cover less than this part of their image."""

    max_area_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Leave out masks that cover more than this part of their image. SA-1B has none above 0.95."""

    max_mask_iou: Fraction = 1.0
    """Of two masks whose IoU (of pixels, not boxes) is greater than this, leave out the one of lower predicted IoU."""

    max_containment: Fraction = 1.0
    """Leave out masks of which more than this part lies within a larger one that stays: 0.9 leaves wholes without parts."""

    max_masks_per_image: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many masks of an image, those of the highest predicted IoU. Not set: all."""

    drop_empty: bool = False
    """Leave out images that no mask stays on."""

    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Set about this part of the images aside for validation. An image keeps its side when the dataset grows."""

    seed: int = 0
    """Another number draws another split."""

    frame: Frame | None = None
    """'upright' for loaders that apply EXIF, 'stored' for those that don't. Not set: as labeled, upright by default."""

    relative_to: str | None = None
    """Name images by their place below this folder or URI, instead of as the run does."""

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> Self:
        if self.max_area is not None and self.max_area < self.min_area:
            raise ValueError(f"max_area {self.max_area} is less than min_area {self.min_area}: no mask can stay")
        if self.max_area_ratio < self.min_area_ratio:
            raise ValueError(f"max_area_ratio {self.max_area_ratio} is less than min_area_ratio {self.min_area_ratio}")
        return self
