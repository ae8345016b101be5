"""What an image file's bytes tell when a decoder refuses them: what they are, whether they break off, what mends them.

Must not know Pillow or pixels: bytes in, sentences and bytes out. Everything here reads hostile bytes, so it promises
to raise nothing on any input. Formats are called by Pillow's names ("JPEG", "PNG", "JPEG2000" ...).
"""

import codecs
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from labeler.errors import ErrorKind

_READ_AS = "which can't be read here; convert it to JPEG or PNG"

_SIGNATURES: tuple[tuple[bytes, ErrorKind, str], ...] = (
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "unsupported", f"the file is a JPEG XL picture, {_READ_AS}"),
    (b"\xff\x0a", "unsupported", f"the file is a JPEG XL picture, {_READ_AS}"),
    (b"II\xbc\x01", "unsupported", f"the file is a JPEG XR picture, {_READ_AS}"),
    (b"\x76\x2f\x31\x01", "unsupported", f"the file is an OpenEXR picture, {_READ_AS}"),
    (b"#?RADIANCE", "unsupported", f"the file is a Radiance HDR picture, {_READ_AS}"),
    (b"SIMPLE  =", "unsupported", f"the file is a FITS picture, {_READ_AS}"),
    (b"%PDF", "unsupported", "the file is a PDF document, not an image"),
    (b"%!PS", "unsupported", "the file is a PostScript drawing, not an image of pixels"),
    (b"\xc5\xd0\xd3\xc6", "unsupported", "the file is a PostScript drawing, not an image of pixels"),
    (b"PK\x03\x04", "unsupported", "the file is a ZIP archive, not an image"),
    (b"\x1f\x8b", "unsupported", "the file is compressed with gzip, not an image"),
    (b"\x1aE\xdf\xa3", "unsupported", "the file is a Matroska or WebM video, not an image"),
    (b"\xd0\xcf\x11\xe0", "unsupported", "the file is a Microsoft OLE document (Thumbs.db is one), not an image"),
    (b"\x00\x05\x16\x07", "unsupported", "the file holds macOS metadata (AppleDouble), not an image"),
    (b"version https://git-lfs", "corrupt", "the file is a Git LFS pointer, not the image itself"),
)

_MEDIA_BRANDS = (  # The brands of an ISO media file's first box, the first that fits names it.
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), f"HEIC picture, {_READ_AS}"),
    ((b"crx ",), f"Canon raw picture, {_READ_AS}"),
    ((b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1", b"3gp4", b"3gp5"), "video, not an image"),
)


def describe_bytes(data: bytes) -> tuple[ErrorKind, str] | None:
    """What the bytes are, if they are plainly no image that a decoder here could read; None where nothing is plain."""
    if not data:
        return "corrupt", "the file is empty"
    for signature, kind, sentence in _SIGNATURES:
        if data.startswith(signature):
            return kind, sentence
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), _be32(data, 0), 256), 4))}
        for names, what in _MEDIA_BRANDS:
            if brands.intersection(names):
                return "unsupported", f"the file is a {what}"
    return _describe_text(data)


def _describe_text(data: bytes) -> tuple[ErrorKind, str] | None:
    head = data[:1024]
    if not head.strip(b"\0"):
        return ("corrupt", "the file holds nothing but zero bytes") if not data.strip(b"\0") else None
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return None
    if any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text):
        return None
    text = text.lstrip().lower()
    if "<html" in text or text.startswith(("<!doctype html", "<head", "<body")):
        return "corrupt", "the file is an HTML page, not an image"
    if "<svg" in text:
        return "unsupported", "the file is an SVG drawing, not an image of pixels"
    if text.startswith("<?xml"):
        return "corrupt", "the file is an XML document, not an image"
    if text.startswith(("{", "[")):
        return "corrupt", "the file is JSON text, not an image"
    return "corrupt", "the file is text, not an image"


def has_no_pixels(data: bytes, *, image_format: str) -> bool:
    """Whether the header gives a width or height of 0: decoders call such files unreadable, which says too little."""
    if image_format == "PNG" and len(data) >= 24:
        return 0 in struct.unpack_from(">II", data, 16)
    return image_format == "BMP" and len(data) >= 26 and 0 in struct.unpack_from("<ii", data, 18)


def is_cut_short(data: bytes, *, image_format: str) -> bool:
    """Whether the format's own marks (an end marker, declared sizes) say that bytes are missing at the end."""
    if image_format in ("JPEG", "MPO"):
        return not data.endswith(b"\xff\xd9") and all(s.marker != _EOI for s in _walk_jpeg(data))
    if image_format == "PNG":
        chunks = list(_walk_png(data))
        next_name = data[chunks[-1].end if chunks else 8 :][4:8]  # Of the chunk that is not all there.
        return not (chunks and chunks[-1].name == b"IEND") and (len(next_name) < 4 or next_name.isalpha())
    if image_format == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if image_format == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if image_format == "BMP":
        return len(data) < max(26, int.from_bytes(data[2:6], "little"))
    if image_format == "TIFF":
        return _tiff_end(data) > len(data)
    if image_format == "JPEG2000":
        # The marks of the end and of the start of data; packets hold no byte pair above FF 8F.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\x93")
    if image_format == "AVIF":
        return _media_end(data) > len(data)
    return image_format == "QOI" and not data.endswith(bytes(7) + b"\x01")


class Repair(NamedTuple):
    """Bytes that a decoder may read where it refused the file's own.

    Attributes:
        versions: each must decode, and all to the same pixels; else the file is not mended.
        warning: what was odd about the file, a sentence for a person.
    """

    versions: tuple[bytes, ...]
    warning: str


_JPEG_FILLERS = (b"", b"\x00" * 64, b"\x55" * 64, b"\xb6" * 64)


def propose_repair(data: bytes, *, image_format: str) -> Repair | None:
    """How a file with sound pixels could be read all the same, or None.

    A JPEG that breaks off has no mark of how many pixels are there, and decoders fill the rest with gray. So its end is
    mended in several ways: where pixels are missing, what follows is decoded as pixels and the versions differ.
    """
    if image_format in ("JPEG", "MPO"):
        zeros = len(data) - len(data.rstrip(b"\0"))
        body = data[: len(data) - zeros] if zeros >= 16 else data  # A download that was given its full length first.
        body = body[:-1] if body.endswith(b"\xff") else body
        if not (is_cut_short(data, image_format="JPEG") and _has_all_scans(body)):
            return None
        versions = tuple(body + filler + b"\xff\xd9" for filler in _JPEG_FILLERS)
        return Repair(versions, "the file lacks its last bytes; all pixels are there")
    if image_format == "JPEG2000" and is_cut_short(data, image_format=image_format):
        body = data[:-1] if data.endswith(b"\xff") else data
        return Repair((body + b"\xff\xd9",), "the file lacks its last bytes; all pixels are there")
    if image_format == "PNG" and not is_cut_short(data, image_format=image_format):
        chunks = list(_walk_png(data))
        kept = [c for c in chunks if c.name[:1].isupper() or (c.name in (b"tRNS", b"eXIf") and c.is_sound)]
        if len(kept) < len(chunks):
            mended = data[:8] + b"".join(data[c.start : c.end] for c in kept)
            return Repair((mended,), "its metadata could not be read and was left out")
    return None


def exif_is_broken(exif: bytes) -> bool:
    """Whether an EXIF block's first directory is not all there. Readers pass over that without a word."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return True
    offset = int(struct.unpack_from(order + "I", block, 4)[0])
    if len(block) < offset + 2:
        return True
    num_entries = int(struct.unpack_from(order + "H", block, offset)[0])
    return len(block) < offset + 2 + 12 * num_entries


_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # The markers that start a frame: the rest are tables.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class _Segment(NamedTuple):
    marker: int
    body: bytes


def _walk_jpeg(data: bytes) -> Iterator[_Segment]:
    """The marker segments of a JPEG up to its EOI. A segment that is not all there is not given."""
    position = 0
    while match := _NEXT_MARKER.search(data, position):
        marker, position = match[0][1], match.end()
        if marker in (_SOI, _EOI, 0x01):
            yield _Segment(marker, b"")
            if marker == _EOI:
                return
            continue
        length = _be16(data, position)
        if length < 2 or position + length > len(data):
            return
        yield _Segment(marker, data[position + 2 : position + length])
        position += length


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans begun so far would give every coefficient of every component in full precision."""
    missing: dict[int, set[int]] = {}
    for marker, body in _walk_jpeg(data):
        if marker in _FRAMES and len(body) >= 6:
            missing = {body[i]: set(range(64)) for i in range(6, len(body), 3)}
        if marker == _SOS and body and len(body) == 4 + 2 * body[0]:
            first, last, approximation = body[-3:]
            for component in body[1:-3:2]:
                if approximation & 0x0F == 0:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


class _Chunk(NamedTuple):
    name: bytes
    start: int
    end: int
    is_sound: bool


def _walk_png(data: bytes) -> Iterator[_Chunk]:
    """The chunks of a PNG up to its IEND, or to what is no chunk; one that is not all there is not given."""
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + _be32(data, position)
        name = data[position + 4 : position + 8]
        if end > len(data) or not name.isalpha():
            return
        yield _Chunk(name, position, end, zlib.crc32(data[position + 4 : end - 4]) == _be32(data, end - 4))
        if name == b"IEND":
            return
        position = end


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def _tiff_end(data: bytes) -> int:
    """Where the first page of a TIFF ends: directory, values, strips and tiles. 0 where that is not told (BigTIFF)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return 0
    start = int(struct.unpack_from(order + "I", data, 4)[0])
    if start + 2 > len(data):
        return start + 2
    end = start + 2 + 12 * int(struct.unpack_from(order + "H", data, start)[0]) + 4
    if end > len(data):
        return end
    numbers: dict[int, tuple[int, ...]] = {}
    for position in range(start + 2, end - 4, 12):
        tag, kind, count, place = struct.unpack_from(order + "HHII", data, position)
        size = _TIFF_SIZES.get(kind, 1) * count
        first = place if size > 4 else position + 8
        end = max(end, first + size)
        if kind in (3, 4) and first + size <= len(data):
            numbers[tag] = struct.unpack_from(f"{order}{count}{'HI'[kind - 3]}", data, first)
    for offsets, sizes in ((273, 279), (324, 325)):  # Strips, tiles.
        places = zip(numbers.get(offsets, ()), numbers.get(sizes, ()), strict=False)
        end = max([end, *(offset + size for offset, size in places)])
    return end


def _media_end(data: bytes) -> int:
    """Where the boxes of an ISO media file end, as their sizes say; later than here where its index is not there."""
    position, has_index = 0, False
    while position + 8 <= len(data):
        has_index |= data[position + 4 : position + 8] in (b"meta", b"moov")
        size = _be32(data, position)
        if size == 1 and position + 16 <= len(data):
            size = struct.unpack_from(">Q", data, position + 8)[0]
        if size < 8:
            return position  # 0: the box goes on to the file's end. Others are wrong.
        position += size
    return position if position >= len(data) and has_index else max(position, len(data)) + 1


def _be16(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "big")


def _be32(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "big")
