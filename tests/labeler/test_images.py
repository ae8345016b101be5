"""Every kind of image file, whole or broken, is either upright RGB pixels or an ImageError that says why not."""

import csv
import json
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageCms, ImageOps, PngImagePlugin

from labeler import images
from labeler.errors import ImageError
from labeler.types import Image

BAD_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "bad_images"
HEIGHT, WIDTH = 45, 67


def make_picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth, with a noisy patch and no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 3 % 256, y * 5 % 256, (x * 2 + y * 7) % 256], axis=-1).astype(np.uint8)
    pixels[5:20, 10:40] = np.random.default_rng(0).integers(0, 256, (15, 30, 3))
    return pixels


PICTURE = make_picture()


def save(pixels: np.ndarray | PillowImage.Image, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def make_png(pixels: np.ndarray, *, colour_type: int, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A PNG written by hand, for what Pillow does not write: 16-bit colour, odd chunks."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = pixels.shape[:2]
    depth = pixels.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *(chunk(*e) for e in extra), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def scale(values: np.ndarray) -> np.ndarray:
    """Numbers -> 0 to 255 by their own finite range, written as plainly as can be."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = finite.min(), finite.max()
    clipped = np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high)
    return np.rint((clipped - low) / (high - low) * 255).astype(np.uint8)


def replicate(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


def decode_error(data: bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        images.decode_image(data, **options)
    return caught.value


def try_decoding(data: bytes, **options: Any) -> Image | ImageError:
    try:
        return images.decode_image(data, **options)
    except ImageError as error:
        return error


# --- pixels of every kind


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        *(("PNG", {}), ("BMP", {}), ("PPM", {}), ("TGA", {}), ("QOI", {}), ("PCX", {}), ("SGI", {}), ("DDS", {})),
        *(("WEBP", {"lossless": True}), ("JPEG2000", {}), ("AVIF", {"quality": 100, "subsampling": "4:4:4"})),
        *(("TIFF", {"compression": c}) for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
        *(("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("GIF", {})),
    ],
)
def test_rgb_of_every_format_is_what_pillow_reads(image_format: str, options: dict[str, Any]) -> None:
    """A plain 8-bit file: read-only RGB, and not a word about it."""
    data = save(PICTURE, image_format, **options)
    with PillowImage.open(BytesIO(data)) as expected:
        np.testing.assert_array_equal(images.decode_image(data).pixels, np.asarray(expected.convert("RGB")))
    image = images.decode_image(data)
    assert (image.hw, image.stored_hw) == ((HEIGHT, WIDTH), (HEIGHT, WIDTH))
    assert (image.exif_orientation, image.num_frames, image.warnings) == (1, 1, ())
    assert image.pixels.flags.c_contiguous
    assert not image.pixels.flags.writeable


def test_gray_is_replicated_and_bilevel_is_black_and_white() -> None:
    """L and 1-bit."""
    gray = PICTURE[..., 0]
    np.testing.assert_array_equal(images.decode_image(save(gray, "PNG")).pixels, replicate(gray))
    bilevel = images.decode_image(save(PillowImage.fromarray(gray > 99), "PNG")).pixels
    np.testing.assert_array_equal(bilevel, replicate(np.where(gray > 99, 255, 0)))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_and_the_colours_under_it_stay(image_format: str) -> None:
    """Also where alpha is 0: what trainers' loaders do."""
    rgba = np.dstack([PICTURE, PICTURE[..., 1]])
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    np.testing.assert_array_equal(images.decode_image(save(rgba, image_format, **options)).pixels, PICTURE)
    if image_format != "WEBP":
        gray_alpha = PillowImage.fromarray(PICTURE[..., :2], "LA")
        np.testing.assert_array_equal(images.decode_image(save(gray_alpha, image_format)).pixels, replicate(PICTURE[..., 0]))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_palettes_are_looked_up_and_their_transparency_dropped(transparency: int | bytes | None) -> None:
    """P, with one transparent entry, and with an alpha for each."""
    palette = PillowImage.fromarray(PICTURE).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(images.decode_image(save(palette, "PNG", **options)).pixels, expected)


def test_cmyk_without_a_profile_is_converted_plainly() -> None:
    """JPEG (stored inverted, as Adobe does) and TIFF (not inverted) give the same, and white paper is white."""
    cmyk = PillowImage.fromarray(PICTURE).convert("CMYK")
    expected = np.asarray(cmyk.convert("RGB"))
    np.testing.assert_array_equal(images.decode_image(save(cmyk, "TIFF")).pixels, expected)
    jpeg = images.decode_image(save(cmyk, "JPEG", quality=100, subsampling=0)).pixels
    assert np.abs(jpeg.astype(int) - expected).mean() < 2
    assert images.decode_image(save(PillowImage.new("CMYK", (8, 8), 0), "JPEG")).pixels.min() >= 254


def test_a_broken_cmyk_profile_is_ignored_with_a_warning() -> None:
    """The picture is still there without it."""
    cmyk = PillowImage.fromarray(PICTURE).convert("CMYK")
    image = images.decode_image(save(cmyk, "TIFF", icc_profile=b"no profile"))
    np.testing.assert_array_equal(image.pixels, np.asarray(cmyk.convert("RGB")))
    assert image.warnings == ("its colour profile is broken and was ignored",)


def make_cmyk_profile() -> bytes:
    """An ICC profile of a printer with cyan, magenta, yellow and black inks: each amount of each is given a colour in LAB."""

    def tag(kind: bytes, body: bytes) -> bytes:
        return (kind + bytes(4) + body).ljust((len(body) + 11) // 4 * 4, b"\0")

    cyan, magenta, yellow, black = np.moveaxis(np.indices((2, 2, 2, 2)), 0, 0)  # In this order: black varies fastest.
    lightness = 255 - 70 * cyan - 80 * magenta - 20 * yellow - 85 * black
    lab = np.stack([lightness, 128 - 40 * cyan + 70 * magenta, 128 - 45 * cyan + 90 * yellow], axis=-1).astype(np.uint8)
    table = struct.pack(">4B9I", 4, 3, 2, 0, *[65536 * (i % 4 == 0) for i in range(9)])  # Two points an ink; identity.
    table += bytes(range(256)) * 4 + lab.tobytes() + bytes(range(256)) * 3
    tags = {
        b"desc": tag(b"desc", struct.pack(">I", 5) + b"inks\0" + bytes(78)),
        b"cprt": tag(b"text", b"free\0"),
        b"wtpt": tag(b"XYZ ", struct.pack(">3I", 63190, 65536, 54061)),
        b"A2B0": tag(b"mft1", table),
    }
    index, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        index += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s12x4s", 0, b"test", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp")
    header = header.ljust(68, b"\0") + struct.pack(">3I", 63190, 65536, 54061)  # The light of the connection space: D50.
    profile = header.ljust(128, b"\0") + index + body
    return struct.pack(">I", len(profile)) + profile[4:]


@pytest.mark.parametrize("image_format", ["TIFF", "JPEG"])
def test_a_cmyk_profile_is_applied(image_format: str) -> None:
    """The colours are littleCMS's own by the file's profile, not the plain formula's."""
    cmyk = PillowImage.fromarray(PICTURE).convert("CMYK")
    data = save(cmyk, image_format, icc_profile=make_cmyk_profile())
    with PillowImage.open(BytesIO(data)) as picture:
        profile = ImageCms.ImageCmsProfile(BytesIO(picture.info["icc_profile"]))
        expected = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        plain = np.asarray(picture.convert("RGB"))
    image = images.decode_image(data)
    assert image.warnings == ()
    np.testing.assert_array_equal(image.pixels, np.asarray(expected))
    assert np.abs(image.pixels.astype(int) - plain).mean() > 5


def test_inks_have_the_colours_of_their_profile() -> None:
    """Bare paper is white, half black a gray of lightness 83, and each other ink swallows its light."""
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0]]], np.uint8)
    data = save(PillowImage.fromarray(inks, "CMYK"), "TIFF", icc_profile=make_cmyk_profile())
    white, gray, *colours = images.decode_image(data).pixels[0].astype(int)
    assert white.min() >= 254
    assert np.abs(gray - 207).max() <= 2  # sRGB's number of lightness 83.3.
    assert [int(colour.argmin()) for colour in colours] == [0, 1, 2]


def test_lab_comes_back_as_the_colours_it_was_made_of() -> None:
    """LAB TIFF, within rounding of 8-bit LAB."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    smooth = np.stack([np.linspace(40, 220, 64), np.full(64, 120), np.linspace(200, 60, 64)], axis=-1)
    pixels = np.repeat(smooth[np.newaxis], 8, axis=0).astype(np.uint8)
    there = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    encoded = ImageCms.applyTransform(PillowImage.fromarray(pixels), there)
    back = images.decode_image(save(encoded, "TIFF")).pixels
    assert np.abs(back.astype(int) - pixels).mean() < 1.5
    assert np.abs(back.astype(int) - pixels).max() < 12


def test_ycbcr_tiff_is_converted() -> None:
    """Within rounding of the way there and back. Compressed: Pillow 12 can't read back what it writes without."""
    ycbcr = PillowImage.fromarray(PICTURE).convert("YCbCr")
    back = images.decode_image(save(ycbcr, "TIFF", compression="tiff_lzw")).pixels
    assert np.abs(back.astype(int) - PICTURE).max() <= 3


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "PA", "La", "RGBa", "RGBX", "1", "LA"])
def test_every_other_mode_of_pillow_has_a_way_to_rgb(mode: str) -> None:
    """Modes that hardly any file has."""
    picture = PillowImage.new(mode, (4, 3))
    converted, notes = images._to_rgb(picture)
    assert (converted.mode, converted.size, notes) == ("RGB", (4, 3), [])


TWELVE_BIT = np.random.default_rng(1).integers(100, 4096, (HEIGHT, WIDTH)).astype(np.uint16)


@pytest.mark.parametrize(
    "values",
    [
        TWELVE_BIT,
        TWELVE_BIT.astype(np.int32) * 100_000 - 1_000_000,
        TWELVE_BIT.astype(np.float32) / 4096,
        (TWELVE_BIT.astype(np.float64) * 1.5e35 - 3e38).astype(np.float32),
    ],
    ids=["uint16", "int32", "float32", "float32 of the whole range"],
)
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_deep_gray_is_scaled_by_its_own_range(values: np.ndarray, compression: str) -> None:
    """Not by its type's: 12-bit numbers in a 16-bit file would be nearly black."""
    image = images.decode_image(save(PillowImage.fromarray(values), "TIFF", compression=compression))
    np.testing.assert_array_equal(image.pixels, replicate(scale(values)))
    assert (image.pixels.min(), image.pixels.max(), image.warnings) == (0, 255, ())


def test_big_endian_16_bit_gray_is_scaled_too() -> None:
    """TIFF's I;16B, PNG's and PGM's 16 bits."""
    motorola = PillowImage.frombytes("I;16B", (WIDTH, HEIGHT), TWELVE_BIT.astype(">u2").tobytes())
    pgm = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + TWELVE_BIT.astype(">u2").tobytes()
    for data in (save(motorola, "TIFF"), make_png(TWELVE_BIT, colour_type=0), pgm):
        np.testing.assert_array_equal(images.decode_image(data).pixels, replicate(scale(TWELVE_BIT)))


def test_numbers_that_are_none_and_infinities_do_not_spoil_the_range() -> None:
    """NaN and -inf are black, +inf is white, the rest is scaled by what is finite."""
    values = np.linspace(-3, 5, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    values[0, :3] = [np.nan, -np.inf, np.inf]
    pixels = images.decode_image(save(PillowImage.fromarray(values), "TIFF")).pixels
    assert pixels[0, :3, 0].tolist() == [0, 0, 255]
    np.testing.assert_array_equal(pixels, replicate(scale(values)))


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
def test_equal_numbers_are_black(value: float) -> None:
    """There is no range to scale by."""
    data = save(PillowImage.fromarray(np.full((4, 5), value, np.float32)), "TIFF")
    assert images.decode_image(data).pixels.max() == 0


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_of_png_is_scaled_in_all_its_bits(channels: int) -> None:
    """By the range of red, green and blue together; alpha has no say. Pillow alone would keep the high bytes."""
    values = np.random.default_rng(2).integers(100, 4096, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    image = images.decode_image(make_png(values, colour_type={3: 2, 4: 6}[channels]))
    np.testing.assert_array_equal(image.pixels, scale(values[..., :3]))
    assert image.warnings == ()


def test_16_bit_gray_with_alpha_of_png_is_scaled() -> None:
    """Pillow reads it as 8-bit RGBA."""
    values = np.dstack([TWELVE_BIT, np.full_like(TWELVE_BIT, 65535)])
    np.testing.assert_array_equal(images.decode_image(make_png(values, colour_type=4)).pixels, replicate(scale(TWELVE_BIT)))


@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_of_tiff_is_scaled_in_all_its_bits(compression: int, channels: int) -> None:
    """Uncompressed, LZW and deflate: Pillow reads them by two different ways."""
    cv2 = pytest.importorskip("cv2", reason="writes 16-bit colour TIFF")
    values = np.random.default_rng(2).integers(100, 4096, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    order = [2, 1, 0, 3][:channels]
    _, data = cv2.imencode(".tiff", values[..., order], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    np.testing.assert_array_equal(images.decode_image(data.tobytes()).pixels, scale(values[..., :3]))


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_used_and_the_number_said(image_format: str) -> None:
    """Animations, pages, and the pictures of a multi-picture JPEG."""
    first, others = PICTURE, [PillowImage.fromarray(np.roll(PICTURE, n, axis=1)) for n in (9, 21)]
    options = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}}.get(image_format, {})
    image = images.decode_image(save(first, image_format, save_all=True, append_images=others, **options))
    assert image.num_frames == 3
    assert image.warnings == ("3 frames or pages; only the first is used",)
    assert np.abs(image.pixels.astype(int) - first).mean() < 12  # GIF has 256 colours, JPEG is lossy.


def test_a_gif_that_breaks_off_in_a_later_frame_still_has_its_first() -> None:
    """The count is what is there."""
    whole = save(PICTURE, "GIF", save_all=True, append_images=[PillowImage.fromarray(PICTURE[::-1])] * 2)
    image = images.decode_image(whole[: len(whole) - 400])
    np.testing.assert_array_equal(image.pixels, images.decode_image(whole).pixels)
    assert "the file lacks its last bytes; all pixels are there" in image.warnings


# --- orientation


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    methods = [None, None, *(PillowImage.Transpose(m) for m in (0, 3, 1, 5, 4, 6, 2))]
    method = methods[orientation]
    return pixels if method is None else np.asarray(PillowImage.fromarray(pixels).transpose(method))


def orientation_exif(orientation: int) -> PillowImage.Exif:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    return exif


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "TIFF LZW", "PNG XMP", "TIFF XMP", "WEBP XMP"])
def test_orientation_is_applied_or_ignored_and_recorded_in_any_case(image_format: str, orientation: int) -> None:
    """All eight, by EXIF and by XMP, in the lossless formats that have them, with the stored size told."""
    name, *rest = image_format.split()
    stored = turn(PICTURE, orientation)
    options: dict[str, Any] = {"lossless": True} if name == "WEBP" else {}
    if rest == ["XMP"]:
        text = xmp(orientation)
        options |= {"tiffinfo": {700: text}} if name == "TIFF" else {"xmp": text}
        if name == "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", text.decode())
            options = {"pnginfo": info}
    else:
        options |= {"exif": orientation_exif(orientation)}
    if rest == ["LZW"]:
        options |= {"compression": "tiff_lzw"}
    data = save(stored, name, **options)

    applied = images.decode_image(data)
    np.testing.assert_array_equal(applied.pixels, turn(stored, orientation))
    ignored = images.decode_image(data, exif="ignore")
    np.testing.assert_array_equal(ignored.pixels, stored)
    for image in (applied, ignored):
        assert (image.stored_hw, image.exif_orientation, image.warnings) == (stored.shape[:2], orientation, ())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_is_what_exif_transpose_makes_of_it(orientation: int) -> None:
    """The reference is Pillow's own, on the same file."""
    data = save(PICTURE, "JPEG", exif=orientation_exif(orientation))
    with PillowImage.open(BytesIO(data)) as picture:
        transposed = ImageOps.exif_transpose(picture)
    image = images.decode_image(data)
    np.testing.assert_array_equal(image.pixels, np.asarray(transposed))
    assert (image.exif_orientation, image.stored_hw) == (orientation, (HEIGHT, WIDTH))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_is_none_is_ignored_with_a_warning(value: int) -> None:
    """There is no ninth way to turn a picture."""
    image = images.decode_image(save(PICTURE, "PNG", exif=orientation_exif(value)))
    np.testing.assert_array_equal(image.pixels, PICTURE)
    assert image.exif_orientation == 1
    assert image.warnings == (f"its EXIF orientation {value} is not 1 to 8 and was ignored",)


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01",
        b"Exif\0\0" + bytes(40),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_never_costs_an_image(image_format: str, block: bytes) -> None:
    """The pixels are fine; the metadata is ignored, and that is said."""
    whole = save(PICTURE, image_format)
    image = images.decode_image(save(PICTURE, image_format, exif=block))
    np.testing.assert_array_equal(image.pixels, images.decode_image(whole).pixels)
    assert image.warnings == ("its EXIF block is broken and was ignored",)


def test_an_exif_directory_outside_of_a_tiff_never_costs_it() -> None:
    """A TIFF's EXIF block is a place in the file, which may not exist."""
    image = images.decode_image(save(PICTURE, "TIFF", tiffinfo={34665: 999_999}))
    np.testing.assert_array_equal(image.pixels, PICTURE)


def test_png_metadata_that_pillow_refuses_never_costs_an_image() -> None:
    """An unknown compression method, a wrong checksum, a text that unpacks to too much."""
    profile = (b"iCCP", b"name\0\x07junk")
    text = (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(100_000_000), 9))
    for extra in (profile, text):
        image = images.decode_image(make_png(PICTURE, colour_type=2, extra=(extra,)))
        np.testing.assert_array_equal(image.pixels, PICTURE)
        assert image.warnings == ("its metadata could not be read and was left out",)
    wrong_checksum = make_png(PICTURE, colour_type=2, extra=((b"tEXt", b"key\0value"),)).replace(b"value", b"eulav")
    np.testing.assert_array_equal(images.decode_image(wrong_checksum).pixels, PICTURE)


# --- size limits


def test_max_pixels_is_checked_before_decoding() -> None:
    """A header alone is enough to refuse; the limit itself is allowed."""
    data = save(PICTURE, "PNG")
    assert images.decode_image(data, max_pixels=HEIGHT * WIDTH).hw == (HEIGHT, WIDTH)
    error = decode_error(data[:60], max_pixels=HEIGHT * WIDTH - 1)
    assert (error.kind, f"{WIDTH} x {HEIGHT}" in error.reason) == ("too_large", True)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_a_header_that_claims_a_huge_picture_is_too_large(image_format: str) -> None:
    """Nothing of that size is ever allocated."""
    data = save(np.zeros((37, 41, 3), np.uint8), image_format)
    order = ">" if image_format in ("PNG", "JPEG") else "<"
    size = {"GIF": "HH", "WEBP": "HH", "JPEG": "HH", "TIFF": "", "PNG": "II", "BMP": "ii"}[image_format]
    if image_format == "TIFF":
        huge = data.replace(struct.pack("<HHII", 256, 4, 1, 41), struct.pack("<HHII", 256, 4, 1, 60_000))
        huge = huge.replace(struct.pack("<HHII", 257, 4, 1, 37), struct.pack("<HHII", 257, 4, 1, 60_000))
    else:
        old, side = ((37, 41) if image_format == "JPEG" else (41, 37)), 16_383 if image_format == "WEBP" else 60_000
        huge = data.replace(struct.pack(order + size, *old), struct.pack(order + size, side, side), 1)
    assert huge != data
    if image_format == "PNG":
        huge = huge[:29] + struct.pack(">I", zlib.crc32(huge[12:29])) + huge[33:]
    assert decode_error(huge).kind == "too_large"


def test_pillow_s_own_limits_do_not_stand_in_the_way() -> None:
    """It would warn above 89 and refuse above 179 million pixels; 200 million pass its check where max_pixels allows them.

    They are opened, not decoded, which would take a gigabyte.
    """
    code = (
        "import sys, zlib, struct\n"
        "from labeler import images\n"
        "def chunk(n, b): return struct.pack('>I', len(b)) + n + b + struct.pack('>I', zlib.crc32(n + b))\n"
        "rows = zlib.compress((bytes(1 + 20000 // 8)) * 10000, 1)\n"
        "head = struct.pack('>IIBBBBB', 20000, 10000, 1, 0, 0, 0, 0)\n"
        "png = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')\n"
        "try: images.decode_image(png)\n"
        "except images.ImageError as error: print(error.kind)\n"
        "picture = images._open(png); images._prepare_pillow(200_000_000)\n"
        "from PIL import Image\n"
        "Image._decompression_bomb_check(picture.size)\n"
        "print(picture.size)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("too_large\n(20000, 10000)\n", "")


def test_pictures_of_no_pixels_are_too_small() -> None:
    """Width or height 0 in the header."""
    png = bytearray(save(PICTURE, "PNG"))
    png[16:20] = bytes(4)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    bmp = bytearray(save(PICTURE, "BMP"))
    bmp[22:26] = bytes(4)
    assert [decode_error(bytes(data)).kind for data in (png, bmp)] == ["too_small"] * 2


# --- what is no image, or not all of it


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "corrupt", "empty"),
        (bytes(5000), "corrupt", "nothing but zero bytes"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "corrupt", "an HTML page"),
        (b"\xef\xbb\xbf\n <HTML lang=de>", "corrupt", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "corrupt", "an XML document"),
        (b'{"error": "not found"}', "corrupt", "JSON"),
        ("Nur ein Text, größer als nichts.".encode() * 90, "corrupt", "is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "corrupt", "Git LFS pointer"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "unsupported", "SVG"),
        (b"%PDF-1.7\n", "unsupported", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported", "PostScript"),
        (b"PK\x03\x04" + bytes(50), "unsupported", "ZIP"),
        (b"\x00\x00\x00\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "unsupported", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "unsupported", "HEIC"),
        (b"\x00\x00\x00\x18ftypisom\0\0\0\0isommp41" + bytes(99), "unsupported", "video"),
        (b"\xff\x0a" + bytes(99), "unsupported", "JPEG XL"),
        (np.random.default_rng(0).bytes(4000), "corrupt", "no image of a known format"),
    ],
)
def test_bytes_that_are_no_image_are_called_what_they_are(data: bytes, kind: str, words: str) -> None:
    """Downloads that went wrong, and formats that need another program."""
    error = decode_error(data)
    assert (error.kind, words in error.reason) == (kind, True), error


def test_variants_that_pillow_does_not_decode_are_unsupported_and_named() -> None:
    """A 12-bit JPEG; a TIFF of 64-bit floats."""
    jpeg = save(PICTURE, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    error = decode_error(jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :])
    assert (error.kind, "JPEG" in error.reason, "12-bit" in error.reason) == ("unsupported", True, True)
    tiff = save(PillowImage.fromarray(PICTURE[..., 0].astype(np.float32)), "TIFF")
    doubles = tiff.replace(struct.pack("<HHIHH", 258, 3, 1, 32, 0), struct.pack("<HHIHH", 258, 3, 1, 64, 0))
    assert doubles != tiff
    assert (decode_error(doubles).kind, "TIFF" in decode_error(doubles).reason) == ("unsupported", True)


CUT_FORMATS: list[tuple[str, dict[str, Any]]] = [
    *(("JPEG", {"quality": q, "progressive": p}) for q in (60, 95) for p in (False, True)),
    *(("JPEG", {"restart_marker_rows": 1}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {}), ("AVIF", {})),
    *(("PPM", {}), ("JPEG2000", {}), ("QOI", {})),
    *(("TIFF", {"compression": c}) for c in ("raw", "tiff_lzw", "jpeg")),
]


@pytest.mark.parametrize(("image_format", "options"), CUT_FORMATS)
def test_a_cut_file_is_an_error_or_has_all_its_pixels(image_format: str, options: dict[str, Any]) -> None:
    """Cut anywhere: never a picture that differs from the whole file's, never another kind of error, and said."""
    data = save(PICTURE, image_format, **options)
    whole = images.decode_image(data).pixels
    lengths = {*range(len(data) - 60, len(data)), *range(12, len(data), max(1, len(data) // 150))}
    for length in sorted(lengths):
        end = try_decoding(data[:length])
        if isinstance(end, ImageError):
            assert end.kind == "truncated" or length < 30, (length, end)
            continue
        assert len(data) - length < 60
        np.testing.assert_array_equal(end.pixels, whole)
        assert end.warnings or image_format == "QOI"


@pytest.mark.parametrize(("image_format", "missing"), [("JPEG", 1), ("JPEG", 2), ("PNG", 5), ("PNG", 12), ("GIF", 1)])
def test_a_file_that_lacks_only_its_end_mark_is_read_with_a_warning(image_format: str, missing: int) -> None:
    """All pixels are there."""
    data = save(PICTURE, image_format)
    image = images.decode_image(data[:-missing])
    np.testing.assert_array_equal(image.pixels, images.decode_image(data).pixels)
    assert image.warnings == ("the file lacks its last bytes; all pixels are there",)


def test_a_cut_jpeg_of_flat_gray_is_no_way_around() -> None:
    """Decoders fill what is missing with gray: a gray picture is where a comparison of pixels could be fooled."""
    gray = np.full((240, 320, 3), 128, np.uint8)
    gray[:40] = make_picture(40, 320)
    data = save(gray, "JPEG", quality=80)
    for length in range(len(data) - 300, len(data) - 3):
        end = try_decoding(data[:length])
        if isinstance(end, ImageError):
            assert end.kind == "truncated"
        else:
            np.testing.assert_array_equal(end.pixels, images.decode_image(data).pixels)


def test_a_download_padded_with_zeros_is_truncated() -> None:
    """The file has its full size, and half its content."""
    data = save(make_picture(300, 400), "JPEG", quality=90)
    for part in (0.3, 0.6, 0.95):
        length = int(len(data) * part)
        assert decode_error(data[:length] + bytes(len(data) - length + 50_000)).kind == "truncated"


# --- anything at all

FUZZ: dict[str, bytes] = {
    "JPEG": save(PICTURE, "JPEG"),
    "JPEG progressive": save(PICTURE, "JPEG", progressive=True, exif=orientation_exif(6)),
    "PNG": save(PICTURE, "PNG"),
    "PNG 16": make_png(np.dstack([TWELVE_BIT] * 3), colour_type=2),
    "GIF": save(PICTURE, "GIF", save_all=True, append_images=[PillowImage.fromarray(PICTURE[::-1])]),
    "TIFF": save(PICTURE, "TIFF"),
    "TIFF LZW": save(PICTURE, "TIFF", compression="tiff_lzw"),
    "TIFF F": save(PillowImage.fromarray(PICTURE[..., 0].astype(np.float32)), "TIFF"),
    "WEBP": save(PICTURE, "WEBP", exif=orientation_exif(3)),
    "BMP": save(PICTURE, "BMP"),
    "BMP P": save(PillowImage.fromarray(PICTURE).quantize(16), "BMP"),
    "PPM": save(PICTURE, "PPM"),
    "JPEG2000": save(PICTURE, "JPEG2000"),
    "TGA": save(PICTURE, "TGA", compression="tga_rle"),
    "CMYK": save(PillowImage.fromarray(PICTURE).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", FUZZ)
def test_damaged_bytes_give_an_image_or_an_image_error(name: str) -> None:
    """Flipped, overwritten, cut and doubled bytes, mostly in the headers: nothing else ever comes out."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(120):
        data = bytearray(FUZZ[name])
        reach = len(data) if rng.random() < 0.3 else min(len(data), 400)
        for _ in range(rng.integers(1, 12)):
            place = int(rng.integers(reach))
            data[place] = rng.choice([0, 255, data[place] ^ (1 << int(rng.integers(8))), int(rng.integers(256))])
        if rng.random() < 0.2:
            data = data[: rng.integers(len(data))]
        end = try_decoding(bytes(data), max_pixels=4_000_000)
        if isinstance(end, ImageError):
            assert end.reason
            assert end.kind in ("unsupported", "truncated", "corrupt", "too_large", "too_small")
        else:
            assert end.pixels.size > 0


def test_pillow_s_warnings_reach_neither_stderr_nor_the_caller() -> None:
    """Also where warnings are errors, as in these tests; from threads too, and without touching anyone's filters."""
    data = save(PillowImage.fromarray(PICTURE).quantize(64), "PNG", transparency=bytes(range(64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=images.decode_image, args=(data,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert images.decode_image(data).warnings == ()
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", stacklevel=1)


# --- resizing and PNG


@pytest.mark.parametrize(("height", "width"), [(45, 67), (67, 45), (1200, 1600), (12, 900), (1, 1), (64, 64)])
def test_resizing_equals_the_reference_bit_for_bit(height: int, width: int) -> None:
    """segment_anything's ResizeLongestSide.apply_image: torchvision on a Pillow image."""
    transforms = pytest.importorskip("segment_anything.utils.transforms", reason="the reference is not installed")
    pixels = make_picture(max(height, 20), max(width, 40))[:height, :width]
    for side in (64, 256, 1024):
        reference = transforms.ResizeLongestSide(side)
        size_hw = reference.get_preprocess_shape(height, width, side)
        np.testing.assert_array_equal(images.resize_image(pixels, size_hw=size_hw), reference.apply_image(pixels))


def test_png_keeps_every_pixel_and_repeats() -> None:
    """RGB and gray."""
    for pixels in (PICTURE, PICTURE[..., 0]):
        data = images.encode_png(pixels)
        assert data == images.encode_png(pixels)
        with PillowImage.open(BytesIO(data)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_extensions_are_lower_case_with_their_dot() -> None:
    """What a listing compares with."""
    assert {".jpg", ".png", ".tif", ".webp", ".heic"} <= images.IMAGE_EXTENSIONS
    assert all(e.startswith(".") and e == e.lower() for e in images.IMAGE_EXTENSIONS)


def test_a_picture_of_ids_holds_every_number() -> None:
    """16 bits a pixel, gray, to the highest id; other readers than Pillow see the same."""
    ids = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
    data = images.encode_png(ids)
    with PillowImage.open(BytesIO(data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "I;16", (3, 2))
        np.testing.assert_array_equal(np.asarray(picture), ids)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), ids)


def read_manifest() -> list[tuple[str, str]]:
    if not BAD_IMAGES.exists():
        return []
    with (BAD_IMAGES / "MANIFEST.tsv").open(encoding="utf-8") as file:
        return [(row["file"], row["expect"]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def test_the_shared_odd_files_end_as_their_manifest_says() -> None:
    """Files from the wild, where they are at hand."""
    manifest = read_manifest()
    if not manifest:
        pytest.skip("../shared/data/bad_images is not here")
    found = {name: try_decoding((BAD_IMAGES / name).read_bytes()) for name, _ in manifest}
    ends = {name: "error" if isinstance(end, ImageError) else "label" for name, end in found.items()}
    wrong = {name: ends[name] for name, expected in manifest if expected not in ("either", ends[name])}
    assert not wrong, json.dumps(wrong)
