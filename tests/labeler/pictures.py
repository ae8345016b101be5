"""Pictures of every kind as bytes of a file, and how to decode them when they may not be."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from labeler import images
from labeler.errors import ImageError
from labeler.types import Image

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


def decode_error(data: bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        images.decode_image(data, **options)
    return caught.value


def try_decoding(data: bytes, **options: Any) -> Image | ImageError:
    try:
        return images.decode_image(data, **options)
    except ImageError as error:
        return error


TWELVE_BIT = np.random.default_rng(1).integers(100, 4096, (HEIGHT, WIDTH)).astype(np.uint16)


def orientation_exif(orientation: int) -> PillowImage.Exif:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    return exif
