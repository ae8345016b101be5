"""SAM as graphs in files: torch modules -> ONNX -> OpenVINO. Part of the torch seam, used by ``labeler.convert`` alone.

Must not know checkpoints or what else is in a model folder.

A model folder holds the encoder and the stages of ``labeler.stages``. The plain predictor, SAM's own modules in SAM's own
order, is what tests and benchmarks compare the stages with. Both take the points as they come: who calls them appends the
padding point.
"""

import errno
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import openvino as ov
import torch
from openvino import opset13
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.export import Dim

from labeler.errors import ModelError
from labeler.heads import split_heads
from labeler.stages import ImageSide, IouStage, MaskStage, PromptStage, embed_points
from labeler.types import Float32

logger = logging.getLogger(__name__)

GRAPHS = ("encoder", "image_side", "image_side_mask", "prompts", "iou_head", "masks")
"""The graphs of a model folder, each NAME.xml with its weights in NAME.bin."""

PLAIN_GRAPHS = ("predictor", "predictor_mask")
"""What the graphs after the encoder are compared with; in no folder."""

_EXTERNAL_DATA_BYTES = 1 << 30
"""From here on an ONNX file's weights go into a file beside it: protobuf ends at 2 GiB."""


class MaskPredictor(nn.Module):
    """SAM's prompt encoder and mask decoder as one function of arrays.

    Differs from ``PromptEncoder`` and ``MaskDecoder`` only in how it is written, not in what it computes: a label picks
    its embedding from a table, and all four masks are returned.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder

    def forward(
        self, features: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts of N points.

        Args:
            features: (1, C, h, w).
            points: (P, N, 2) x, y in pixels of the model's input.
            labels: (P, N) int32: -1 padding, 0 outside, 1 inside, 2 and 3 a box's corners.
            mask_logits: (P, 1, 4h, 4w), or None.

        Returns:
            Logits (P, 4, 4h, 4w), the single mask first, and predicted IoU (P, 4).
        """
        decoder = self.mask_decoder
        queries = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (5, C)
        queries = queries[None].expand(points.shape[0], -1, -1)
        tokens = torch.cat([queries, embed_points(self.prompt_encoder, points, labels)], dim=1)  # (P, 5 + N, C)
        source = features + self._embed_mask(mask_logits)  # (1 or P, C, h, w)
        answers, pixels = decoder.transformer(source, self.prompt_encoder.get_dense_pe(), tokens)
        _, channels, height, width = features.shape
        upscaled = decoder.output_upscaling(pixels.transpose(1, 2).reshape(-1, channels, height, width))
        kernels = torch.stack(
            [mlp(answers[:, 1 + i, :]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )  # (P, 4, C / 8)
        logits = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return logits, decoder.iou_prediction_head(answers[:, 0, :])

    def _embed_mask(self, mask_logits: Tensor | None) -> Tensor:
        """(P, 1, 4h, 4w) -> (P, C, h, w); without a mask one (1, C, 1, 1) for all."""
        if mask_logits is None:
            embedding: Tensor = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        else:
            embedding = self.prompt_encoder.mask_downscaling(mask_logits)
        return embedding


def read_embedding_shape(encoder: nn.Module, *, image_size: int) -> tuple[int, int, int]:
    """Channels, height and width of what an encoder makes of an S x S input, found without computing it."""
    weights = {name: tensor.to("meta") for name, tensor in encoder.state_dict().items()}
    with torch.device("meta"), torch.inference_mode():
        features = torch.func.functional_call(encoder, weights, (torch.empty(1, 3, image_size, image_size),))
    _, channels, height, width = features.shape
    return channels, height, width


def export_onnx(sam: Sam, *, graph: str, folder: Path) -> Path:
    """Write one of ``GRAPHS`` or ``PLAIN_GRAPHS`` as FOLDER/GRAPH.onnx, checked by onnx; P and N stay open.

    Raises:
        ModelError: torch can't trace the model, or onnx rejects the file: a fault of the architecture's code.
    """
    path = folder / f"{graph}.onnx"
    module, inputs, outputs = _describe_graph(sam, graph)
    shapes = {name: _OPEN_SIDES.get(name) for name in inputs} if _OPEN_SIDES.keys() & inputs.keys() else None
    if graph == "image_side_mask":
        shapes = None  # One mask prompt a call.
    external = sum(w.numel() * w.element_size() for w in module.state_dict().values()) >= _EXTERNAL_DATA_BYTES
    logger.info("exporting the %s to ONNX", graph)
    try:
        with _quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                external_data=external,
                dynamo=True,
                verbose=False,
            )
        _strip_traces(path)
        onnx.checker.check_model(str(path), full_check=True)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the {graph} can't be written as ONNX: {error}") from error
    return path


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's account of its own work: hundreds of lines, and deprecations inside torch."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


_OPEN_SIDES: dict[str, dict[int, Any]] = {
    "points": {0: Dim("P"), 1: Dim("N")},
    "labels": {0: Dim("P"), 1: Dim("N")},
    "mask_logits": {0: Dim("P")},
    "iou_token": {0: Dim("P")},
}
"""Sides of a graph's inputs that its file leaves open."""

_SHARED = ("image", "first_keys", "first_values", "first_queries")


def _describe_graph(sam: Sam, graph: str) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """A graph's module, inputs to trace it with, and its outputs' names."""
    channels, (height, width) = sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    heads, num_pixels = attention.num_heads, height * width
    depth = attention.internal_dim // heads
    # A tensor of its own for each input: the exporter would take two names of one tensor for one input.
    shared = (
        torch.zeros(1, num_pixels, channels),
        torch.zeros(heads, depth, num_pixels),
        torch.zeros(heads, num_pixels, depth),
        torch.zeros(heads, depth, num_pixels),
    )
    # Sizes other than 1, and different ones: the exporter would take a 1, or two equal sides, for fixed.
    points = {"points": torch.zeros(3, 5, 2), "labels": torch.tensor([[1, 0, -1, 2, 3]] * 3, dtype=torch.int32)}
    features = {"features": torch.zeros(1, channels, height, width)}
    mask_logits = torch.zeros(1 if graph == "image_side_mask" else 3, 1, 4 * height, 4 * width)
    size = sam.image_encoder.img_size
    modules: dict[str, tuple[Callable[[Sam], nn.Module], dict[str, Tensor], tuple[str, ...]]] = {
        "encoder": (lambda sam: split_heads(sam.image_encoder), {"pixels": torch.zeros(1, 3, size, size)}, ("features",)),
        "image_side": (ImageSide, features, _SHARED),
        "image_side_mask": (ImageSide, {**features, "mask_logits": mask_logits}, _SHARED),
        "prompts": (
            PromptStage,
            dict(zip(_SHARED, shared, strict=True)) | points,
            ("iou_token", "mask_tokens", "seen_image"),
        ),
        "iou_head": (IouStage, {"iou_token": torch.zeros(3, channels)}, ("iou",)),
        "masks": (
            MaskStage,
            {"mask_tokens": torch.zeros(1, sam.mask_decoder.num_mask_tokens, channels), "seen_image": shared[0]},
            ("logits",),
        ),
        "predictor": (MaskPredictor, features | points, ("logits", "iou")),
        "predictor_mask": (MaskPredictor, features | points | {"mask_logits": mask_logits}, ("logits", "iou")),
    }
    build, inputs, outputs = modules[graph]
    return build(sam).eval(), inputs, outputs


def _strip_traces(path: Path) -> None:
    """Drop the exporter's notes on where in the source a node comes from: paths of this machine."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del owner.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")
    onnx.save(model, path)


def onnx_to_openvino(onnx_path: Path, *, xml_path: Path, compress: bool) -> None:
    """Write an ONNX file as an OpenVINO graph: XML_PATH and its .bin.

    Args:
        compress: store as f16 what loses nothing by it. Weights rounded before stay exactly what they were; whatever
            was computed while converting (the dense positions, for one) stays f32.

    Raises:
        ModelError: OpenVINO can't convert it.
    """
    logger.info("converting the %s to OpenVINO", onnx_path.stem)
    try:
        model = ov.convert_model(onnx_path)
        _name_by_place(model)
        if not compress:
            ov.save_model(model, xml_path, compress_to_fp16=False)
            return
        with TemporaryDirectory(dir=xml_path.parent, prefix=".compressed-") as folder:
            # save_model compresses everything and marks it as OpenVINO's tools expect; what it would harm is put back.
            compressed_path = Path(folder, xml_path.name)
            ov.save_model(model, compressed_path, compress_to_fp16=True)
            compressed = ov.Core().read_model(compressed_path)
            _restore_inexact(compressed, _read_constants(model))
            ov.save_model(compressed, xml_path, compress_to_fp16=False)
            del compressed  # It maps the file that is about to go.
        indented = xml_path.read_text(encoding="utf-8")
        xml_path.write_text(re.sub(r"\n\s*", "", indented), encoding="utf-8")  # Indents are a fifth of it.
    except RuntimeError as error:
        if "iostream error" in str(error):  # All that OpenVINO says of a file that can't be written.
            raise OSError(errno.EIO, f"OpenVINO can't write {xml_path.name}; is the disk full?") from error
        raise ModelError(f"OpenVINO can't convert {onnx_path.name}: {error}") from error


def _name_by_place(model: ov.Model) -> None:
    """Replace names that count what the process made before, so that the same checkpoint gives the same bytes."""
    taken = set()
    for place, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        # Such as Reshape_8591: OpenVINO's for what ONNX had no name for, or folded into a constant.
        if re.fullmatch(r"[A-Z][A-Za-z0-9]*_\d+", name) or name in taken:
            name = f"{node.get_type_name()}.{place}"
            node.set_friendly_name(name)
        taken.add(name)


def _read_constants(model: ov.Model) -> dict[str, Float32]:
    """The f32 constants of a model, by name; they live as long as the model."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() == "Constant")
    return {node.get_friendly_name(): node.data for node in nodes if node.get_element_type() == ov.Type.f32}


def _restore_inexact(compressed: ov.Model, originals: Mapping[str, Float32]) -> None:
    """Put back every f32 constant that its f16 form does not equal; a decompressing Convert bears its name."""
    for node in compressed.get_ordered_ops():
        stored = node.input_value(0).get_node() if node.get_type_name() == "Convert" else None
        if stored is None or stored.get_type_name() != "Constant" or stored.get_element_type() != ov.Type.f16:
            continue
        name = node.get_friendly_name()
        if not np.array_equal(stored.data.astype(np.float32), originals[name]):
            constant = opset13.constant(originals[name])
            constant.set_friendly_name(name)
            node.output(0).replace(constant.output(0))


def tool_versions() -> dict[str, str]:
    """The libraries a graph went through, and their versions."""
    return {
        "segment-anything": metadata.version("segment-anything"),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": metadata.version("onnxscript"),
        "openvino": ov.get_version(),
    }
