"""What the files of an export are called: each image's apart from every other's, before anything is written.

Must not know any format. Holds the names of all images of the run: some 450 bytes an image while it checks.
"""

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NoReturn

from export.options import SelectionOptions
from export.selection import name_image
from labeler.errors import OptionsError
from labeler.images import IMAGE_EXTENSIONS
from labeler.runs import Run, iterate_rows

RECORD = ".export.json"
"""What an export says about itself, in its folder. Hidden, so that readers of folders full of JSON pass it by."""

_MAX_NAME_BYTES = 255  # Of a file or folder on a disk; an object store takes longer ones.
_LONGEST_EXTENSION = max(IMAGE_EXTENSIONS, key=len)


def tidy_name(name: str) -> str:
    """``a//b.jpg`` and ``./a/b.jpg`` -> ``a/b.jpg``: on a disk they are one file, so here they are everywhere."""
    return posixpath.normpath(name)


def has_image_extension(name: str) -> bool:
    """Whether a name ends as pictures do."""
    return drop_extension(name) != name


def drop_extension(name: str) -> str:
    """``sub/a.b.jpg`` -> ``sub/a.b``; ``img.0001`` has no image's extension and stays, and so does what is nothing else.

    So a label is called as its picture is found: ``img.0001`` comes as ``img.0001.jpg`` (see ``export.folders``).
    """
    stem, dot, extension = name.rpartition(".")
    has_one = dot + extension.lower() in IMAGE_EXTENSIONS and stem and not stem.endswith("/")
    return stem if has_one else name


def name_label(name: str, stems: frozenset[str]) -> str:
    """Of an image's tidy name, without suffix; ``stems``: those that keep their extension."""
    stem = drop_extension(name)
    return name if stem in stems else stem


def keep_labels_apart(
    run: Run,
    *,
    kind: str,
    options: SelectionOptions,
    label_suffix: str | None,
    has_pictures: bool,
    by_stem: bool,
    is_disk: bool,
    tells_apart: bool = True,
) -> frozenset[str]:
    """Names without extension whose labels keep it, so that each image has its own; all other names are made sure of.

    Args:
        kind: the format, for people.
        label_suffix: of each image's labels. None: there are none.
        has_pictures: there will be pictures beside them.
        by_stem: the format's readers look for labels by a picture's name without extension, so none may be shared.
        is_disk: names can't be of any length.
        tells_apart: ``a`` and ``A`` are two files there, and so are the two ways to write ``é``; not so on many Macs.

    Raises:
        OptionsError: two images would have one file, or a name leads out of the folder, or is too long for a file.
    """
    names = _gather_names(run, options)
    if RECORD in names:
        _refuse(names[RECORD], "the record of the export", RECORD)
    stems = _find_kept_stems(names)
    shared = sorted(name for name in names if drop_extension(name) in stems)
    if by_stem and shared:
        pair = " and ".join(name for name in shared if drop_extension(name) == drop_extension(shared[0]))
        raise OptionsError(f"{pair} would share their labels: {kind} finds them by the name without its extension; rename one")
    fold = str if tells_apart else _fold
    files = _list_all_files(names, stems, label_suffix=label_suffix, has_pictures=has_pictures, is_disk=is_disk, fold=fold)
    # Pictures that will get the extension of their format, whichever that is.
    bare = {fold(tidy): name for tidy, name in names.items() if has_pictures and _is_bare(tidy, stems)}
    for tidy, name in names.items() if has_pictures else ():
        if not _is_bare(tidy, stems):
            continue
        if is_disk:
            _check_length(tidy + _LONGEST_EXTENSION, name)
        for other in (bare[fold(tidy)], *(files.get(fold(tidy + extension), name) for extension in IMAGE_EXTENSIONS)):
            if other != name:
                _refuse(other, name, tidy)
    for tidy, name in names.items():
        for folder in map(fold, _list_folders(tidy)):
            picture = bare.get(drop_extension(folder)) if has_image_extension(folder) else None
            if folder in files or picture is not None:
                _refuse(files.get(folder) or str(picture), name, folder)
    return stems


def _is_bare(tidy: str, stems: frozenset[str]) -> bool:
    return not has_image_extension(tidy) and tidy not in stems


def _list_all_files(
    names: Mapping[str, str],
    stems: frozenset[str],
    *,
    label_suffix: str | None,
    has_pictures: bool,
    is_disk: bool,
    fold: Callable[[str], str],
) -> dict[str, str]:
    """Whose each file is, by what ``fold`` makes of its path; but for pictures whose extension is not known yet."""
    files: dict[str, str] = {RECORD: "the record of the export"}
    for tidy, name in names.items():
        for path in _list_files(tidy, stems, label_suffix=label_suffix, has_pictures=has_pictures):
            if is_disk:
                _check_length(path, name)
            other = files.setdefault(fold(path), name)
            if other != name:
                _refuse(other, name, path)
    return files


def _gather_names(run: Run, options: SelectionOptions) -> dict[str, str]:
    """What the run calls its images, by their tidy names."""
    names: dict[str, str] = {}
    for row in iterate_rows(run, table="images", columns=["uri", "file_name", "status"]):
        if row["status"] != "ok":
            continue
        name = name_image(row, options=options)
        if name.startswith("/") or "://" in name or ".." in name.split("/"):
            raise OptionsError(f"{name} is no name for a file in a folder; say with --relative-to where names begin")
        tidy = tidy_name(name)
        if names.get(tidy) == name:
            raise OptionsError(f"two images are called {name}; a folder of labels needs a name each (see --relative-to)")
        if tidy in names:
            _refuse(names[tidy], name, tidy)
        names[tidy] = name
    return names


def _find_kept_stems(names: Collection[str]) -> frozenset[str]:
    """The stems whose images keep their extension in the names of their labels, so that no two labels have one name.

    Those that are shared; and where ``a.jpg`` keeps its extension, the stem of ``a.jpg.png``, and so on.
    """
    counts = Counter(map(drop_extension, names))
    stems = {stem for stem, count in counts.items() if count > 1}
    unseen = [name for name in names if drop_extension(name) in stems]
    while unseen:
        more = {name for name in unseen if name in counts and name not in stems}
        stems |= more
        unseen = [name for name in names if drop_extension(name) in more]
    return frozenset(stems)


def _list_files(name: str, stems: frozenset[str], *, label_suffix: str | None, has_pictures: bool) -> Iterator[str]:
    """The files that an image of this tidy name will have, but for pictures whose extension nobody has looked up yet."""
    if label_suffix is not None:
        yield name_label(name, stems) + label_suffix
    if has_pictures and (has_image_extension(name) or name in stems or (label_suffix and name.endswith(label_suffix))):
        yield name


def _check_length(path: str, name: str) -> None:
    num_bytes = max(len(os.fsencode(part)) for part in path.split("/"))
    if num_bytes > _MAX_NAME_BYTES:
        raise OptionsError(
            f"{name} is too long a name: a file of it would have one of {num_bytes} bytes, and a disk takes "
            f"{_MAX_NAME_BYTES}; rename it and label it again, or export coco"
        )


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _list_folders(name: str) -> Iterator[str]:
    """``a/b/c.jpg`` -> ``a/b``, ``a``."""
    while folder := name.rpartition("/")[0]:
        yield folder
        name = folder


def _refuse(one: str, other: str, path: str) -> NoReturn:
    raise OptionsError(f"{one} and {other} do not fit into one folder: {path} would be of both; rename one (see --relative-to)")
