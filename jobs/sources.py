"""An input -> the images in it, in the order their ids are given. Must not know shards, runs or what becomes of an image.

An input is a folder or prefix, a glob, a list, a COCO file, a tar archive or a Parquet file of images. What is listed
becomes the frozen plan: a resume never lists again.
"""

import hashlib
import heapq
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from jobs.archives import list_members, make_member_uri
from jobs.image_rows import find_image_column, list_rows, make_row_uri, open_parquet
from jobs.lists import read_entries, record_to_kept
from jobs.options import Selection
from jobs.ordering import sort_refs
from jobs.refs import ImageRef, Listing
from labeler import storage
from labeler.errors import OptionsError
from labeler.images import IMAGE_EXTENSIONS
from labeler.storage import FileInfo
from labeler.tables import IMAGES_SCHEMA

logger = logging.getLogger(__name__)

_GLOB = re.compile(r"[*?\[]")
_LISTS = frozenset({".txt", ".csv", ".jsonl", ".json", ".parquet"})
_HOLDERS = frozenset({".tar", ".parquet"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NUM_LOOKED_UP = 10


def list_images(root: str, *, selection: Selection, on_progress: Callable[[int], None] | None = None) -> Listing:
    """List an input.

    Args:
        root: its URI.
        selection: which of its images.
        on_progress: told now and then how many were found so far.

    Raises:
        OptionsError: there is no such input, or no image in it is left to label.
        StorageError: the store does not answer.
    """
    _check_keep_columns(selection)
    skipped: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    try:
        chosen = select_images(_count(_find_images(root, selection, skipped), counted), selection=selection)
        source, num_images = sort_refs(chosen, limit=selection.limit, on_progress=on_progress)
    except FileNotFoundError as error:
        raise OptionsError(f"--input {root} does not exist: {error}") from error
    except PermissionError as error:
        raise OptionsError(f"--input {root} may not be read: {error}") from error
    if not num_images:
        raise OptionsError(f"nothing to label in {root}: {_describe_nothing(counted['images'], skipped)}")
    return Listing(
        num_images=num_images,
        skipped=dict(sorted(skipped.items())),
        num_not_selected=counted["images"] - num_images,
        source=source,
    )


def find_root(root: str, *, selection: Selection) -> str:
    """The place that must be there for the input to be there: an image that is not, while this is, is missing."""
    if _is_glob(root):
        return _split_glob(root)[0]
    return selection.images_root or root


def select_images(refs: Iterable[ImageRef], *, selection: Selection) -> Iterable[ImageRef]:
    """Those that ``include``, ``exclude`` and ``sample`` leave, in any order."""
    chosen = (ref for ref in refs if _is_wanted(ref.file_name, selection))
    if selection.sample is None:
        return chosen
    return heapq.nsmallest(selection.sample, chosen, key=lambda ref: _draw(ref.file_name, seed=selection.seed))


def _find_images(root: str, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    extension = PurePosixPath(root).suffix.lower()
    if root.lower().endswith(_COMPRESSED):
        raise OptionsError(f"--input {root} is compressed, so that no image in it can be read by itself; unpack it to .tar")
    if _is_glob(root):
        yield from _list_glob(root, selection, skipped)
    elif storage.is_folder(root):
        yield from _list_files(storage.list_files(root), selection, skipped)
    elif not storage.exists(root):
        raise OptionsError(f"--input {root} does not exist: not a folder, nor a file")
    elif extension == ".tar" or (extension == ".parquet" and _holds_images(root, selection)):
        about = storage.stat_file(root)
        yield from _list_holder(about, selection, skipped)
    elif extension in _LISTS:
        yield from _list_entries(root, selection)
    else:
        raise OptionsError(f"--input {root} is not a folder, nor a list ({', '.join(sorted(_LISTS))}) or .tar archive")


def _list_files(files: Iterable[FileInfo], selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    """The images among some files; where there are none, those inside of the archives and Parquet files among them."""
    holders: list[FileInfo] = []
    num_images = 0
    for file in files:
        kind = _name_skipped_kind(file.path)
        if kind is None:
            num_images += 1
            name = storage.encode_name(file.path)
            yield ImageRef(uri=file.uri, file_name=name, size_bytes=file.size_bytes, etag=file.etag)
        elif kind in _HOLDERS and not num_images:
            holders.append(file)
        else:
            skipped[kind] += 1
    for holder in holders:
        if num_images:
            skipped[PurePosixPath(holder.path).suffix.lower()] += 1
        else:
            yield from _list_holder(holder, selection, skipped)


def _list_holder(file: FileInfo, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    """The images inside of one file."""
    if file.path.lower().endswith(".parquet"):
        yield from _list_image_rows(file, selection)
        return
    name = storage.encode_name(file.path)
    for member in list_members(file.uri):
        kind = _name_skipped_kind(member.name.removeprefix("./"))
        if kind is not None:
            skipped[kind] += 1
            continue
        yield ImageRef(
            uri=make_member_uri(file.uri, member.name),
            file_name=f"{name}/{storage.encode_name(member.name.removeprefix('./'))}",
            offset=member.offset,
            length=member.length,
            size_bytes=member.length,
            etag=file.etag,
        )


def _list_image_rows(file: FileInfo, selection: Selection) -> Iterator[ImageRef]:
    if not _holds_images(file.uri, selection):
        wanted = f"called {selection.image_column}" if selection.image_column else "or several, of which none is called image"
        raise OptionsError(f"{file.uri} has no column of image bytes, {wanted}; see --image-column")
    name, keep = storage.encode_name(file.path), selection.keep_columns
    for number, row in enumerate(list_rows(file.uri, columns=keep)):
        kept = json.dumps(record_to_kept(row, keep=keep, uri=file.uri)) if keep else None
        yield ImageRef(
            uri=make_row_uri(file.uri, number), file_name=f"{name}/{number}", offset=number, etag=file.etag, kept=kept
        )


def _list_entries(root: str, selection: Selection) -> Iterator[ImageRef]:
    """What a list names, relative to ``--images-root`` or else to the list's own folder."""
    folder = selection.images_root or root.rpartition("/")[0]
    not_found: list[str] = []
    for number, entry in enumerate(read_entries(root, keep=selection.keep_columns)):
        # A URI or an absolute path stands for itself; a name is relative, whatever stands in it.
        is_absolute = "://" in entry.name or entry.name.startswith("/")
        uri = storage.path_to_uri(entry.name) if is_absolute else storage.join(folder, entry.name.removeprefix("./"))
        if number < _NUM_LOOKED_UP and not is_absolute and len(not_found) == number and not storage.exists(uri):
            not_found.append(uri)
        kept = None if entry.kept is None else json.dumps(entry.kept)
        name = storage.encode_name(entry.name)
        yield ImageRef(uri=uri, file_name=name, source_id=entry.source_id, kept=kept)
    if not_found and len(not_found) == min(number + 1, _NUM_LOOKED_UP):
        raise OptionsError(f"{root}: {not_found[0]} is not there, nor are those after it; say --images-root")


def _list_glob(root: str, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    """Files under the fixed beginning of a pattern that match the rest; ``**`` stands for any folders, ``*`` for no slash."""
    folder, pattern = _split_glob(root)
    matches = re.compile(_glob_to_regex(pattern)).fullmatch
    files = (file for file in storage.list_files(folder) if matches(file.path))
    yield from _list_files(files, selection, skipped)


def _is_glob(root: str) -> bool:
    """Whether a URI is a pattern. Local URIs are encoded, so they show it only in what ``%`` stands for."""
    path = storage.uri_to_path(root)
    if path is None:
        return "::" not in root and bool(_GLOB.search(root.partition("://")[2])) and not root.lower().startswith("http")
    return bool(_GLOB.search(str(path))) and not path.exists()


def _split_glob(root: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it."""
    path = storage.uri_to_path(root)
    scheme, text = ("", str(path)) if path is not None else (root.partition("://")[0] + "://", root.partition("://")[2])
    match = _GLOB.search(text)
    assert match is not None  # Only patterns are split.
    folder, _, _ = text[: match.start()].rpartition("/")
    place = scheme + folder if scheme else storage.path_to_uri(folder or "/")
    return place, text[len(folder) :].lstrip("/")


def _glob_to_regex(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "(?s:" + "".join(known.get(piece) or _piece_to_regex(piece) for piece in pieces) + ")"


def _piece_to_regex(piece: str) -> str:
    if len(piece) > 2 and piece[0] == "[" and piece[-1] == "]":
        inside = piece[1:-1].replace("\\", "\\\\")
        return f"[^{inside[1:]}]" if inside[0] == "!" else f"[{inside}]"
    return re.escape(piece)


def _holds_images(uri: str, selection: Selection) -> bool:
    schema = open_parquet(uri).schema_arrow
    return find_image_column(schema, wanted=selection.image_column) is not None


def _name_skipped_kind(path: str) -> str | None:
    """Why a file is no image to label, or None where its extension says it is one."""
    if any(part.startswith(".") for part in path.split("/")):
        return "dotfile"
    extension = PurePosixPath(path).suffix.lower()
    if extension in IMAGE_EXTENSIONS:
        return None
    return extension or "no extension"


def _is_wanted(file_name: str, selection: Selection) -> bool:
    if not selection.include and not selection.exclude:
        return True
    name = storage.decode_name(file_name)  # Patterns are typed as the names look on disk.
    included = not selection.include or any(fnmatchcase(name, pattern) for pattern in selection.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in selection.exclude)


def _check_keep_columns(selection: Selection) -> None:
    taken = [name for name in selection.keep_columns if name in IMAGES_SCHEMA.names]
    if taken:
        raise OptionsError(f"--keep-columns: the images table has a column {taken[0]} of its own")


def _count(refs: Iterable[ImageRef], counted: Counter[str]) -> Iterator[ImageRef]:
    for ref in refs:
        counted["images"] += 1
        yield ref


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
