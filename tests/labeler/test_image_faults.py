"""Image files that are broken, too large or none at all: an ImageError that says why, or pixels with a warning."""

import csv
import json
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from labeler import images, sniff
from labeler.errors import ImageError
from tests.labeler.pictures import (
    HEIGHT,
    PICTURE,
    TWELVE_BIT,
    WIDTH,
    decode_error,
    make_picture,
    make_png,
    orientation_exif,
    save,
    try_decoding,
)

BAD_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "bad_images"


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


def test_a_mended_file_that_takes_too_much_memory_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mending decodes twice: where the first attempt fits into memory, the second need not."""
    whole = save(PICTURE, "JPEG")

    def fill_memory(*_args: Any, **_options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(sniff, "propose_repair", fill_memory)
    assert decode_error(whole[: len(whole) // 2]).kind == "too_large"


def test_a_download_padded_with_zeros_is_truncated() -> None:
    """The file has its full size, and half its content."""
    data = save(make_picture(300, 400), "JPEG", quality=90)
    for part in (0.3, 0.6, 0.95):
        length = int(len(data) * part)
        assert decode_error(data[:length] + bytes(len(data) - length + 50_000)).kind == "truncated"


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
