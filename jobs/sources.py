"""An input -> the images in it, in the order their ids are given. Must not know shards, runs or what becomes of an image.

An input is a folder or prefix, a pattern, a list, a COCO file, a tar archive or a Parquet file of images. What is listed
becomes the frozen plan: a resume never lists again. An archive or Parquet file that can't be read, or not to its end,
stops nothing: it becomes a row itself, beside the images before the damage, and its reader says what is wrong with it.
"""

import hashlib
import heapq
import itertools
import json
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from jobs.lists import read_entries, record_to_kept
from jobs.options import Selection
from jobs.ordering import sort_refs
from jobs.patterns import compile_pattern, expand_braces, has_wildcard, is_pattern, split_pattern
from jobs.refs import ImageRef, Listing, holder_to_ref
from labeler import storage
from labeler.archives import Damage, Member, list_members, make_member_uri
from labeler.errors import ImageError, OptionsError
from labeler.image_rows import find_image_column, list_image_columns, list_rows, make_row_uri, open_parquet
from labeler.images import IMAGE_EXTENSIONS
from labeler.storage import FileInfo
from labeler.stores import check_url
from labeler.tables import IMAGES_SCHEMA

logger = logging.getLogger(__name__)

_LISTS = frozenset({".txt", ".csv", ".jsonl", ".json", ".parquet"})
_HOLDERS = frozenset({".tar", ".parquet"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NUM_LOOKED_UP = 10


def list_images(
    root: str, *, selection: Selection, on_progress: Callable[[int], None] | None = None, may_be_empty: bool = False
) -> Listing:
    """List an input.

    Args:
        root: its URI.
        selection: which of its images.
        on_progress: told now and then how many were found so far.
        may_be_empty: that there is no image in it is an answer, not an error.

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
    if selection.keep_columns and counted["images"] > counted["damaged"] and not counted["kept"]:
        raise OptionsError(
            f"--keep-columns: the images of {root} have no columns; those of a list, a COCO file or Parquet files have"
        )
    if not num_images and not may_be_empty:
        raise OptionsError(f"nothing to label in {root}: {_describe_nothing(counted['images'], skipped)}")
    return Listing(
        num_images=num_images,
        skipped=dict(sorted(skipped.items())),
        num_not_selected=counted["images"] - num_images,
        source=source,
        num_damaged=counted["damaged"],
    )


def find_root(root: str, *, selection: Selection) -> str:
    """The place that must be there for the input to be there: an image that is not, while this is, is missing."""
    if is_pattern(root):
        return split_pattern(root)[0]
    return selection.images_root or root


def may_be_list(root: str) -> bool:
    """Whether an input is a list, as far as its name tells."""
    return PurePosixPath(root).suffix.lower() in _LISTS


def select_images(refs: Iterable[ImageRef], *, selection: Selection) -> Iterable[ImageRef]:
    """Those that ``include``, ``exclude`` and ``sample`` leave, in any order. What is damaged is never left out by name."""
    chosen = (ref for ref in refs if ref.is_holder or _is_wanted(ref.file_name, selection))
    if selection.sample is None:
        return chosen
    return heapq.nsmallest(selection.sample, chosen, key=lambda ref: _draw(ref.file_name, seed=selection.seed))


def _find_images(root: str, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    extension = PurePosixPath(root).suffix.lower()
    if is_pattern(root):
        yield from _list_pattern(root, selection, skipped)
    elif storage.is_folder(root):
        yield from _list_files(storage.list_files(root), selection, skipped)
    elif root.lower().endswith(_COMPRESSED):
        raise OptionsError(f"--input {root} is compressed, so that no image in it can be read by itself; unpack it to .tar")
    elif not storage.exists(root):
        raise OptionsError(f"--input {root} does not exist: not a folder, nor a file")
    elif extension == ".tar" or (extension == ".parquet" and _holds_images(root, selection)):
        yield from _list_one_holder(storage.stat_file(root), selection, skipped)
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
    """The images inside of one file, and the file itself where it can't be read to its end."""
    try:
        if file.path.lower().endswith(".parquet"):
            yield from _list_image_rows(file, selection, skipped)
        else:
            yield from _list_members(file, skipped)
    except (FileNotFoundError, PermissionError) as error:
        logger.warning("%s can't be read: %s", file.uri, error)
        yield holder_to_ref(file, damaged_at=0)


def _list_one_holder(file: FileInfo, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    """The same for an input that is one file: where nothing of it can be read, somebody named the wrong one."""
    refs = _list_holder(file, selection, skipped)
    first = next(refs, None)
    if first is not None and first.is_holder:
        raise OptionsError(f"--input {file.uri} is no whole, uncompressed tar archive nor Parquet file of images")
    yield from itertools.chain([first] if first else [], refs)


def _list_members(file: FileInfo, skipped: Counter[str]) -> Iterator[ImageRef]:
    name = storage.encode_name(file.path)
    members = [*list_members(file.uri)]
    last = {posixpath.normpath(m.name): m.offset for m in members if isinstance(m, Member) and m.offset is not None}
    for member in members:
        if isinstance(member, Damage):
            logger.warning("%s is %s: %s", file.uri, member.kind, member.reason)
            yield holder_to_ref(file, damaged_at=member.offset)
            continue
        kind = _name_skipped_kind(member.name) or ("link" if member.offset is None else None)
        if kind is None and member.offset != last[posixpath.normpath(member.name)]:
            kind = "replaced by a later one of its name"  # As whoever unpacks the archive has it.
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


def _list_image_rows(file: FileInfo, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    try:
        schema = open_parquet(file.uri).schema_arrow
    except OptionsError as error:
        logger.warning("%s", error)
        yield holder_to_ref(file, damaged_at=0)
        return
    if not list_image_columns(schema):
        skipped[".parquet without images"] += 1
        return
    if find_image_column(schema, wanted=selection.image_column) is None:
        wanted = f"called {selection.image_column}" if selection.image_column else "or several, of which none is called image"
        raise OptionsError(f"{file.uri} has no column of image bytes, {wanted}; see --image-column")
    name, keep = storage.encode_name(file.path), selection.keep_columns
    rows = enumerate(list_rows(file.uri, columns=keep))
    number = -1
    while True:
        try:
            number, row = next(rows)
        except StopIteration:
            return
        except ImageError as error:
            logger.warning("%s: %s", file.uri, error.reason)
            yield holder_to_ref(file, damaged_at=number + 1)
            return
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
        if "://" in entry.name:
            _check_url(entry.name, where=f"{root}, entry {number + 1}")
        uri = storage.path_to_uri(entry.name) if is_absolute else storage.join(folder, entry.name.removeprefix("./"))
        is_near = not is_absolute or storage.uri_to_path(uri) is not None
        if number < _NUM_LOOKED_UP and is_near and len(not_found) == number and not _is_there(uri):
            not_found.append(uri)
        kept = None if entry.kept is None else json.dumps(entry.kept)
        name = storage.encode_name(entry.name)
        yield ImageRef(uri=uri, file_name=name, source_id=entry.source_id, kept=kept)
    if not_found and len(not_found) == min(number + 1, _NUM_LOOKED_UP):
        raise OptionsError(
            f"{root}: {not_found[0]} is not there, nor are those after it; is it mounted, and is --images-root right?"
        )


def _is_there(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except PermissionError:  # What is forbidden is a row of its own.
        return True


def _check_url(url: str, *, where: str) -> None:
    """What no worker could open is said before the run is frozen, and a secret never gets into its plan."""
    try:
        check_url(url)
    except OptionsError as error:
        raise OptionsError(f"{where}: {error}") from error


def _list_pattern(root: str, selection: Selection, skipped: Counter[str]) -> Iterator[ImageRef]:
    """Files under the fixed beginning of a pattern that match the rest; those that braces name need no listing."""
    folder, pattern = split_pattern(root)
    if has_wildcard(pattern):
        matches = compile_pattern(pattern)
        files: Iterable[FileInfo] = (file for file in storage.list_files(folder) if matches(file.path))
    else:
        files = _look_up(folder, expand_braces(pattern), root=root)
    yield from _list_files(files, selection, skipped)


def _look_up(folder: str, names: Iterable[str], *, root: str) -> Iterator[FileInfo]:
    """Files, and all below folders, by name. An image or archive that is not there is listed too, so that it is missed by name.

    Raises:
        OptionsError: there is none of them; or a folder is not there, or is empty, as where a disk is not mounted.
    """
    num_found = 0
    for name in names:
        uri = storage.join(folder, name)
        try:
            yield replace(storage.stat_file(uri), path=name)
            num_found += 1
        except FileNotFoundError:
            is_folder = storage.is_folder(uri)
            if not is_folder and _is_for_images(name):
                yield FileInfo(uri, name, None, None)
                continue
            num_before = num_found
            for file in storage.list_files(uri) if is_folder else ():
                yield replace(file, path=f"{name}/{file.path}")
                num_found += 1
            if num_found == num_before:
                what = "is an empty folder" if is_folder else "is not there"
                raise OptionsError(f"--input {root}: {uri} {what}; is it mounted? Else leave it out of the braces") from None
    if not num_found:
        raise OptionsError(f"--input {root} does not exist: there is none of what its braces name")


def _holds_images(uri: str, selection: Selection) -> bool:
    schema = open_parquet(uri).schema_arrow
    return find_image_column(schema, wanted=selection.image_column) is not None


def _name_skipped_kind(path: str) -> str | None:
    """Why a file is no image to label, or None where its extension says it is one."""
    if any(part.startswith(".") and part not in (".", "..") for part in path.split("/")):
        return "dotfile"
    extension = PurePosixPath(path).suffix.lower()
    if extension in IMAGE_EXTENSIONS:
        return None
    return extension or "no extension"


def _is_for_images(path: str) -> bool:
    """Whether a file of this name would be an image, or hold some."""
    return PurePosixPath(path).suffix.lower() in {*IMAGE_EXTENSIONS, *_HOLDERS}


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
        counted["damaged"] += ref.is_holder
        counted["kept"] += ref.kept is not None
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
