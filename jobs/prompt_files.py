"""Files of prompts: COCO's annotations, or a .csv, .jsonl or .parquet table. Read row by row, of any length.

Must not know the run's images: a prompt comes out as its file has it, and what can't be understood of it comes out as
its error. Only a file that is none is refused. The columns of a table are described at ``COLUMNS``.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.lists import clean_text, id_to_text, read_coco, read_table
from labeler.errors import OptionsError, PromptError
from labeler.prompts import Numbers, Prompt
from labeler.types import Size

COLUMNS = {
    "image": "the image: its file name in the run, or its URI; also called file_name or uri",
    "box_xyxy": "[left, top, right, bottom] in pixels; in .csv as text. Or the four columns x0, y0, x1, y1",
    "box_xywh": "[left, top, width, height], as COCO's bbox",
    "points_xy": "[[x, y], ...] in pixels",
    "point_labels": "[1, 0, ...]: inside or outside of the object, one a point; not there: all inside",
    "id": "the prompt's own id; also called source_prompt_id",
    "category_id": "a whole number",
    "category": "its name; without a number it gets one",
    "width": "of the image that the prompt was made for, in pixels; with height: see --prompts-frame",
    "height": "the same",
}
_NAMES = ("image", "file_name", "uri")
_IDS = ("id", "source_prompt_id")
_CORNERS = ("x0", "y0", "x1", "y1")
_UNCLEAR = ("box", "bbox", "boxes")
_TABLES = frozenset({"csv", "jsonl", "parquet"})
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image that a COCO file lists: its prompts name it by ``ref``."""

    ref: str
    name: str
    frame_hw: Size | None


class PromptFile:
    """One file of prompts.

    Raises:
        OptionsError: its extension is none that is read.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._extension = uri.rpartition(".")[2].lower()
        self._categories: dict[int, dict[str, Any]] = {}
        self._category_ids: dict[str, int] = {}
        if self._extension not in {*_TABLES, "json"}:
            raise OptionsError(f"--prompts {uri} is neither a COCO .json nor a table: .csv, .jsonl, .parquet")

    @property
    def categories(self) -> list[dict[str, Any]]:
        """All categories of the file and its prompts, by id; complete once the prompts were read."""
        return [self._categories[number] for number in sorted(self._categories)]

    def read_images(self) -> Iterator[FileImage]:
        """The images of a COCO file; of a table none, for its prompts name theirs.

        Raises:
            OptionsError: it is no COCO file.
            FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
        """
        for row in read_coco(self._uri, "images") if self._extension == "json" else ():
            if not isinstance(row, Mapping) or "id" not in row or not isinstance(row.get("file_name"), str):
                raise OptionsError(f"--prompts {self._uri}: an image without id or file_name: {str(row)[:80]}")
            yield FileImage(_to_ref(row["id"]), clean_text(row["file_name"]), _read_size(row))

    def read_prompts(self) -> Iterator[Prompt]:
        """The prompts in the file's order; ``prompt_id`` counts from 1, ``image`` is a COCO image's ``ref`` or a name.

        Raises:
            OptionsError: it is not what its extension says, or lacks what every prompt needs.
            FileNotFoundError, PermissionError, StorageError: as ``labeler.storage``.
        """
        if self._extension == "json":
            self._read_coco_categories()
            for number, row in enumerate(read_coco(self._uri, "annotations"), start=1):
                yield self._annotation_to_prompt(row if isinstance(row, Mapping) else {}, number)
            return
        self._read_table_categories()
        columns = [*_NAMES, *_IDS, *_CORNERS, *COLUMNS, *_UNCLEAR]
        for number, row in enumerate(self._read_rows(columns), start=1):
            if number == 1:
                self._check_columns(row)
            yield self._row_to_prompt(row, number)

    def _read_coco_categories(self) -> None:
        for row in read_coco(self._uri, "categories", is_needed=False):
            with suppress(PromptError):  # One without a number is nobody's.
                number = _to_category_id(row.get("id") if isinstance(row, Mapping) else None)
                if number is not None:
                    texts = {key: clean_text(value) for key, value in row.items() if isinstance(value, str)}
                    name = _to_name(row.get("name")) or str(number)
                    self._categories.setdefault(number, {**row, **texts, "id": number, "name": name})

    def _read_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Of a table, without what is NaN: so pandas writes what is not there."""
        for row in read_table(self._uri, columns=columns):
            yield {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}

    def _read_table_categories(self) -> None:
        """Read the whole table beforehand, so that names without a category_id get numbers that no row uses.

        They get them by the alphabet: files with the same names have the same numbers, in whatever order their rows are.
        """
        ids: dict[str, int | None] = {}
        for row in self._read_rows(["category_id", "category"]):
            name = _to_name(row.get("category"))
            try:
                number = _to_category_id(row.get("category_id"))
            except PromptError:
                continue  # Its prompt will say so.
            if number is not None:
                category = self._categories.setdefault(number, {"id": number})
                if name is not None and category.setdefault("name", name) != name:
                    continue  # This, too.
            if name is not None and ids.get(name) is None:
                ids[name] = number
        spare = itertools.count(1 + max([0, *self._categories]))
        self._category_ids = {name: next(spare) if number is None else number for name, number in sorted(ids.items())}
        for name, number in self._category_ids.items():
            self._categories.setdefault(number, {"id": number, "name": name})
        for number, category in self._categories.items():
            category.setdefault("name", str(number))

    def _annotation_to_prompt(self, row: Mapping[str, Any], number: int) -> Prompt:
        error = None
        if row.get("iscrowd") not in (None, 0, "", "0"):
            error = PromptError("crowd", "COCO says iscrowd: a box around many is no question after one mask")
        box, category_id = None, None
        try:
            category_id = self._find_category(row.get("category_id"), None)
            box = _add_size(_read_numbers(row.get("bbox"), "bbox", count=4))
        except PromptError as fault:
            error = error or fault
        return Prompt(
            prompt_id=number,
            source_id=id_to_text(row.get("id")),
            image=_to_ref(row.get("image_id")),
            category_id=category_id,
            box_xyxy=box,
            error=error,
        )

    def _row_to_prompt(self, row: Mapping[str, Any], number: int) -> Prompt:
        image = next((row[name] for name in _NAMES if row.get(name) not in (None, "")), None)
        known: dict[str, Any] = {}
        error = None
        try:
            known["category_id"] = self._find_category(row.get("category_id"), row.get("category"))
            known["box_xyxy"] = _read_box(row)
            known["points_xy"], known["point_labels"] = _read_points(row)
        except PromptError as fault:
            error = fault
        source_id = next((row[name] for name in _IDS if row.get(name) not in (None, "")), None)
        return Prompt(
            prompt_id=number,
            source_id=id_to_text(source_id),
            image=None if image is None else clean_text(str(image)),
            frame_hw=_read_size(row),
            error=error,
            **known,
        )

    def _check_columns(self, row: Mapping[str, Any]) -> None:
        where = f"--prompts {self._uri}"
        known = "; ".join(f"{name}: {text}" for name, text in COLUMNS.items())
        has_prompt = any(name in row for name in ("box_xyxy", "box_xywh", "points_xy", *_CORNERS))
        is_ragged = self._extension == "jsonl"  # Its next row may have what this one lacks.
        if not any(name in row for name in _NAMES) and not (is_ragged and has_prompt):
            raise OptionsError(f"{where} has no column that names the image. Columns: {known}")
        if has_prompt:
            return
        unclear = next((name for name in _UNCLEAR if name in row), None)
        if unclear is not None:
            raise OptionsError(f"{where}: a column {unclear} may hold corners or sizes; call it box_xyxy or box_xywh")
        raise OptionsError(f"{where} has no column of boxes or points. Columns: {known}")

    def _find_category(self, number: object, name: object) -> int | None:
        """The category's number. One that a COCO file does not list is added."""
        category_id, text = _to_category_id(number), _to_name(name)
        if category_id is None:
            return None if text is None else self._category_ids.get(text)
        category = self._categories.setdefault(category_id, {"id": category_id, "name": str(category_id)})
        if text is not None and text != category["name"]:
            known = _shorten(category["name"])
            raise PromptError("malformed", f"category_id {category_id} is {known} elsewhere, but here {_shorten(text)}")
        return category_id


def _read_box(row: Mapping[str, Any]) -> Numbers | None:
    if row.get("box_xyxy") not in (None, ""):
        return _read_numbers(row["box_xyxy"], "box_xyxy", count=4)
    if row.get("box_xywh") not in (None, ""):
        return _add_size(_read_numbers(row["box_xywh"], "box_xywh", count=4))
    corners = [row.get(name) for name in _CORNERS]
    return None if all(corner in (None, "") for corner in corners) else _read_numbers(corners, "x0, y0, x1, y1", count=4)


def _read_points(row: Mapping[str, Any]) -> tuple[tuple[Numbers, ...], tuple[int, ...]]:
    values, labels = _parse(row.get("points_xy"), "points_xy"), _parse(row.get("point_labels"), "point_labels")
    if values is None or values == []:
        return (), ()
    points = tuple(_read_numbers(point, "points_xy", count=2) for point in values)
    if labels is None:
        return points, (1,) * len(points)
    return points, tuple(_to_whole(label, "point_labels") for label in labels)


def _read_numbers(value: object, name: str, *, count: int) -> Numbers:
    """So many numbers, of a list or a text. NaN is one here; what is wrong with it is said where the prompt is asked."""
    values = _parse(value, name)
    if values is None:
        raise PromptError("malformed", f"it has no {name}")
    try:
        numbers = tuple(float(number) for number in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError("malformed", f"{name} {_shorten(value)} is not {count} numbers") from error
    if len(numbers) != count:
        raise PromptError("malformed", f"{name} {_shorten(value)} is not {count} numbers")
    return numbers


def _parse(value: object, name: str) -> list[Any] | None:
    """A list as it is, or as text: JSON, or numbers with commas or blanks between them."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.replace(",", " ").split()
        except ValueError as error:
            raise PromptError("malformed", f"{name} {_shorten(value)} is no list") from error
    if value is None or value == "":
        return None
    if not isinstance(value, list):
        raise PromptError("malformed", f"{name} {_shorten(value)} is no list")
    return value


def _add_size(box_xywh: Numbers) -> Numbers:
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def _read_size(row: Mapping[str, Any]) -> Size | None:
    """Height and width; None where they are not there, not both numbers, or 0, as some files have it."""
    try:
        width, height = (int(float(row.get(name) or 0)) for name in ("width", "height"))  # Tables have 640.0, too.
    except (TypeError, ValueError, OverflowError):
        return None
    return (height, width) if 0 < width <= _LARGEST and 0 < height <= _LARGEST else None


def _to_whole(value: object, name: str) -> int:
    try:
        number = float(value)  # type: ignore[arg-type]  # What is no number is a TypeError.
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer() or abs(number) > _LARGEST:
        raise PromptError("malformed", f"{name} {_shorten(value)} is no whole number")
    return int(number)


def _to_category_id(value: object) -> int | None:
    return None if value in (None, "") else _to_whole(value, "category_id")


def _to_name(value: object) -> str | None:
    return None if value in (None, "") else clean_text(str(value))


def _to_ref(image_id: object) -> str:
    """What leads from a COCO file's annotations to its images: 7, 7.0 and "7" are one id."""
    text = id_to_text(image_id) or ""
    return text if re.fullmatch(r"0|-?[1-9][0-9]*", text) else json.dumps(image_id)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
