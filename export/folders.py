"""A folder of many files as one export: it says what it holds, takes labels and pictures, refuses what is not its own.

Must not know any format. ``.export.json`` stands in the folder from the start, ``"complete": false``, and is written again
at the end. The same export may be written over itself; another one would leave stale labels between its own.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.names import RECORD, drop_extension, has_image_extension, keep_labels_apart, name_label, tidy_name
from export.options import SelectionOptions
from export.selection import ExportImage, Report, Watch, select_images
from labeler import storage
from labeler.errors import ImageError, OptionsError
from labeler.pictures import find_picture_file, name_extension, read_picture
from labeler.runs import Run

Pictures = Literal["link", "copy", "none"]

_SIGNATURE_BYTES = 16
_PROBE = ".é-"
"""How the file begins by which a disk is tried."""


class FolderOptions(SelectionOptions):
    """What goes into a folder of labels and pictures."""

    images: Pictures = "link"
    """Put the pictures in by a symbolic link, as a copy (where a link is not possible, too) or not at all."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is being written.

    Attributes:
        uri: the folder.
        shared_stems: labels of these names (without extension) would be of several images: see ``keep_labels_apart``.
        image_column: the column of Parquet files that pictures are read from.
        is_renewed: there was this export before.
    """

    uri: str
    shared_stems: frozenset[str]
    image_column: str | None = None
    is_renewed: bool = False

    def name_label(self, image: ExportImage, suffix: str, *, options: SelectionOptions) -> str:
        """``a.jpg`` -> ``a.json``, but ``a.jpg.json`` where there is also an ``a.png``, on whichever side of a split."""
        name = tidy_name(image.name)
        return name_in_split(image, name_label(name, self.shared_stems), options=options) + suffix

    def write(self, name: str, data: bytes) -> None:
        """Write one file, whole or not at all."""
        storage.write_bytes(storage.join(self.uri, name), data)

    def holds_another(self, name: str, data: bytes) -> bool:
        """Whether a file of an earlier export stands there and has another content."""
        if not self.is_renewed:
            return False
        try:
            return storage.read_bytes(storage.join(self.uri, name)) != data
        except FileNotFoundError:
            return False

    def place_picture(
        self,
        image: ExportImage,
        name: str,
        *,
        how: Pictures,
        report: Report,
        may_link: Callable[[Path], bool] = lambda _path: True,
    ) -> str:
        """Put the picture of an image into the folder. One that is not there any more, or not what it was, is counted.

        Args:
            may_link: is asked before a picture is linked; where it may not be, it is copied.

        Returns:
            Its name: what had no image's extension (a row of a Parquet file) gets that of its format.
        """
        name = tidy_name(name)
        if how == "none":
            return name
        source = find_picture_file(image.uri) if how == "link" else None
        try:
            if source is not None and may_link(source):
                size_bytes = storage.stat_file(image.uri).size_bytes
                begin = b"" if has_image_extension(name) else storage.read_bytes(image.uri, offset=0, length=_SIGNATURE_BYTES)
                linked = self._add_extension(name, image, begin)
                target = storage.uri_to_path(storage.join(self.uri, linked))
                if target is not None and _link(target, source):
                    report.num_pictures_changed += image.size_bytes not in (None, size_bytes)
                    return linked
            data = read_picture(image.uri, image_column=self.image_column)
        except (FileNotFoundError, PermissionError, ImageError):  # Also what holds it: gone, or damaged.
            report.num_pictures_missing += 1
            return name
        report.num_pictures_changed += image.size_bytes not in (None, len(data))
        name = self._add_extension(name, image, data)
        self.write(name, data)
        return name

    def _add_extension(self, name: str, image: ExportImage, data: bytes) -> str:
        """``a`` -> ``a.jpg``, if its bytes begin so; but where there is also an ``a.jpg``, it stays apart from that."""
        is_whole = has_image_extension(name) or drop_extension(tidy_name(image.name)) in self.shared_stems
        return name if is_whole else name + name_extension(data)


def _link(target: Path, source: Path) -> bool:
    """Whether that could be done: some file systems have no links, and whoever writes a copy then says what else is wrong."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.link")  # Short, however long the target's name is.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(source)
        temporary.replace(target)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def open_folder(
    run: Run,
    target: str,
    *,
    kind: str,
    options: SelectionOptions,
    label_suffix: str | None = None,
    has_pictures: bool = True,
    by_stem: bool = False,
) -> Iterator[Folder]:
    """A folder to write an export of this kind into; its record is complete when the block ends well.

    Args:
        options: all but ``overwrite`` decide whether it is the same export as before.
        label_suffix: of each image's labels, as ``Folder.name_label`` names them. None: there are none.
        has_pictures: pictures will be placed in it.
        by_stem: the format's readers look for labels by a picture's name without extension, so none may be shared.

    Raises:
        OptionsError: it holds something else, or two images would have one file, or a name leads out of the folder, or is
            too long for one.
        StorageError: it can't be read or written.
    """
    record: dict[str, Any] = {
        "format": kind,
        "model_sha256": run.model_sha256,
        "plan_sha256": run.plan_sha256,
        "mask_options": run.options.model_dump(mode="json"),
        "export_options": options.model_dump(mode="json", exclude={"overwrite"}),
    }
    if run.prompts is not None:  # What was asked decides masks, too.
        record["fingerprint"] = run.fingerprint
    if options.drop_empty and run.reviews:  # Decides which files there are. Otherwise another review writes over all of them.
        record["review_sha256"] = run.reviews.digest
    place = storage.uri_to_path(target)
    stems = keep_labels_apart(
        run,
        kind=kind,
        options=options,
        label_suffix=label_suffix,
        has_pictures=has_pictures,
        by_stem=by_stem,
        is_disk=place is not None,
        tells_apart=place is None or _tells_names_apart(place),
    )
    # They decide what labels are called: once an unfinished run has gone on, those of before may be stale.
    record["shared_stems_sha256"] = hashlib.sha256(os.fsencode("\n".join(sorted(stems)))).hexdigest() if stems else None
    folder = Folder(target, stems, run.image_column, is_renewed=_check_target(target, record))
    _write_record(folder, record, complete=False)
    yield folder
    _write_record(folder, {**record, "num_shards_missing": run.num_missing_shards}, complete=True)


def write_beside_pictures(
    run: Run,
    target: str,
    *,
    kind: str,
    options: FolderOptions,
    describe: Callable[[ExportImage, str, Report], bytes],
    watch: Watch | None = None,
    by_stem: bool = False,
    overwrite: bool = True,
) -> Report:
    """Export a format of one JSON file beside each picture.

    Args:
        describe: gives the JSON of an image, told the name of its picture in that folder; counts in the report.
        by_stem: as for ``open_folder``.
        overwrite: write again what stands there with another content; else it stays and is counted.

    Raises:
        OptionsError, StorageError: as ``open_folder``; also a part of the run can't be read.
    """
    report = Report()
    has_pictures = options.images != "none"
    with open_folder(
        run, target, kind=kind, options=options, label_suffix=".json", has_pictures=has_pictures, by_stem=by_stem
    ) as folder:
        for image in select_images(run, options=options, report=report, watch=watch):
            name = name_in_split(image, image.name, options=options)
            picture = folder.place_picture(image, name, how=options.images, report=report)
            label = folder.name_label(image, ".json", options=options)
            data = describe(image, picture.rpartition("/")[2], report) + b"\n"
            if not overwrite and folder.holds_another(label, data):
                report.num_labels_kept += 1
            else:
                folder.write(label, data)
    return report


def name_in_split(image: ExportImage, name: str, *, options: SelectionOptions) -> str:
    """The name of one of an image's files in the folder: below ``train/`` or ``val/`` where there is a split."""
    return f"{image.split}/{name}" if options.val_fraction else name


def _check_target(target: str, record: dict[str, Any]) -> bool:
    """Whether this export stands there already. Raises OptionsError where something else does."""
    try:
        before = json.loads(storage.read_bytes(storage.join(target, RECORD)))
    except FileNotFoundError:
        before = None
    except (PermissionError, ValueError) as error:
        raise OptionsError(f"{target}/{RECORD} can't be read: {error}") from error
    if before is None:
        if storage.exists(target) and (not storage.is_folder(target) or not _is_empty(target)):
            raise OptionsError(f"{target} is not an empty folder; give a new one")
        return False
    differing = sorted(key for key, value in record.items() if before.get(key) != value)
    if differing:
        words = ", ".join(key.replace("_", " ") for key in differing)
        raise OptionsError(f"{target} holds another export ({words} differ); give a new folder, or delete that one")
    return True


def _tells_names_apart(folder: Path) -> bool:
    """Whether that disk has two files where names differ in case alone, or in the way that accents are written."""
    try:
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PROBE) as file:
            name = os.path.basename(file.name)  # noqa: PTH119 (of a text, not of a path that is followed)
            twins = (name.swapcase(), unicodedata.normalize("NFD", name))
            return not any((folder / twin).exists() for twin in twins)
    except OSError:  # Nothing can be written there; who writes says so.
        return True


def _is_empty(folder: str) -> bool:
    """But for what a desktop or a network's disk leaves in any folder."""
    names = (file.path.rpartition("/")[2] for file in storage.list_files(folder))
    return all(name == ".DS_Store" or name.startswith(("._", ".nfs", _PROBE)) for name in names)


def _write_record(folder: Folder, record: dict[str, Any], *, complete: bool) -> None:
    folder.write(RECORD, json.dumps({**record, "complete": complete}, indent=2).encode() + b"\n")
