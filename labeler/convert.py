"""A SAM checkpoint becomes a model folder: PyTorch -> ONNX -> OpenVINO. The torch seam.

Must not know where checkpoints are published or how a folder is run. Needs the extra ``convert``; importing this module
without it raises ModelError, so import it where it is used.
"""

import inspect
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from labeler.architecture import PUBLISHED_ARCHITECTURES, Architecture, VitEncoder, read_architecture
from labeler.call_size import choose_call_size
from labeler.errors import ModelError, OptionsError
from labeler.locks import hold_folder
from labeler.model_folder import MODEL_JSON, ModelInfo, Quantization, Weights, hash_file
from labeler.options import resolve_mask_options

try:
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    from torch import Tensor, nn

    from labeler import graphs
except ModuleNotFoundError as error:
    raise ModelError(
        f'converting a checkpoint needs {error.name}, which is not installed here: pip install ".[convert]"'
    ) from error

if TYPE_CHECKING:
    from labeler.quantize import Calibration

logger = logging.getLogger(__name__)

POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""Turns places into embeddings. Never rounded: a few numbers, that would cost as much accuracy as all others together."""

_WORK_PREFIX = ".converting-"

_NUM_NAMED = 3
"""How many tensors a message names before it only counts them."""


def build_sam(model_type: str | Path | Mapping[str, Any]) -> Sam:
    """A SAM with random weights, in evaluation mode, built of segment-anything's modules.

    Args:
        model_type: vit_b, vit_l, vit_h, vit_t, a JSON file that describes an architecture, or its keys.

    Raises:
        OptionsError: see ``read_architecture``; or the encoder's constructor refuses its keys.
    """
    shape = read_architecture(model_type)
    try:
        encoder = _build_encoder(shape)
        channels, *embedding_hw = graphs.read_embedding_shape(encoder, image_size=shape.image_size)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise OptionsError(f"encoder {shape.encoder} can't be built: {error}") from error
    if channels != shape.prompt_embed_dim:
        raise OptionsError(f"encoder {shape.encoder} gives {channels} channels, not prompt_embed_dim {shape.prompt_embed_dim}")
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=shape.prompt_embed_dim,
            image_embedding_size=tuple(embedding_hw),
            input_image_size=(shape.image_size, shape.image_size),
            mask_in_chans=shape.mask_in_chans,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=shape.decoder_depth,
                embedding_dim=shape.prompt_embed_dim,
                mlp_dim=shape.decoder_mlp_dim,
                num_heads=shape.decoder_num_heads,
            ),
            transformer_dim=shape.prompt_embed_dim,
            iou_head_depth=shape.iou_head_depth,
            iou_head_hidden_dim=shape.iou_head_hidden_dim,
        ),
    )
    return sam.eval()


def _build_encoder(shape: Architecture) -> nn.Module:
    """segment-anything's own encoder, or one of ``labeler.encoders``; knows its input's side as ``img_size``."""
    if shape.encoder != "vit":
        return _build_named_encoder(shape)
    vit = VitEncoder.model_validate(shape.encoder_options)
    encoder: nn.Module = ImageEncoderViT(
        img_size=shape.image_size,
        patch_size=vit.patch_size,
        embed_dim=vit.encoder_embed_dim,
        depth=vit.encoder_depth,
        num_heads=vit.encoder_num_heads,
        mlp_ratio=vit.encoder_mlp_ratio,
        out_chans=shape.prompt_embed_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        window_size=vit.window_size,
        global_attn_indexes=vit.encoder_global_attn_indexes,
    )
    return encoder


def _build_named_encoder(shape: Architecture) -> nn.Module:
    from labeler.encoders import ENCODERS

    if shape.encoder not in ENCODERS:
        raise OptionsError(f"encoder {shape.encoder!r} is not one of {', '.join(['vit', *sorted(ENCODERS)])}")
    build = ENCODERS[shape.encoder]
    keys = {"image_size": shape.image_size, "prompt_embed_dim": shape.prompt_embed_dim, **shape.encoder_options}
    known = inspect.signature(build).parameters
    if unknown := sorted(keys.keys() - known.keys()):
        raise OptionsError(f"encoder {shape.encoder} does not know {', '.join(unknown)}")
    encoder = build(**keys)
    setattr(encoder, "img_size", shape.image_size)  # noqa: B010 - an nn.Module has no such attribute to a type checker
    return encoder


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors, as float32, by the names of segment-anything's modules.

    Only tensors are read (``weights_only``): a checkpoint can't run code here.

    Raises:
        ModelError: no such file, truncated, not PyTorch's, or holding something else than tensors; says which.
    """
    logger.info("reading %s", path)
    if not path.is_file():
        raise ModelError(f"there is no checkpoint file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About the pickle of a foreign file, which fails below anyway.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Foreign bytes make the unpickler fail in every way there is.
        raise _blame_checkpoint(path, error) from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, not a state dict")
    foreign = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if foreign:
        raise ModelError(f"{path} is no state dict: not tensors are {_name_some(foreign)}; save only the model's state_dict()")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def _blame_checkpoint(path: Path, error: Exception) -> ModelError:
    """What to say of a file that PyTorch does not open."""
    text = str(error).strip()
    if foreign := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return ModelError(
            f"{path} holds Python objects ({foreign[1]}), not only tensors, and is not opened: "
            "save only the model's state_dict()"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    summary = reason[1] if reason else text.split("\n")[0] or type(error).__name__
    return ModelError(
        f"{path} ({path.stat().st_size} bytes) can't be read as a PyTorch checkpoint: truncated, or no state dict of tensors: "
        f"{summary}"
    )


def round_weights(state: Mapping[str, Tensor], *, weights: Weights) -> dict[str, Tensor]:
    """The weights as a model folder of this precision holds them, as float32: what parity is measured with.

    f16 rounds each to the nearest, except ``POSITIONS`` and whole numbers.

    Raises:
        ModelError: a weight that is not finite, or too large for f16; names the tensors.
    """
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"the checkpoint holds weights that are not finite: {_name_some(broken)}")
    if weights == "f32":
        return dict(state)
    kept = {name for name, tensor in state.items() if name == POSITIONS or not tensor.is_floating_point()}
    rounded = {name: tensor if name in kept else tensor.half().float() for name, tensor in state.items()}
    too_large = [name for name, tensor in rounded.items() if not bool(torch.isfinite(tensor).all())]
    if too_large:
        raise ModelError(f"weights too large for f16: {_name_some(too_large)}; use --weights f32")
    return rounded


def load_sam(checkpoint: Path, *, model_type: str | Path | Mapping[str, Any], weights: Weights = "f32") -> Sam:
    """The PyTorch model of a checkpoint, with the weights a folder of this precision holds.

    Raises:
        OptionsError: see ``build_sam``.
        ModelError: see ``load_checkpoint`` and ``round_weights``; or the checkpoint is one of another architecture:
            names the tensors that are missing, unexpected, or of another shape.
    """
    sam = build_sam(model_type)
    state = round_weights(load_checkpoint(checkpoint), weights=weights)
    if differences := _compare_states(sam.state_dict(), state):
        name = model_type if isinstance(model_type, str | Path) else "the given architecture"
        raise ModelError(f"{checkpoint} does not fit {name}: {'; '.join(differences)}")
    sam.load_state_dict(state)
    return sam


def _compare_states(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """A clause for each way in which two state dicts differ."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    reshaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {kind}: {_name_some(names)}" for kind, names in kinds if names]


def _name_some(names: list[str]) -> str:
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def convert_checkpoint(
    checkpoint: Path,
    *,
    output: Path,
    model_type: str,
    weights: Weights = "f16",
    keep_onnx: bool = False,
    defaults: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
    prompts_per_call: int | None = None,
) -> ModelInfo:
    """Write a model folder. ``model.json`` comes last: a folder without it is not finished.

    Args:
        output: the folder; made where it is not there, its model replaced where there is one.
        model_type: vit_b, vit_l, vit_h, vit_t, or a JSON file that describes the architecture.
        weights: precision of the weights on disk; f16 rounds them once, here, and loses nothing after.
        keep_onnx: leave the ONNX files in the folder (they are no part of the model).
        defaults: mask options that suit this model better than SAM's.
        calibration: a folder of photographs; with it the encoder becomes one of INT8 products (``labeler.quantize``).
        prompts_per_call: how many prompts the predictor answers at a time; measured here where not given.

    Raises:
        OptionsError: a model type or default that does not exist or fit, or a calibration folder without images.
        ModelError: see ``load_sam``; or the folder can't be written.
    """
    resolve_mask_options(defaults or {})
    photos = None if calibration is None else _find_calibration(calibration)
    sam = load_sam(checkpoint, model_type=model_type, weights=weights)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _hold_folder(output), TemporaryDirectory(dir=output, prefix=_WORK_PREFIX) as name:
            folder = Path(name)
            files = _write_graphs(sam, folder=folder, weights=weights, photos=photos)
            info = _describe(
                sam,
                checkpoint,
                model_type=model_type,
                weights=weights,
                quantization=None if photos is None else photos.describe(),
                files=files,
                defaults=defaults or {},
            )
            info = info.model_copy(update={"prompts_per_call": prompts_per_call or choose_call_size(folder, info)})
            (folder / MODEL_JSON).write_text(info.to_json(), encoding="utf-8")
            _publish(folder, output, keep_onnx=keep_onnx)
    except OSError as error:
        raise ModelError(f"can't write the model folder {output}: {error.strerror or error}") from error
    logger.info("%s: a model folder of %s, weights %s", output, info.model_type, weights)
    return info


@contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """The folder for one conversion at a time; what killed ones have left in it goes.

    Raises:
        ModelError: another one is at work there.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold_folder(folder))
        except BlockingIOError as error:
            raise ModelError(f"another conversion is writing {folder}; give another --output, or wait for it") from error
        for left in folder.glob(f"{_WORK_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _find_calibration(folder: Path) -> "Calibration":
    from labeler.quantize import find_calibration  # NNCF, which other conversions can do without.

    return find_calibration(folder)


def _write_graphs(sam: Sam, *, folder: Path, weights: Weights, photos: "Calibration | None") -> dict[str, str]:
    """Write ONNX and OpenVINO files of each graph; the sha256 of the latter by name."""
    for graph in graphs.GRAPHS:
        onnx_path = graphs.export_onnx(sam, graph=graph, folder=folder)
        graphs.onnx_to_openvino(onnx_path, xml_path=folder / f"{graph}.xml", compress=weights == "f16")
    if photos is not None:
        from labeler.quantize import quantize_encoder

        is_transformer = isinstance(sam.image_encoder, ImageEncoderViT)
        side = sam.image_encoder.img_size
        quantize_encoder(folder / "encoder.xml", calibration=photos, image_size=side, is_transformer=is_transformer)
    return {name: hash_file(folder / name) for graph in graphs.GRAPHS for name in (f"{graph}.xml", f"{graph}.bin")}


def _describe(
    sam: Sam,
    checkpoint: Path,
    *,
    model_type: str,
    weights: Weights,
    quantization: Quantization | None,
    files: Mapping[str, str],
    defaults: Mapping[str, Any],
) -> ModelInfo:
    encoder = sam.prompt_encoder
    return ModelInfo(
        model_type=model_type if model_type in PUBLISHED_ARCHITECTURES else Path(model_type).stem,
        architecture=read_architecture(model_type).model_dump(mode="json"),
        image_size=sam.image_encoder.img_size,
        embedding_shape=(1, encoder.embed_dim, *encoder.image_embedding_size),
        mask_threshold=sam.mask_threshold,
        defaults=defaults,
        prompts_per_call=1,  # Until it is measured.
        weights=weights,
        quantization=quantization,
        checkpoint_sha256=hash_file(checkpoint),
        files=files,
        tools=graphs.tool_versions() | ({} if quantization is None else {"nncf": metadata.version("nncf")}),
    )


def _publish(folder: Path, output: Path, *, keep_onnx: bool) -> None:
    """Move the finished files into place; in between, the folder has no ``model.json`` and so is no model."""
    if (output / MODEL_JSON).exists():  # Else these are somebody else's.
        for stale in (f"{graph}.onnx{suffix}" for graph in graphs.GRAPHS for suffix in ("", ".data")):
            (output / stale).unlink(missing_ok=True)
    (output / MODEL_JSON).unlink(missing_ok=True)
    names = sorted(path.name for path in folder.iterdir() if path.name != MODEL_JSON)
    for name in names:
        if keep_onnx or ".onnx" not in name:
            (folder / name).replace(output / name)
    (folder / MODEL_JSON).replace(output / MODEL_JSON)
