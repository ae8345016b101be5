"""Image files to upright RGB pixels, by Pillow; resizing as SAM does it; PNG.

Must not know where the bytes come from, nor what is done with the pixels. Every failure of a decoder becomes an
``ImageError`` here: no other module sees Pillow's exceptions.

What is scaled: 16-bit gray and 16-bit RGB of PNG and TIFF, integers and floats of 32 bits, by their own finite minimum
and maximum (of all three channels together). JPEG 2000, AVIF and PPM declare their depth and come scaled by it; 16-bit
CMYK and premultiplied TIFF keep their high bytes, as Pillow reads them, and a warning says so.
"""

import contextlib
import re
import sys
import warnings
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageCms, ImageFile, TiffImagePlugin

from labeler import sniff
from labeler.errors import ErrorKind, ImageError
from labeler.options import Exif, MaskOptions
from labeler.orientation import TURNING, invert, turn_hw, turn_pixels
from labeler.types import Image, Size, UInt8, UInt16

DEFAULT_MAX_PIXELS: int = MaskOptions.model_fields["max_pixels"].default

IMAGE_EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".tif", ".tiff", ".bmp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".tga", ".pcx", ".sgi"),
        *(".qoi", ".psd", ".dds", ".heic", ".heif", ".jxl"),
    }
)
"""Extensions of files taken for images, in lower case. HEIC and JPEG XL can't be read here: their rows say so."""

# Tried in this order; TGA has no signature, so it comes last. Left out on purpose: EPS (starts Ghostscript), WMF, PDF,
# and formats that Pillow only names. Contents decide, never the file's name.
_FORMATS = (
    *("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "PSD", "QOI", "DDS", "ICO", "SGI", "PCX"),
    "TGA",
)

_MAY_LACK_PIXELS = ("JPEG", "MPO", "JPEG2000")  # Decoders that may fill up what is not there, and say nothing.
_MAY_LACK_END = ("PNG", "GIF", "BMP")  # Decoders that fail where a pixel is missing, and only there.

_ORIENTATION_TAG = 0x0112
_PHOTOMETRIC_TAG = 0x0106

# Pillow reads 16-bit colour as its high bytes. Read again in the other byte order, the same file gives the low bytes.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # N: the machine's own.
_LOW_BYTES = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA", "RGBX") for a, b in _OTHER_ORDER.items()}
_GRAY_ALPHA_16 = "LA;16B"  # Two 16-bit numbers a pixel, big-endian: four bytes, read as if they were RGBA.

# Pillow has no exception classes for these two; the words are its own, and tests hold them.
_SAYS_TRUNCATED = re.compile(r"truncated|not enough image data|end of file|reached eof", re.IGNORECASE)
_SAYS_UNSUPPORTED = re.compile(r"unsupported|unknown pixel mode|cannot handle|not available|not yet supported", re.IGNORECASE)

_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode_image(data: bytes, *, exif: Exif = "apply", max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """The picture in a file's bytes: its first frame or page, RGB, upright unless ``exif`` is ``ignore``.

    Alpha is dropped (the colours under it stay), gray replicated, CMYK and LAB go through their profiles; a profile of
    an RGB picture is not applied, as trainers' loaders don't either. ``pixels`` is read-only.

    Args:
        data: the whole file.
        exif: whether its EXIF or XMP orientation is applied. It is recorded in any case.
        max_pixels: width times height allowed, checked before anything is decoded.

    Raises:
        ImageError: ``unsupported``, ``truncated``, ``corrupt``, ``too_large`` or ``too_small``, and a sentence.
    """
    _prepare_pillow(max_pixels)
    try:
        return _decode_or_mend(data, exif=exif, max_pixels=max_pixels)
    except MemoryError as error:
        raise ImageError("too_large", "decoding it takes more memory than there is") from error


def resize_image(pixels: UInt8, *, size_hw: Size) -> UInt8:
    """Resize (H, W, 3) to ``size_hw`` by Pillow's antialiased bilinear filter: bit for bit SAM's own preprocessing."""
    height, width = size_hw
    return np.asarray(PillowImage.fromarray(pixels).resize((width, height), PillowImage.Resampling.BILINEAR))


def encode_png(pixels: UInt8 | UInt16) -> bytes:
    """A PNG file of (H, W, 3) RGB or (H, W) gray pixels, gray ones of 16 bits, too. Equal pixels give equal bytes."""
    buffer = BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _prepare_pillow(max_pixels: int) -> None:
    """Process-wide settings of Pillow, which has no others. Both change one way only, so threads can't disagree."""
    # Nobody reads Pillow's warnings in a job's log; what matters of them is found anew and kept in ``Image.warnings``.
    # ``catch_warnings`` would not be safe beside other threads. Looked up each time, because others reset the filters.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    # Pillow's decoders refuse more than twice this many pixels, in places that ``max_pixels`` can't reach. That stands
    # until somebody allows more.
    limit = PillowImage.MAX_IMAGE_PIXELS
    if limit is not None and 2 * limit < max_pixels:
        PillowImage.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2


def _decode_or_mend(data: bytes, *, exif: Exif, max_pixels: int) -> Image:
    try:
        return _decode(data, exif=exif, max_pixels=max_pixels)
    except ImageError as error:
        mended = _decode_mended(data, exif=exif, max_pixels=max_pixels) if error.kind in ("truncated", "corrupt") else None
        if mended is None:
            raise
        return mended


def _decode(data: bytes, *, exif: Exif, max_pixels: int) -> Image:
    picture = _open(data)
    image_format = picture.format or ""
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels are more than the {max_pixels} allowed by max_pixels")
    num_frames, notes = _count_frames(data, picture)
    turned_by_pillow = image_format == "TIFF"  # Its pixels arrive upright, and say nothing of it any more.
    if turned_by_pillow:
        orientation, exif_notes = _read_orientation(picture)
    pixels, pixel_notes = _read_pixels(data, picture)
    if not turned_by_pillow:
        orientation, exif_notes = _read_orientation(picture)
    if image_format in _MAY_LACK_PIXELS and sniff.is_cut_short(data, image_format=image_format):
        raise ImageError("truncated", f"the {image_format} file breaks off")
    if image_format in _MAY_LACK_END and sniff.is_cut_short(data, image_format=image_format):
        pixel_notes = [*pixel_notes, "the file lacks its last bytes; all pixels are there"]
    if exif == "apply":
        upright = pixels if turned_by_pillow else turn_pixels(pixels, orientation)
        stored_hw = turn_hw((upright.shape[0], upright.shape[1]), orientation)
    else:
        upright = turn_pixels(pixels, invert(orientation)) if turned_by_pillow else pixels
        stored_hw = upright.shape[:2]
    upright = np.ascontiguousarray(upright)
    upright.flags.writeable = False
    return Image(
        pixels=upright,
        stored_hw=stored_hw,
        exif_orientation=orientation,
        num_frames=num_frames,
        warnings=(*notes, *exif_notes, *pixel_notes),
    )


def _decode_mended(data: bytes, *, exif: Exif, max_pixels: int) -> Image | None:
    """The image as mended bytes give it, or None where they don't, or where it depends on how they were mended."""
    image_format = _find_format(data)
    repair = sniff.propose_repair(data, image_format=image_format) if image_format else None
    if repair is None:
        return None
    first: Image | None = None
    for version in repair.versions:
        try:
            image = _decode(version, exif=exif, max_pixels=max_pixels)
        except ImageError:
            return None
        if first is not None and not np.array_equal(image.pixels, first.pixels):
            return None
        first = first or image
    return None if first is None else replace(first, warnings=(*first.warnings, repair.warning))


def _find_format(data: bytes) -> str | None:
    """Pillow's name of the format these bytes begin as."""
    PillowImage.init()
    for name in _FORMATS:
        accept = PillowImage.OPEN[name][1] if name in PillowImage.OPEN else None
        with contextlib.suppress(IndexError):  # Before Pillow 12 some look at a second byte, whether it is there or not.
            if accept is not None and accept(data[:16]) is True:
                return name
    return None


def _open(data: bytes) -> ImageFile.ImageFile:
    """Reads the header. ``Image.open`` would hide why a decoder refuses, and refuse what ``max_pixels`` allows."""
    name = _find_format(data)
    if name is None and sniff.describe_bytes(data) is not None:
        raise _blame(data, None, ValueError("no signature"))
    try:
        picture = PillowImage.OPEN[name or "TGA"][0](BytesIO(data), "")
    except Exception as error:  # Whatever a decoder throws here, it is about these bytes: none of our code runs.
        raise _blame(data, name, error) from error
    return picture


def _blame(data: bytes, image_format: str | None, error: Exception) -> ImageError:
    """What to say of bytes that a decoder refused."""
    described = sniff.describe_bytes(data) if image_format in (None, "AVIF") else None  # HEIC may pose as AVIF.
    if described is not None:
        return ImageError(*described)
    if image_format is None:
        return ImageError("corrupt", "the file is no image of a known format")
    if isinstance(error, PillowImage.DecompressionBombError | MemoryError):
        return ImageError("too_large", f"the {image_format} file declares a picture too large to decode: {error}")
    if sniff.has_no_pixels(data, image_format=image_format):
        return ImageError("too_small", f"the {image_format} picture has no pixels")
    kind: ErrorKind = "corrupt"
    if isinstance(error, NotImplementedError) or _SAYS_UNSUPPORTED.search(str(error)):
        kind = "unsupported"
    elif _SAYS_TRUNCATED.search(str(error)) or sniff.is_cut_short(data, image_format=image_format):
        kind = "truncated"
    verb = {"unsupported": "is of a kind not read here", "truncated": "breaks off"}.get(kind, "can't be decoded")
    return ImageError(kind, f"the {image_format} file {verb} ({str(error) or type(error).__name__})")


def _count_frames(data: bytes, picture: ImageFile.ImageFile) -> tuple[int, list[str]]:
    """Frames or pages in the file, and what to say of more than one. A PSD's layers are no frames."""
    if picture.format == "PSD":
        return 1, []
    try:
        # Counting reads on through GIF and TIFF files and may end anywhere, so it is done on a second opening.
        counted = _open(data) if picture.format in ("GIF", "TIFF") else picture
        num_frames = int(getattr(counted, "n_frames", 1))
    except Exception:  # Pillow's parser over the file's bytes, as in _open. The first frame may still be sound.
        return 1, ["its further frames or pages can't be counted; the first is used"]
    return num_frames, [f"{num_frames} frames or pages; only the first is used"] if num_frames > 1 else []


def _read_orientation(picture: ImageFile.ImageFile) -> tuple[int, list[str]]:
    """EXIF orientation 1 to 8 (or XMP's, where EXIF has none), 1 where the file says nothing that makes sense."""
    broken = ["its EXIF block is broken and was ignored"]
    try:
        value = picture.getexif().get(_ORIENTATION_TAG)
    except Exception:  # Pillow's parser over the file's bytes, as in _open. Metadata never costs an image.
        return 1, broken
    block = picture.info.get("exif")
    notes = broken if isinstance(block, bytes) and sniff.exif_is_broken(block) else []
    if value is None or value == 1:
        return 1, notes
    if isinstance(value, int) and value in TURNING:
        return value, notes
    return 1, [*notes, f"its EXIF orientation {value!r} is not 1 to 8 and was ignored"]


def _read_pixels(data: bytes, picture: ImageFile.ImageFile) -> tuple[UInt8, list[str]]:
    """(H, W, 3) uint8, as Pillow delivers them: not yet upright, but of TIFF."""
    raw_modes = [t.args if isinstance(t.args, str) else t.args[0] if t.args else "" for t in picture.tile]
    if raw_modes and all(m == _GRAY_ALPHA_16 for m in raw_modes):
        picture.tile = [t._replace(args="RGBA") for t in picture.tile]
        bytes_of_gray = np.asarray(_load(data, picture)).astype(np.uint16)
        return _replicate(_scale(bytes_of_gray[..., 0] << 8 | bytes_of_gray[..., 1])), []
    if raw_modes and all(m in _LOW_BYTES for m in raw_modes):
        again = _open(data)
        again.tile = [
            t._replace(args=_LOW_BYTES[t.args] if isinstance(t.args, str) else (_LOW_BYTES[t.args[0]], *t.args[1:]))
            for t in again.tile
            if t.args
        ]
        high, low = (np.asarray(_load(data, p))[..., :3] for p in (picture, again))
        return _scale(high.astype(np.uint16) << 8 | low), []
    notes = ["its 16-bit colours were read as 8-bit"] if any(";16" in str(m) for m in raw_modes) else []
    loaded = _load(data, picture)
    if loaded.mode == "F" or loaded.mode.startswith("I"):
        gray = _scale(np.asarray(loaded))
        return _replicate(255 - gray if _white_is_zero(picture) else gray), []
    try:
        rgb, profile_notes = _to_rgb(loaded)
    except (ValueError, OSError) as error:
        raise _blame(data, picture.format, error) from error
    return np.asarray(rgb), [*notes, *profile_notes]


def _white_is_zero(picture: ImageFile.ImageFile) -> bool:
    """Whether a TIFF's numbers fall where it gets lighter. Of more than 8 bits Pillow gives them as they stand."""
    return isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tag_v2.get(_PHOTOMETRIC_TAG) == 0


def _load(data: bytes, picture: ImageFile.ImageFile) -> ImageFile.ImageFile:
    try:
        picture.load()
    except Exception as error:  # As in _open: only decoders run here.
        raise _blame(data, picture.format, error) from error
    return picture


def _to_rgb(picture: PillowImage.Image) -> tuple[PillowImage.Image, list[str]]:
    if picture.mode not in ("CMYK", "LAB"):
        opaque = picture.convert("LA") if picture.mode == "La" else picture
        return (opaque if opaque.mode == "RGB" else opaque.convert("RGB")), []
    srgb = ImageCms.createProfile("sRGB")
    notes: list[str] = []
    block = picture.info.get("icc_profile")
    if block:
        try:
            profile = ImageCms.ImageCmsProfile(BytesIO(block))
            transform = ImageCms.buildTransform(profile, srgb, picture.mode, "RGB")
            return _apply_transform(picture, transform), []
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes = ["its colour profile is broken and was ignored"]
    if picture.mode == "CMYK":
        return picture.convert("RGB"), notes
    lab = ImageCms.createProfile("LAB")  # CIELAB of D50, which is what TIFF's is.
    return _apply_transform(picture, ImageCms.buildTransform(lab, srgb, "LAB", "RGB")), notes


def _apply_transform(picture: PillowImage.Image, transform: ImageCms.ImageCmsTransform) -> PillowImage.Image:
    converted = ImageCms.applyTransform(picture, transform)
    if converted is None:
        raise ValueError("the colour transform gave no picture")
    return converted


def _scale(values: NDArray[Any]) -> UInt8:
    """Numbers -> 0 to 255 by their own finite minimum and maximum. All equal -> 0; NaN -> 0; infinities -> the ends."""
    scaled: UInt8 = np.zeros(values.shape, np.uint8)
    rows = max(1, (1 << 20) // max(1, values[0].size))  # In blocks of rows: doubles of a whole large picture are many.
    blocks = [slice(start, start + rows) for start in range(0, len(values), rows)]
    ends: list[float] = []
    for block in blocks:
        finite = values[block][np.isfinite(values[block])]
        ends += [float(finite.min()), float(finite.max())] if finite.size else []
    if not ends or min(ends) == max(ends):
        return scaled
    low, high = min(ends), max(ends)
    for block in blocks:
        with np.errstate(invalid="ignore"):  # Files may hold NaNs of the kind that says so when it is copied.
            numbers = np.nan_to_num(values[block].astype(np.float64), nan=low, posinf=high, neginf=low)
        scaled[block] = np.rint((numbers - low) * (255.0 / (high - low)))
    return scaled


def _replicate(gray: UInt8) -> UInt8:
    return np.repeat(gray[..., np.newaxis], 3, axis=2)
