"""An input -> the images in it, in the order their ids are given. Must not know shards, runs or what becomes of an image.

So far an input is a folder or prefix, listed recursively. What is listed becomes the frozen plan: a resume never lists
again.
"""

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from jobs.options import Selection
from labeler import storage
from labeler.errors import OptionsError
from labeler.images import IMAGE_EXTENSIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """Where the bytes of one image are, and how they looked when they were listed.

    Attributes:
        uri: opens again, percent-encoded.
        file_name: the name people see: for a folder the path relative to it; what is not UTF-8, and ``%``, encoded.
        source_id: the image's id in a list or COCO input.
        offset, length: the bytes inside ``uri``, where it holds more than this image.
        size_bytes, etag: as listed; an image that differs when it is read is an error (``changed``).
    """

    uri: str
    file_name: str
    source_id: str | None = None
    offset: int | None = None
    length: int | None = None
    size_bytes: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What an input holds.

    Attributes:
        refs: the chosen images, in byte order of their file names.
        skipped: how many files were left aside, by kind: ``dotfile``, an extension, or ``no extension``.
        num_not_selected: images that the selection left out.
    """

    refs: tuple[ImageRef, ...]
    skipped: Mapping[str, int]
    num_not_selected: int


def list_images(root: str, *, selection: Selection) -> Listing:
    """List a folder or prefix, recursively.

    Raises:
        OptionsError: there is no such folder, or no image in it is left to label.
        StorageError: the store does not answer.
    """
    skipped: Counter[str] = Counter()
    found = list(_list_folder(root, skipped))
    # Code points sort as their UTF-8 bytes do, so this is byte order.
    refs = sorted(select_images(found, selection=selection), key=lambda ref: ref.file_name)[: selection.limit]
    if not refs:
        raise OptionsError(f"nothing to label in {root}: {_describe_nothing(len(found), skipped)}")
    return Listing(refs=tuple(refs), skipped=dict(sorted(skipped.items())), num_not_selected=len(found) - len(refs))


def select_images(refs: Iterable[ImageRef], *, selection: Selection) -> Iterable[ImageRef]:
    """Those that ``include``, ``exclude`` and ``sample`` leave, in any order."""
    chosen = (ref for ref in refs if _is_wanted(ref.file_name, selection))
    if selection.sample is None:
        return chosen
    return heapq.nsmallest(selection.sample, chosen, key=lambda ref: _draw(ref.file_name, seed=selection.seed))


def _list_folder(root: str, skipped: Counter[str]) -> Iterator[ImageRef]:
    try:
        if not storage.is_folder(root):
            raise OptionsError(f"--input {root} is not a folder")
        for file in storage.list_files(root):
            kind = _name_skipped_kind(file.path)
            if kind is not None:
                skipped[kind] += 1
                continue
            yield ImageRef(uri=file.uri, file_name=storage.encode_name(file.path), size_bytes=file.size_bytes, etag=file.etag)
    except FileNotFoundError as error:
        raise OptionsError(f"--input {root} does not exist") from error
    except PermissionError as error:
        raise OptionsError(f"--input {root} may not be listed: {error}") from error


def _name_skipped_kind(path: str) -> str | None:
    """Why a file is no image to label, or None where its extension says it is one."""
    if any(part.startswith(".") for part in path.split("/")):
        return "dotfile"
    extension = PurePosixPath(path).suffix.lower()
    if extension in IMAGE_EXTENSIONS:
        return None
    return extension or "no extension"


def _is_wanted(file_name: str, selection: Selection) -> bool:
    name = storage.decode_name(file_name)  # Patterns are typed as the names look on disk.
    included = not selection.include or any(fnmatchcase(name, pattern) for pattern in selection.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in selection.exclude)


def _draw(file_name: str, *, seed: int) -> bytes:
    """A number that depends on nothing but the seed and the name, so that a sample can be drawn again anywhere."""
    return hashlib.sha256(f"{seed}\0{file_name}".encode()).digest()


def _describe_nothing(num_images: int, skipped: Mapping[str, int]) -> str:
    if num_images:
        return f"the selection leaves none of its {num_images} images"
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        return f"no file has a known image extension ({kinds})"
    return "the folder is empty"
