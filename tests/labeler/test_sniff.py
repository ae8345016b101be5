"""What bytes tell of themselves; decoding with it is tested in test_images."""

import struct

import numpy as np
import pytest

from labeler import sniff

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
STARTS = (
    b"",
    b"\xff\xd8\xff\xe0",
    b"\xff\xd8\xff\xda\x00\x0c\x03",
    b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03\x01\x11\x00",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"GIF89a",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"II*\0\x08\0\0\0\x02\0\x11\x01\x04\0\xff\xff\xff\xff\x08\0\0\0",
    b"MM\0*\0\0\0\x08\0\x05",
    b"\0\0\0\x1cftypavif",
    b"\0\0\0\x01ftypmif1\0\0\0\0\0\0\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
)


@pytest.mark.parametrize("start", STARTS)
def test_no_bytes_raise_anything(start: bytes) -> None:
    """Every question may be asked of every input."""
    rng = np.random.default_rng(0)
    for length in range(60):
        data = start + rng.bytes(length)
        sniff.describe_bytes(data)
        sniff.exif_is_broken(data)
        for image_format in FORMATS:
            sniff.is_cut_short(data, image_format=image_format)
            sniff.has_no_pixels(data, image_format=image_format)
            sniff.propose_repair(data, image_format=image_format)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


FRAME = segment(0xC2, b"\x08\x00\x10\x00\x10\x02\x01\x11\x00\x02\x11\x00")  # Components 1 and 2.


def scan(components: bytes, first: int, last: int, approximation: int) -> bytes:
    pairs = b"".join(bytes([c, 0]) for c in components)
    header = bytes([len(components)]) + pairs + bytes([first, last, approximation])
    return segment(0xDA, header) + b"\x12\x34\xff\x00\x56"


DC, FINE_DC = scan(b"\1\2", 0, 0, 0x01), scan(b"\1\2", 0, 0, 0x10)
AC_1, AC_2 = scan(b"\1", 1, 63, 0x00), scan(b"\2", 1, 63, 0x00)


@pytest.mark.parametrize(
    ("scans", "mendable"),
    [
        ([DC, AC_1, AC_2, FINE_DC], True),
        ([DC, AC_1, AC_2], False),
        ([DC, FINE_DC, AC_1], False),
        ([DC, FINE_DC, AC_1, scan(b"\2", 1, 5, 0)], False),
        ([DC, FINE_DC, AC_1, scan(b"\2", 1, 5, 0), scan(b"\2", 6, 63, 0)], True),
        ([], False),
    ],
)
def test_a_progressive_jpeg_can_be_mended_once_every_scan_has_begun(scans: list[bytes], mendable: bool) -> None:
    """Scans that would only have sharpened the picture are missing pixels too, and no comparison would show them."""
    data = b"\xff\xd8" + FRAME + b"".join(scans)
    assert sniff.is_cut_short(data, image_format="JPEG")
    assert (sniff.propose_repair(data, image_format="JPEG") is not None) is mendable
    assert sniff.propose_repair(data + b"\xff\xd9", image_format="JPEG") is None


def test_a_thumbnail_s_end_is_not_the_picture_s() -> None:
    """An end mark within a metadata segment does not count."""
    thumbnail = segment(0xE1, b"Exif\0\0 thumbnail \xff\xd8\xff\xd9")
    data = b"\xff\xd8" + thumbnail + FRAME + scan(b"\1\2", 0, 63, 0)
    assert sniff.is_cut_short(data, image_format="JPEG")
    assert not sniff.is_cut_short(data + b"\xff\xd9 trailing", image_format="JPEG")


def test_a_wrong_chunk_length_is_damage_not_a_cut() -> None:
    """What follows is no chunk's name."""
    whole = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x04IDAT1234\0\0\0\0" + b"\0\0\0\0IEND\0\0\0\0"
    assert not sniff.is_cut_short(whole, image_format="PNG")
    assert sniff.is_cut_short(whole[:-3], image_format="PNG")
    assert sniff.is_cut_short(whole[:20], image_format="PNG")
    assert not sniff.is_cut_short(whole.replace(b"\0\0\0\x04IDAT", b"\0\0\0\x03IDAT"), image_format="PNG")
