"""Every kind of image file becomes upright RGB pixels; resizing and PNG."""

import struct
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageCms

from labeler import images
from tests.labeler.pictures import HEIGHT, PICTURE, TWELVE_BIT, WIDTH, make_picture, make_png, save


def scale(values: np.ndarray) -> np.ndarray:
    """Numbers -> 0 to 255 by their own finite range, written as plainly as can be."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = finite.min(), finite.max()
    clipped = np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high)
    return np.rint((clipped - low) / (high - low) * 255).astype(np.uint8)


def replicate(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


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


@pytest.mark.parametrize("values", [TWELVE_BIT, TWELVE_BIT.astype(np.float32)])
def test_deep_gray_tiffs_whose_white_is_zero_are_turned_about(values: np.ndarray) -> None:
    """X-rays and scans are often kept so. Pillow turns 8 bits about, and leaves more as they are."""
    whole = save(values, "TIFF")
    black_is_zero, white_is_zero = (struct.pack("<HHIHH", 262, 3, 1, kind, 0) for kind in (1, 0))
    assert whole.count(black_is_zero) == 1
    found = images.decode_image(whole.replace(black_is_zero, white_is_zero)).pixels
    np.testing.assert_array_equal(found, 255 - images.decode_image(whole).pixels)


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
