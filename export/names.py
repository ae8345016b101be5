"""What the files of an export are called: each image's apart from every other's, before anything is written.

Must not know any format. A run may be of millions: eight bytes an image are held, names only where their hashes meet.
"""

import os
import posixpath
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from export.options import SelectionOptions
from export.selection import name_image
from labeler.errors import OptionsError
from labeler.images import IMAGE_EXTENSIONS
from labeler.runs import Run, iterate_rows

RECORD = ".export.json"
"""What an export says about itself, in its folder. Hidden, so that readers of folders full of JSON pass it by."""

_MAX_NAME_BYTES = 255  # Of a file or folder on a disk; an object store takes longer ones.
_MAX_SUFFIX_BYTES = 5  # Of what a file's name may have more than its image's: .json, .webp.


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
) -> frozenset[str]:
    """Names without extension whose labels keep it, so that each image has its own; all other names are made sure of.

    Args:
        kind: the format, for people.
        label_suffix: of each image's labels. None: there are none.
        has_pictures: there will be pictures beside them.
        by_stem: the format's readers look for labels by a picture's name without extension, so none may be shared.
        is_disk: names can't be of any length.

    Raises:
        OptionsError: two images would have one file, or a name leads out of the folder, or is too long for a file.
    """
    names = _Names(run, options, label_suffix, has_pictures, _MAX_NAME_BYTES if is_disk else None)
    met = names.find_met()
    shared = _find_shared_stems(names, met)
    if by_stem and shared:
        pair = " and ".join(sorted(shared[min(shared)])[:2])
        raise OptionsError(f"{pair} would share their labels: {kind} finds them by the name without its extension; rename one")
    stems = _find_kept_stems(names, shared)
    if met:
        _check_files(names, met, stems)
    return stems


@dataclass(frozen=True, slots=True)
class _Names:
    """What the images of a run are called, read anew each time, and the files that they have in a folder."""

    run: Run
    options: SelectionOptions
    label_suffix: str | None
    has_pictures: bool
    max_bytes: int | None

    def __iter__(self) -> Iterator[str]:
        for row in iterate_rows(self.run, table="images", columns=["uri", "file_name", "status"]):
            if row["status"] != "ok":
                continue
            name = name_image(row, options=self.options)
            if name.startswith("/") or "://" in name or ".." in name.split("/"):
                raise OptionsError(f"{name} is no name for a file in a folder; say with --relative-to where names begin")
            yield name

    def list_files(self, name: str, stems: frozenset[str] = frozenset()) -> Iterator[str]:
        """The files that an image of this tidy name may have; ``stems`` as in ``name_label``."""
        stem = drop_extension(name)
        if self.label_suffix is not None:
            yield name_label(name, stems) + self.label_suffix
        if not self.has_pictures:
            return
        if stem != name or stem in stems or (self.label_suffix and name.endswith(self.label_suffix)):
            yield name
        if stem == name and stem not in stems:  # Of which format it is, nobody has looked yet.
            yield from (name + extension for extension in sorted(IMAGE_EXTENSIONS))

    def list_keys(self, path: str) -> set[str]:
        """What a file or folder has in common with each other one that may get in its way: names without extension.

        ``a.jpg`` and ``a.png`` share ``a``; so do a folder ``a.jpg`` and, where labels end so, ``a.json`` and ``a.jpg.json``.
        """
        keys = {drop_extension(path)}
        if self.label_suffix and path.endswith(self.label_suffix):
            base = path.removesuffix(self.label_suffix)
            keys |= {base, drop_extension(base)}
        return keys

    def find_met(self) -> frozenset[int]:
        """Hashes of the keys that files share, or a file and a folder; nothing else has to be looked at again.

        Only eight bytes an image are held in memory, and eight for a folder that is called as files are.

        Raises:
            OptionsError: a name is absolute, leads out of a folder, is too long, or that of the export's record.
        """
        files, folders, before = array("q"), array("q"), ""
        for name in self:
            tidy = tidy_name(name)
            self._check_record(name, tidy)
            if len(os.fsencode(tidy)) > _MAX_NAME_BYTES - _MAX_SUFFIX_BYTES:  # Few are: else nothing of it is too long.
                self.check_length(name, self.list_files(tidy))
            files.extend(map(hash, self.list_keys(tidy)))
            folder = tidy.rpartition("/")[0]
            if folder != before:
                folders.extend(hash(key) for path in _list_folders(tidy) for key in self._list_folder_keys(path))
                before = folder
        return _find_met(np.frombuffer(files, np.int64), np.frombuffer(folders, np.int64))

    def check_length(self, name: str, paths: Iterator[str]) -> None:
        """Raise OptionsError where a file would be called longer than a disk takes: better than in the middle."""
        if self.max_bytes is None:
            return
        for path in paths:
            num_bytes = max(len(os.fsencode(part)) for part in path.split("/"))
            if num_bytes > self.max_bytes:
                raise OptionsError(
                    f"{name} is too long a name: a file of it would have one of {num_bytes} bytes, and a disk takes "
                    f"{self.max_bytes}; rename it and label it again, or export coco"
                )

    def _list_folder_keys(self, path: str) -> set[str]:
        ends_as_files = has_image_extension(path) or (self.label_suffix and path.endswith(self.label_suffix))
        return self.list_keys(path) if ends_as_files else set()

    def _check_record(self, name: str, tidy: str) -> None:
        is_label = self.label_suffix is not None and drop_extension(tidy) + self.label_suffix == RECORD
        if is_label or tidy.partition("/")[0] == RECORD:
            _refuse(name, "the record of the export", RECORD)


def _find_shared_stems(names: _Names, met: frozenset[int]) -> dict[str, set[str]]:
    """Names without extension that several images of the run have in common, and those images' names.

    Raises:
        OptionsError: two images have the same name, extension and all, or names that are one file's.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names if met else ():
        tidy = tidy_name(name)
        stem = drop_extension(tidy)
        if hash(stem) not in met:
            continue
        other = groups.setdefault(stem, {}).get(tidy)
        if other == name:
            raise OptionsError(f"two images are called {name}; a folder of labels needs a name each (see --relative-to)")
        if other is not None:
            _refuse(other, name, tidy)
        groups[stem][tidy] = name
    return {stem: set(group) for stem, group in groups.items() if len(group) > 1}


def _find_kept_stems(names: _Names, shared: Mapping[str, set[str]]) -> frozenset[str]:
    """The stems whose images keep their extension in the names of their labels, so that no two labels have one name.

    Those that are shared; and where ``a.jpg`` keeps its extension, the stem of ``a.jpg.png``, and so on.
    """
    stems = set(shared)
    keeping = {name for group in shared.values() for name in group} - stems
    while keeping:
        met = {tidy for tidy in map(tidy_name, names) if drop_extension(tidy) in keeping}
        stems |= {drop_extension(name) for name in met}
        keeping = met - stems
    return frozenset(stems)


def _check_files(names: _Names, met: frozenset[int], stems: frozenset[str]) -> None:
    """Raise OptionsError where a file would be two images', or a folder for others; only names that met are held.

    Args:
        met: as ``_Names.find_met`` gives them.
        stems: of the labels that keep their extension.
    """
    files: dict[str, str] = {}
    for name in names:
        tidy = tidy_name(name)
        if drop_extension(tidy) not in stems and met.isdisjoint(map(hash, names.list_keys(tidy))):
            continue
        names.check_length(name, names.list_files(tidy, stems))
        for path in names.list_files(tidy, stems):
            other = files.setdefault(path, name)
            if other != name:
                _refuse(other, name, path)
    for name in names:
        for folder in _list_folders(tidy_name(name)):
            if folder in files:
                _refuse(files[folder], name, folder)


def _list_folders(name: str) -> Iterator[str]:
    """``a/b/c.jpg`` -> ``a/b``, ``a``."""
    while folder := name.rpartition("/")[0]:
        yield folder
        name = folder


def _refuse(one: str, other: str, path: str) -> NoReturn:
    raise OptionsError(f"{one} and {other} do not fit into one folder: {path} would be of both; rename one (see --relative-to)")


def _find_met(files: Any, folders: Any) -> frozenset[int]:
    # Python's hashes differ from run to run, but only equality within this process counts.
    files = np.sort(files)
    repeated = files[1:][files[1:] == files[:-1]]
    places = np.searchsorted(files, folders)
    is_file = files.take(places, mode="clip") == folders if files.size else np.zeros(0, bool)
    return frozenset([*repeated.tolist(), *folders[is_file].tolist()])
