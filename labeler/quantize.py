"""The encoder in INT8, by NNCF's post-training quantization: the NNCF seam.

Its weights and the inputs of its products become 8-bit integers; the ranges are measured on photographs, for they depend on
what the encoder sees. Must not know checkpoints, torch or the predictor's stages. Only a conversion needs it, not a worker.
Importing this module without the extra ``convert`` raises ModelError, so import it where it is used.
"""

import hashlib
import itertools
import logging
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openvino as ov

from labeler.errors import ImageError, ModelError, OptionsError
from labeler.images import IMAGE_EXTENSIONS, decode_image
from labeler.model_folder import Quantization
from labeler.predictor import fill_input
from labeler.types import Float32

try:
    import nncf
except ModuleNotFoundError as error:
    raise ModelError(f'--precision int8 needs {error.name}, which is not installed here: pip install ".[convert]"') from error

logger = logging.getLogger(__name__)

MAX_IMAGES = 16
"""Of a larger folder so many are taken, evenly over its sorted names: ranges settle after a few, and each costs seconds."""

MAX_BYTES = 256 << 20
"""Larger files are no photographs, but archives or videos."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Photographs that look like those which will be labeled.

    Attributes:
        paths: files that decode.
        sha256: of all their bytes, in order.
    """

    paths: tuple[Path, ...]
    sha256: str

    def describe(self) -> Quantization:
        """What ``model.json`` says of it."""
        return Quantization(encoder="int8", num_images=len(self.paths), images_sha256=self.sha256)


def find_calibration(folder: Path) -> Calibration:
    """The images of a folder and all below it, at most ``MAX_IMAGES``; other files are passed over.

    Raises:
        OptionsError: no such folder, or nothing in it is an image.
    """
    if not folder.is_dir():
        raise OptionsError(f"--calibration: there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    readable = _choose(files)
    if not readable:
        raise OptionsError(
            f"--calibration: none of the {len(files)} files in {folder} is an image that can be read; images in archives or "
            "Parquet files have to be taken out of them first"
        )
    digest = hashlib.sha256()
    for path in readable:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    logger.info("calibrating with %d of the %d files in %s", len(readable), len(files), folder)
    return Calibration(tuple(readable), digest.hexdigest())


def _choose(files: list[Path]) -> list[Path]:
    """Images spread evenly over the files that are some by name, or else over all; where one is none, the next that is."""
    named = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS] or files
    # As far apart as can be: the first of each span, then the second, until there are enough.
    length = -(-len(named) // MAX_IMAGES)
    spread = [path for offset in range(length) for path in named[offset::length]]
    return sorted(itertools.islice(filter(_holds_image, spread), MAX_IMAGES))


def _holds_image(path: Path) -> bool:
    try:
        if path.stat().st_size > MAX_BYTES:
            return False
        decode_image(path.read_bytes())
    except (ImageError, OSError) as error:
        logger.info("not calibrating with %s: %s", path, error)
        return False
    return True


def quantize_encoder(xml_path: Path, *, calibration: Calibration, image_size: int, is_transformer: bool) -> None:
    """Replace an encoder's graph, XML_PATH and its .bin, by its INT8 form.

    Args:
        calibration: the images its ranges are measured on, prepared as for labeling.
        image_size: S, the side of its input.
        is_transformer: then convolutions (its first layer and its neck, a hundredth of the work) stay floats, channels of
            uneven size are smoothed, and biases are left as they are: half the error, and nothing lost, where measured.

    Raises:
        ModelError: NNCF can't quantize this graph.
    """

    def prepare(path: Path) -> Float32:
        return fill_input(decode_image(path.read_bytes()).pixels, side=image_size)[0]

    logger.info("quantizing the encoder to INT8 with %d images; this takes minutes at full size", len(calibration.paths))
    try:
        model = ov.Core().read_model(xml_path)
        # NNCF draws progress bars on stdout, which is ours.
        with redirect_stdout(sys.stderr):
            quantized = nncf.quantize(
                model,
                nncf.Dataset(calibration.paths, prepare),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calibration.paths),
                **(_for_transformers() if is_transformer else {}),
            )
        with TemporaryDirectory(dir=xml_path.parent, prefix=".quantized-") as name:
            ov.save_model(quantized, Path(name, xml_path.name), compress_to_fp16=False)
            del model, quantized  # They map the file that is about to be replaced.
            for path in Path(name).iterdir():
                path.replace(xml_path.parent / path.name)
    except (RuntimeError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
        hint = "; is the disk full?" if "iostream error" in str(error) else ""  # All that OpenVINO says of it.
        raise ModelError(f"NNCF can't quantize {xml_path.name}: {error}{hint}") from error


def _for_transformers() -> dict[str, Any]:
    return {
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(types=["Convolution"]),
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.5),
            disable_bias_correction=True,
            # Weights of seven bits: sums of products of eight overflow on a CPU without VNNI.
            overflow_fix=nncf.OverflowFix.ENABLE,
        ),
    }
