"""``python -m labeler``: one image, one command. Knows options and words; must not know how masks are made.

Names of ``labeler`` are used through its door, so that ``--help`` and ``convert`` load neither OpenVINO nor numba.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter
from cyclopts.validators import Number

import labeler
from labeler import rle, storage
from labeler.draw import paint_masks
from labeler.errors import ImageError, OptionsError, StorageError
from labeler.flags import (
    EXIT_CODES_HELP,
    EXIT_DONE,
    MaskFlags,
    PresetFlag,
    given_options,
    refuse_empty_arguments,
    run_command,
    tell_default,
)
from labeler.images import decode_image, encode_png
from labeler.limits import count_usable_cpus
from labeler.options import MaskOptions, Precision, check_given_options, name_prices, resolve_mask_options
from labeler.stores import parse_store_options, use_store_options
from labeler.types import MAX_POINTS, Bool, Image, MaskSet, Prompts, UInt32

app = App(
    name="python -m labeler",
    help="Find the masks of one image with Segment Anything, click and review on a page, or make a model ready for it.",
    help_epilogue=EXIT_CODES_HELP,
    version_flags=(),
    suppress_keyboard_interrupt=False,
    config=refuse_empty_arguments,
    default_parameter=Parameter(show_default=tell_default),
)

_MODEL_HELP = "A folder made by `convert`, its URI, vit_b, vit_l, vit_h, vit_t (MobileSAM), or `tiny` (embedded, weak)."
_Model = Annotated[str, Parameter(help=_MODEL_HELP)]
_STORE_HELP = "KEY=VALUE for fsspec, such as anon=true; everywhere, or for one place (model.anon=true) or URL."
_StoreOptions = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False, n_tokens=1, help=_STORE_HELP)]
_Threads = Annotated[int | None, Parameter(help="CPU threads to compute with. Default: all this process may use.")]
_Points = Annotated[tuple[str, ...], Parameter(negative=(), metavar="X,Y", show_default=False, n_tokens=1)]


INT8_COST = (
    "Beside f32, 66 % of the masks were found again (IoU >= 0.9), 7 % more in number, and recall of human-made regions was "
    "15.0 instead of 15.5 (an earlier tiny, 26 photos); measure yours: python -m benchmarks.precision, in the source tree"
)
"""Said when such a model is made."""


@app.command
def convert(
    *,
    model_type: str,
    checkpoint: str,
    output: str,
    weights: Literal["f16", "f32"] = "f16",
    precision: Literal["int8"] | None = None,
    calibration: str | None = None,
    prompts_per_call: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    keep_onnx: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Make a model folder of a SAM checkpoint: PyTorch -> ONNX -> OpenVINO. Needs the extra `convert`.

    ```
    python -m labeler convert --model-type vit_b --checkpoint sam_vit_b_01ec64.pth --output models/vit_b
    python -m labeler convert --model-type vit_b --checkpoint vit_b.pth --output int8 --precision int8 --calibration photos
    ```

    Args:
        model_type: vit_b, vit_l, vit_h, vit_t (MobileSAM), or a JSON file that describes a SAM of another size.
        checkpoint: The .pth file with its weights.
        output: The folder to write.
        weights: Precision of the weights on disk. What is computed in is chosen when labeling, by its `--precision`.
        precision: int8 quantizes the encoder to 8-bit integers: another model, whose masks differ; the rest stays as it is.
        calibration: For int8: a folder of photos like those to be labeled. 16 of them are taken, evenly over their names.
        prompts_per_call: How many prompts the model answers at a time. Not given: what is fastest here, measured.
        keep_onnx: Leave the ONNX files in the folder, too.
    """
    if (precision == "int8") != (calibration is not None):
        raise OptionsError("--precision int8 and --calibration FOLDER go together: the integers' ranges are measured on photos")
    checkpoint_path, output_path = _find_local("--checkpoint", checkpoint), _find_local("--output", output)
    photos = None if calibration is None else _find_local("--calibration", calibration)
    from labeler.convert import convert_checkpoint  # torch: the extra that no other command needs.

    start = time.perf_counter()
    info = convert_checkpoint(
        checkpoint_path,
        output=output_path,
        model_type=model_type,
        weights=weights,
        keep_onnx=keep_onnx,
        calibration=photos,
        prompts_per_call=prompts_per_call,
    )
    print(f"wrote {output}: {info.model_type}, input {info.image_size} px, weights {info.weights}, ", end="")
    print(f"{info.prompts_per_call} prompts a call, in {time.perf_counter() - start:.0f} s")
    if info.quantization is not None:
        print(f"encoder in INT8, calibrated with {info.quantization.num_images} photos. {INT8_COST}")
    return EXIT_DONE


@app.command
def masks(
    photo: str,
    /,
    *,
    model: _Model,
    output: str,
    overlay: str | None = None,
    preset: PresetFlag = None,
    threads: _Threads = None,
    storage_options: _StoreOptions = (),
    flags: Annotated[MaskFlags | None, Parameter(name="*", group="Mask options")] = None,
) -> int:
    """Find all masks of a photo and write them as JSON: the records of SAM's own amg.py, with COCO run lengths.

    Differs from amg.py in one thing: bbox and area are pycocotools' own of the mask (amg.py's boxes are a pixel short).

    ```
    python -m labeler masks photo.jpg --model vit_b --output masks.json --overlay masks.png
    python -m labeler masks photo.jpg --model vit_b --output masks.json --points-per-side 16 --crop-n-layers 1
    ```

    Args:
        photo: The image, a file or a URI.
        output: The JSON file to write.
        overlay: A PNG file to write: the photo with its masks painted over it.
    """
    given = given_options(flags)
    check_given_options(given, preset=preset)
    _open_stores(storage_options, photo=photo, model=model, output=output)
    folder, info = _find_model(model)
    options = resolve_mask_options(given, preset=preset, model_defaults=info.defaults)
    image = _read_photo(photo, options)
    for price in name_prices(options):
        print(price, file=sys.stderr)
    predictor = _load_predictor(folder, info, threads=threads, precision=options.precision)
    start = time.perf_counter()
    found, _ = labeler.generate_masks(image.pixels, predictor=predictor, options=options)
    seconds = time.perf_counter() - start
    records = _to_records(found)
    _write(output, json.dumps(records, separators=(",", ":"), allow_nan=False).encode())
    if overlay is not None:
        _write(overlay, encode_png(paint_masks(image.pixels, [found.runs(i) for i in range(len(found))])))
    print(f"wrote {output}: {len(records)} masks in {seconds:.1f} s")
    return EXIT_DONE


@app.command
def prompt(
    photo: str,
    /,
    *,
    model: _Model,
    output: str,
    point: _Points = (),
    negative: _Points = (),
    box: Annotated[str | None, Parameter(metavar="X0,Y0,X1,Y1")] = None,
    multimask: Annotated[bool, Parameter(negative=())] = False,
    overlay: str | None = None,
    threads: _Threads = None,
    storage_options: _StoreOptions = (),
    precision: Precision = "f32",
    exif: Literal["apply", "ignore"] = "apply",
) -> int:
    """Find the one mask that points or a box ask for, and write it as a black and white PNG of the photo's size.

    ```
    python -m labeler prompt photo.jpg --model vit_b --point 500,375 --output mask.png
    python -m labeler prompt photo.jpg --model vit_b --box 425,600,700,875 --negative 575,750 --output mask.png
    ```

    Args:
        photo: The image, a file or a URI.
        output: The PNG file to write: white is the mask.
        point: A point inside the object, in pixels of the photo. May be repeated.
        negative: A point outside the object. May be repeated.
        box: A box around the object: left, top, right, bottom.
        multimask: Ask for three masks (whole, part, smaller part) and write the one the model trusts most. Good for a
            single point, which may mean any of them.
        overlay: A PNG file to write: the photo with the mask painted over it.
        precision: What the CPU computes in.
        exif: Turn the photo upright as its EXIF orientation says, or take the stored pixels.
    """
    prompts = _parse_prompts(point, negative, box)
    _open_stores(storage_options, photo=photo, model=model, output=output)
    folder, info = _find_model(model)
    image = _read_photo(photo, resolve_mask_options({"exif": exif}))
    _check_inside(prompts, image, photo=photo)
    predictor = _load_predictor(folder, info, threads=threads, precision=precision)
    embedding = predictor.embed(image.pixels)
    answer = predictor.predict(embedding, prompts, multimask=multimask)
    best = int(answer.predicted_iou[0].argmax())
    mask: Bool = predictor.binarize(embedding, answer.logits[0, best : best + 1])[0]
    _write(output, encode_png(np.where(mask, np.uint8(255), np.uint8(0))))
    if overlay is not None:
        runs: list[UInt32] = [rle.mask_to_runs(mask)]
        _write(overlay, encode_png(paint_masks(image.pixels, runs)))
    print(f"wrote {output}: {int(mask.sum())} pixels, predicted IoU {answer.predicted_iou[0, best]:.3f}")
    return EXIT_DONE


@app.command
def serve(
    *,
    model: Annotated[str | None, Parameter(help=_MODEL_HELP)] = None,
    images: str | None = None,
    run: str | None = None,
    host: str = "127.0.0.1",
    known_as: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False, n_tokens=1)] = (),
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 7860,
    max_upload_mb: Annotated[int, Parameter(validator=Number(gte=1, lte=1024))] = 32,
    max_pixels: Annotated[int, Parameter(validator=Number(gte=1))] = 50_000_000,
    threads: _Threads = None,
    storage_options: _StoreOptions = (),
    precision: Precision = "f32",
) -> int:
    """Open a page to click on: masks of points and boxes, or of everything; or the review of a finished run. Needs `serve`.

    ```
    python -m labeler serve --model vit_b --images photos
    python -m labeler serve --run labels --model vit_b
    ```

    Args:
        images: A folder of photos to choose from; nothing outside of it can be opened. Others may be dropped on the page.
        run: The output of `jobs label`, to look at and to review. What is decided goes into its `review` folder and every
            export heeds it; its own tables stay as they are. With --model masks can be refined and drawn.
        host: The address to listen on. 0.0.0.0 lets in everybody on the network: nobody is asked for a password. The page
            answers to addresses and this machine's own name.
        known_as: Another name that it answers to: of a proxy before it, or of the machine that a container's port is
            published on. May be repeated.
        port: The port to listen on; 0 takes a free one.
        max_upload_mb: A larger file that is dropped is refused.
        max_pixels: A photo with more pixels is refused. (A run's photos are bound by the run's own option.)
        precision: What the CPU computes in.
    """
    if (model is None and run is None) or (images is not None and run is not None):
        raise OptionsError("say --model MODEL to click on photos, or --run OUTPUT (with --model or without) to review one")
    _open_stores(storage_options, model=model or "", images=images or "", run=run or "")
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")  # Read when gradio is imported.
    try:
        from labeler.pages.serve import serve_page  # gradio: the extra that no other command needs.
    except ImportError as error:
        raise OptionsError(f"the page needs gradio ({error}); pip install '.[serve]'") from error
    predictor = None if model is None else _load_predictor(*_find_model(model), threads=threads, precision=precision)
    serve_page(
        predictor,
        title=f"model {Path(model).name}" if model else "no model: look and reject",
        images=images,
        run=run,
        host=host,
        known_as=known_as,
        port=port,
        max_upload_bytes=max_upload_mb << 20,
        max_pixels=max_pixels,
        say=lambda line: print(line, flush=True),
    )
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    return run_command(app, arguments)


def _open_stores(options: Sequence[str], **places: str) -> None:
    """From now on stores are opened with these; a place on this machine's disk takes none."""
    urls = {name: place if "://" in place else None for name, place in places.items()}
    use_store_options(parse_store_options(options, places=urls))


def _find_local(flag: str, place: str) -> Path:
    """The path of a place on this machine's disk: a conversion reads and writes nothing else."""
    path = storage.uri_to_path(place)
    if path is None:
        raise OptionsError(
            f"{flag} {place}: a conversion works on this machine's disk; copy the files there first, or the finished folder "
            "to the store afterwards (model.json last)"
        )
    return path


def _find_model(name: str) -> tuple[Path, Any]:
    folder = labeler.find_model(name)
    return folder, labeler.read_model_info(folder)


def _load_predictor(folder: Path, info: Any, *, threads: int | None, precision: Precision) -> "labeler.Predictor":
    if threads is not None and threads < 1:
        raise OptionsError(f"--threads: must be at least 1, not {threads}")
    engine = labeler.Engine(folder, info, threads=threads or count_usable_cpus(), precision=precision)
    return labeler.Predictor(engine, info)


def _read_photo(photo: str, options: MaskOptions) -> Image:
    """The decoded photo. Every error names the file: here it is the only one."""
    try:
        return decode_image(storage.read_bytes(storage.path_to_uri(photo)), exif=options.exif, max_pixels=options.max_pixels)
    except FileNotFoundError as error:
        raise StorageError(f"{photo} does not exist") from error
    except PermissionError as error:
        raise StorageError(f"{photo} may not be read: permission denied") from error
    except ImageError as error:
        raise ImageError(error.kind, f"{photo} can't be labeled: {error.reason}") from error


def _write(target: str, data: bytes) -> None:
    storage.write_bytes(storage.path_to_uri(target), data)


def _to_records(found: MaskSet) -> list[dict[str, Any]]:
    """amg.py's records: the rows of the masks table without what names the image."""
    from labeler.tables import masks_to_batch  # Arrow, for this command alone.

    rows: list[dict[str, Any]] = masks_to_batch(found, image_id=0, file_name="").to_pylist()
    return [{k: v for k, v in row.items() if k not in ("image_id", "mask_id", "file_name")} for row in rows]


def _parse_prompts(points: Sequence[str], negatives: Sequence[str], box: str | None) -> Prompts:
    """One prompt of all points and the box."""
    if not points and not negatives and box is None:
        raise OptionsError("a prompt needs a --point or a --box")
    inside = [_parse_numbers(text, "--point", names="x,y") for text in points]
    outside = [_parse_numbers(text, "--negative", names="x,y") for text in negatives]
    if len(inside) + len(outside) > MAX_POINTS:
        raise OptionsError(f"--point, --negative: at most {MAX_POINTS} points, not {len(inside) + len(outside)}")
    corners = None if box is None else _parse_numbers(box, "--box", names="x0,y0,x1,y1")
    if corners is not None and not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise OptionsError(f"--box: {box} is empty; it is left,top,right,bottom")
    return Prompts(
        points_xy=np.array(inside + outside, np.float64).reshape(1, -1, 2),
        labels=np.array([[1] * len(inside) + [0] * len(outside)], np.int32),
        boxes_xyxy=None if corners is None else np.array([corners], np.float64),
    )


def _parse_numbers(text: str, flag: str, *, names: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != names.count(",") + 1 or not np.isfinite(numbers).all():
        raise OptionsError(f"{flag}: {text!r} is not {names} in pixels")
    return numbers


def _check_inside(prompts: Prompts, image: Image, *, photo: str) -> None:
    """A point beside the photo is a slip of the keyboard; the model would answer anything."""
    height, width = image.hw
    corners = np.zeros((0, 2)) if prompts.boxes_xyxy is None else prompts.boxes_xyxy.reshape(-1, 2)
    for x, y in [*prompts.points_xy.reshape(-1, 2).tolist(), *corners.tolist()]:
        if not (0 <= x <= width and 0 <= y <= height):
            raise OptionsError(f"{x:g},{y:g} is outside of {photo}, which is {width} x {height} pixels")
