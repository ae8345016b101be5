"""One image -> all its masks, as Meta's Segment Anything finds them, on a CPU.

The door of the package. Nothing heavy is imported before a name here is used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labeler.engine import Engine as Engine
    from labeler.errors import ImageError as ImageError
    from labeler.errors import LabelerError as LabelerError
    from labeler.errors import ModelError as ModelError
    from labeler.errors import OptionsError as OptionsError
    from labeler.errors import StorageError as StorageError
    from labeler.generator import generate_masks as generate_masks
    from labeler.images import decode_image as decode_image
    from labeler.model_folder import read_model_info as read_model_info
    from labeler.models import find_model as find_model
    from labeler.options import MaskOptions as MaskOptions
    from labeler.options import resolve_mask_options as resolve_mask_options
    from labeler.predictor import Predictor as Predictor
    from labeler.types import Image as Image
    from labeler.types import MaskSet as MaskSet
    from labeler.types import Prompts as Prompts

# OpenVINO tells its maker whenever it is imported, in every worker anew, unless this package is missing. So nobody is told,
# where ours is imported first.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_DOORS = {
    "Engine": "engine",
    "Image": "types",
    "ImageError": "errors",
    "LabelerError": "errors",
    "MaskOptions": "options",
    "MaskSet": "types",
    "ModelError": "errors",
    "OptionsError": "errors",
    "Predictor": "predictor",
    "Prompts": "types",
    "StorageError": "errors",
    "decode_image": "images",
    "find_model": "models",
    "generate_masks": "generator",
    "read_model_info": "model_folder",
    "resolve_mask_options": "options",
}

__all__ = list(_DOORS)


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'labeler' has no attribute {name!r}")
    return getattr(import_module(f"labeler.{_DOORS[name]}"), name)
