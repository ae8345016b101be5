"""EXIF and XMP say which way up a picture is: applied or ignored, recorded in any case."""

import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps, PngImagePlugin

from labeler import images
from tests.labeler.pictures import HEIGHT, PICTURE, WIDTH, make_png, orientation_exif, save


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    methods = [None, None, *(PillowImage.Transpose(m) for m in (0, 3, 1, 5, 4, 6, 2))]
    method = methods[orientation]
    return pixels if method is None else np.asarray(PillowImage.fromarray(pixels).transpose(method))


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
