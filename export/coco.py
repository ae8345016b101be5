"""A run -> COCO JSON files of instance masks, streamed. Must not know pixels: the tables already hold COCO's run lengths.

    {"info": {...}, "categories": [{"id": 1, "name": "object", ...}], "annotations": [...], "images": [...]}

The run is read through once, shard by shard. Annotations go to the file as they come, the images' few bytes wait in a
temporary file until the end: memory does not grow with the run. Nothing but the run and the options goes into a file,
so exporting again gives equal bytes. Annotation ids count through all files of an export; masks that prompts asked for
have their prompts' ids and categories.
"""

import itertools
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from export.options import SelectionOptions
from export.polygons import counts_to_polygons
from export.selection import ExportImage, ExportMask, Report, Split, Watch, list_categories, select_images
from labeler import rle, storage
from labeler.errors import OptionsError, StorageError
from labeler.runs import Row, Run, iterate_rows

_SPOOL_BYTES = 1 << 24
_PIECE_BYTES = 1 << 20

Segmentation = Literal["rle", "rle-uncompressed", "polygon"]


class CocoOptions(SelectionOptions):
    """What goes into the files, and how masks are written."""

    segmentation: Segmentation = "rle"
    """'rle': COCO's compressed run lengths; 'rle-uncompressed': a list of numbers (both exact); 'polygon': outlines."""

    max_polygon_loss: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """The IoU a mask may lose as polygons. More loss, fewer corners; 0 follows every pixel."""

    polygon_fallback: Literal["rle", "drop"] = "rle"
    """What becomes of a mask that no polygon carries within that loss: 'rle' keeps it as run lengths."""

    image_ids: Literal["input", "run"] | None = None
    """'input': the ids images had in the COCO file or list that named them; 'run': 1, 2, 3 ... Not set: a COCO input's own,
    else the run's."""

    images_per_file: Annotated[int, Field(ge=1)] | None = None
    """Begin another file after so many images: coco-00000.json, coco-00001.json ... Not set: one file."""


def export_coco(run: Run, target: str, *, options: CocoOptions, watch: Watch | None = None) -> tuple[Report, list[str]]:
    """Write the committed shards of a run as COCO files; each has its final name only when it is complete.

    With ``val_fraction``, ``coco.json`` becomes ``coco_train.json`` and ``coco_val.json``.

    Returns:
        What was written and left out, and the places of the files.

    Raises:
        OptionsError: the names that were asked for do not fit the run.
        StorageError: a part can't be read, or a file can't be written.
    """
    report = Report()
    is_coco = run.input.lower().endswith(".json") or (run.prompts is not None and run.prompts.has_image_ids)
    has_own_ids = (options.image_ids or ("input" if is_coco else "run")) == "input"
    if has_own_ids:
        _check_source_ids(run)
    splits: tuple[Split, ...] = ("train", "val") if options.val_fraction else ("train",)
    categories = ",\n".join(map(_to_json, list_categories(run)))
    head = _to_json(_describe_export(run, options)) + ',\n"categories":[\n' + categories
    spare = _count_spare_ids(run)
    with ExitStack() as stack:
        series = {s: _Series(target, s if options.val_fraction else None, head, spare, options) for s in splits}
        for one in series.values():
            stack.enter_context(one.close_on_exit())
        for image in select_images(run, options=options, report=report, watch=watch):
            numbered = replace(image, image_id=int(image.source_id or 0)) if has_own_ids else image
            series[image.split].add(numbered, report)
    report.num_stale_files = sum(one.count_stale() for one in series.values())
    return report, [name for one in series.values() for name in one.names]


def _check_source_ids(run: Run) -> None:
    """COCO wants whole numbers, and one image for each; eight bytes an image are held."""
    rows = iterate_rows(run, table="images", columns=["file_name", "source_id", "status"])
    ids = np.fromiter((_parse_source_id(row) for row in rows if row["status"] == "ok"), np.int64)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        number = values[counts > 1][0]
        raise OptionsError(f"several images have the id {number} in {run.input}; give them the run's with --image-ids run")


def _parse_source_id(row: Row) -> int:
    text = row["source_id"]
    if text is None or not re.fullmatch(r"-?\d{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise OptionsError(f"{row['file_name']} has the id {text}, but COCO's are whole numbers; give --image-ids run")
    return int(text)


def _count_spare_ids(run: Run) -> Iterator[int] | None:
    """Annotation ids for masks that people drew where all others have their prompts' ids; None: ids count through."""
    if run.prompts is None or not run.reviews.count()["drawn"]:
        return None
    asked = iterate_rows(run, table="prompts", columns=["prompt_id"])
    return itertools.count(1 + max((row["prompt_id"] for row in asked), default=0))


class _Series:
    """The files of one split, one after the other: full ones are closed and get their names at once."""

    def __init__(self, target: str, split: Split | None, head: str, spare: Iterator[int] | None, options: CocoOptions) -> None:
        self._target, self._split, self._head, self._options = target, split, head, options
        self._spare_ids = spare
        self._num_images = 0
        self._num_masks_before = 0
        self._open = ExitStack()
        self._file: _CocoFile | None = None
        self.names: list[str] = []

    def add(self, image: ExportImage, report: Report) -> None:
        """Write an image, and its masks under the next ids."""
        if self._file is None or self._num_images == self._options.images_per_file:
            self._begin_file()
        assert self._file is not None
        self._num_images += 1
        first_id = report.num_masks - len(image.masks) + 1
        segmentations = [_to_segmentation(mask, image, self._options, report) for mask in image.masks]
        kept = [(m, s) for m, s in zip(image.masks, segmentations, strict=True) if s is not None]
        report.num_masks -= len(image.masks) - len(kept)
        self._file.add_image(image)
        for number, (mask, segmentation) in enumerate(kept, start=first_id):
            own_id = number if self._spare_ids is None or mask.prompt_id is not None else next(self._spare_ids)
            self._file.add_mask(
                mask,
                segmentation,
                image_id=image.image_id,
                annotation_id=own_id if mask.prompt_id is None else mask.prompt_id,
            )

    def count_stale(self) -> int:
        """Files that go on where this series ends: a larger export was written here before."""
        if self._options.images_per_file is None:
            return 0
        numbers = itertools.count(len(self.names))
        names = (_name_file(self._target, split=self._split, number=number) for number in numbers)
        return sum(1 for _ in itertools.takewhile(storage.exists, names))

    @contextmanager
    def close_on_exit(self) -> Iterator[None]:
        """The last file gets its name if all goes well, and is gone otherwise."""
        with ExitStack() as stack:
            stack.push(lambda *error: self._open.__exit__(*error))
            yield
            if self._file is None:  # Nothing to write is written too: a split without images is an empty file.
                self._begin_file()

    def _begin_file(self) -> None:
        self._open.close()
        name = _name_file(self._target, split=self._split, number=len(self.names) if self._options.images_per_file else None)
        self._file = self._open.enter_context(_open_coco(name, self._head))
        self._num_images = 0
        self.names.append(name)


class _Spool:
    """Bytes that wait for their place: a few in memory, more in a temporary file. What goes wrong there names its folder."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 (closed on exit)

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # What could not be written is tried once more here.
            self._file.close()

    def write(self, data: bytes) -> None:
        """Add these bytes."""
        with _translate_spool_errors():
            self._file.write(data)

    def move_to(self, sink: storage.Sink) -> None:
        """Write all of them there."""
        with _translate_spool_errors():
            self._file.seek(0)
        while data := self._read_piece():
            sink.write(data)

    def _read_piece(self) -> bytes:
        with _translate_spool_errors():
            return self._file.read(_PIECE_BYTES)


@contextmanager
def _translate_spool_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "the temporary folder"  # Not set yet: none could be found, and the error names them.
        raise StorageError(f"{folder} can't be used: {error.strerror or error}; TMPDIR can name another folder") from error


class _CocoFile:
    """One COCO file being written."""

    def __init__(self, file: storage.Sink, images: _Spool) -> None:
        self._file, self._images = file, images
        self._separator = self._image_separator = b"\n"

    def add_image(self, image: ExportImage) -> None:
        """Remember an image for the end of the file."""
        height, width = image.image_hw
        record = {"id": image.image_id, "file_name": image.name, "width": width, "height": height}
        self._images.write(self._image_separator + _to_json(record).encode("ascii"))
        self._image_separator = b",\n"

    def add_mask(self, mask: ExportMask, segmentation: object, *, image_id: int, annotation_id: int) -> None:
        """Write an annotation."""
        record = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": mask.category_id,
            "segmentation": segmentation,
            "area": mask.area,
            "bbox": mask.bbox,
            "iscrowd": 0,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
        }
        self._file.write(self._separator + _to_json(record).encode("ascii"))
        self._separator = b",\n"


@contextmanager
def _open_coco(name: str, head: str) -> Iterator[_CocoFile]:
    with _Spool() as images, storage.open_whole(name) as file:
        file.write(f'{{"info":{head}\n],\n"annotations":['.encode("ascii"))
        yield _CocoFile(file, images)
        file.write(b'\n],\n"images":[')
        images.move_to(file)
        file.write(b"\n]}\n")


def _name_file(target: str, *, split: Split | None, number: int | None) -> str:
    """``coco.json`` -> ``coco_val-00003.json``."""
    folder, slash, name = target.rpartition("/")
    path = PurePosixPath(name)
    ending = (f"_{split}" if split else "") + ("" if number is None else f"-{number:05d}")
    return folder + slash + path.stem + ending + path.suffix


def _to_segmentation(mask: ExportMask, image: ExportImage, options: CocoOptions, report: Report) -> object:
    """The mask as it stands in the file; None where it is left out."""
    size = list(image.image_hw)
    if options.segmentation == "rle":
        return {"size": size, "counts": mask.counts}
    if options.segmentation == "rle-uncompressed":
        return {"size": size, "counts": rle.counts_to_runs(mask.counts).tolist()}
    polygons = counts_to_polygons(mask.counts, image_hw=image.image_hw, max_loss=options.max_polygon_loss)
    if polygons is not None:
        report.count_polygons(polygons.loss)
        return [ring.ravel().tolist() for ring in polygons.rings]
    if options.polygon_fallback == "drop":
        report.filtered["max_polygon_loss"] += 1
        return None
    report.num_rle += 1
    return {"size": size, "counts": mask.counts}


def _describe_export(run: Run, options: CocoOptions) -> dict[str, Any]:
    """How the file came to be, without a clock or a path: equal runs give equal bytes."""
    return {
        "description": "masks of Segment Anything" + ("" if run.prompts else ", without classes"),
        "model": {"type": run.model_type, "sha256": run.model_sha256},
        "mask_options": run.options.model_dump(mode="json"),
        "export_options": options.model_dump(mode="json"),
        "num_shards_missing": run.num_missing_shards,
        **({"review": dict(run.reviews.count())} if run.reviews else {}),
    }


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
