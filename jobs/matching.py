"""Prompts -> the images of a run that they are for, in the order of the plan; any number of them in bounded memory.

A prompt names its image by file name, else by URI, else by the same name with its accents written in the other way. Both sides
may be millions in any order, so they meet in an SQLite database in the machine's temporary folder. Must not know what is
asked, nor how the plan is written.
"""

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jobs.prompt_files import FileImage
from jobs.refs import ImageRef
from labeler import storage
from labeler.errors import OptionsError, PromptError, StorageError
from labeler.prompts import Prompt
from labeler.temporary import temporary_folder

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE sources (ref TEXT PRIMARY KEY, name TEXT, height INTEGER, width INTEGER, by_id TEXT, by_name TEXT, by_text TEXT,
                      by_uri TEXT, by_form TEXT, image_id INTEGER, other_name TEXT);
CREATE TABLE keys (key TEXT PRIMARY KEY, image_id INTEGER) WITHOUT ROWID;
CREATE TABLE prompts (number INTEGER PRIMARY KEY, ref TEXT, own_id TEXT, category_id INTEGER, is_asked INTEGER, body TEXT);
"""

_ADD_SOURCE = """
INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)
ON CONFLICT (ref) DO UPDATE SET other_name = excluded.name WHERE name <> excluded.name
"""

_FIND_IMAGES = """
UPDATE sources SET image_id = COALESCE(
    (SELECT image_id FROM keys WHERE key = by_id),
    (SELECT image_id FROM keys WHERE key = by_name),
    (SELECT image_id FROM keys WHERE key = by_text),
    (SELECT image_id FROM keys WHERE key = by_uri),
    (SELECT image_id FROM keys WHERE key = by_form))
"""

_READ = """
SELECT {id} AS prompt_id, ref, name, own_id, category_id, body, height, width, image_id
FROM prompts LEFT JOIN sources USING (ref) WHERE image_id {which} ORDER BY image_id, prompt_id
"""


class Counts(NamedTuple):
    """What was found: prompts, those whose image the run lacks, images with prompts, prompts to ask without a category."""

    num_prompts: int
    num_without_image: int
    num_images: int
    num_without_category: int


class Matching:
    """The prompts of a file and the images they are for. Open it with ``open_matching``.

    Attributes:
        is_listed: the file lists images, as COCO's do.
        are_ids_lost: the file gives its prompts ids, but the run numbers them.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._id = "number"
        self.is_listed = False
        self.are_ids_lost = False

    def add_prompts(self, images: Iterable[FileImage], prompts: Iterable[Prompt]) -> None:
        """Take in a file: first the images that it lists, if any, then its prompts.

        Raises:
            OptionsError: it gives one id to several images, so that nobody can tell which of them a prompt is for.
        """
        self._database.executemany(_ADD_SOURCE, (_make_source(image, is_listed=True) for image in images))
        twice = self._database.execute("SELECT ref, name, other_name FROM sources WHERE other_name IS NOT NULL").fetchone()
        if twice is not None:
            raise OptionsError("--prompts: the image id {} is that of {} and of {}; give each image its own".format(*twice))
        self.is_listed = bool(self._database.execute("SELECT EXISTS (SELECT 1 FROM sources)").fetchone()[0])
        self._database.executemany(
            "INSERT INTO prompts VALUES (?, ?, ?, ?, ?, ?)",
            ((p.prompt_id, p.image, p.source_id, p.category_id, p.error is None, _prompt_to_body(p)) for p in prompts),
        )
        if not self.is_listed:  # Prompts of a table name their images themselves.
            names = self._database.execute("SELECT DISTINCT ref FROM prompts WHERE ref IS NOT NULL")
            self._database.executemany(
                _ADD_SOURCE, (_make_source(FileImage(ref, ref, None), is_listed=False) for (ref,) in names)
            )
        self._choose_ids()

    def find_images(self, refs: Iterable[ImageRef]) -> None:
        """Take in the images of the run, in the order of their ids, which count from 1."""
        self._database.executescript(
            "INSERT OR IGNORE INTO keys SELECT by_id, NULL FROM sources WHERE by_id IS NOT NULL;"
            "INSERT OR IGNORE INTO keys SELECT by_name, NULL FROM sources;"
            "INSERT OR IGNORE INTO keys SELECT by_text, NULL FROM sources WHERE by_text IS NOT NULL;"
            "INSERT OR IGNORE INTO keys SELECT by_uri, NULL FROM sources WHERE by_uri IS NOT NULL;"
            "INSERT OR IGNORE INTO keys SELECT by_form, NULL FROM sources WHERE by_form IS NOT NULL;"
        )
        # Where several images are called the same, the one of the same id is meant, or the first one.
        keys = ((image_id, key) for image_id, ref in enumerate(refs, start=1) for key in self._list_keys(ref))
        self._database.executemany("UPDATE keys SET image_id = ? WHERE key = ? AND image_id IS NULL", keys)
        self._database.execute(_FIND_IMAGES)
        self._database.execute("CREATE INDEX images ON sources (image_id)")

    def _list_keys(self, ref: ImageRef) -> Iterator[str]:
        """What a source may call an image of the run; see ``_make_source``."""
        name = ref.file_name.removeprefix("./")
        if self.is_listed:
            yield _add_id(name, ref.source_id)
        yield name
        yield ref.uri
        if form := _find_form(name):
            yield form

    def count(self) -> Counts:
        """How many of what."""
        query = (
            "SELECT COUNT(*), TOTAL(image_id IS NULL), COUNT(DISTINCT image_id), "
            "TOTAL(category_id IS NULL AND image_id IS NOT NULL AND is_asked) "
            "FROM prompts LEFT JOIN sources USING (ref)"
        )
        return Counts(*map(int, self._database.execute(query).fetchone()))

    def read_found(self) -> Iterator[Prompt]:
        """The prompts whose image the run has, by ``image_id`` and then ``prompt_id``."""
        yield from map(_row_to_prompt, self._database.execute(_READ.format(id=self._id, which="IS NOT NULL")))

    def read_lost(self) -> Iterator[Prompt]:
        """The others, by ``prompt_id``."""
        yield from map(_row_to_prompt, self._database.execute(_READ.format(id=self._id, which="IS NULL")))

    def read_image(self, image_id: int) -> Iterator[Prompt]:
        """The prompts of one image, by ``prompt_id``."""
        yield from map(_row_to_prompt, self._database.execute(_READ.format(id=self._id, which="= ?"), (image_id,)))

    def has_image_ids(self, num_images: int) -> bool:
        """Whether a COCO file lists every image of the run, each under one whole number of its own."""
        query = (
            "SELECT COUNT(*), COUNT(DISTINCT image_id), TOTAL(ref <> CAST(ref AS INTEGER) || '') FROM sources "
            "WHERE image_id IS NOT NULL"
        )
        num_listed, num_found, num_odd = self._database.execute(query).fetchone()
        return self.is_listed and num_listed == num_found == num_images and not num_odd

    def read_image_ids(self, first: int, last: int) -> dict[int, str]:
        """The file's ids of the images with these ids in the run, both ends included."""
        query = "SELECT image_id, ref FROM sources WHERE image_id BETWEEN ? AND ?"
        return dict(self._database.execute(query, (first, last)))

    def _choose_ids(self) -> None:
        """Where each prompt has a whole number of its own, that is its id in the run too; else its place in the file."""
        odd = "SELECT EXISTS (SELECT 1 FROM prompts WHERE own_id IS NULL OR own_id <> CAST(own_id AS INTEGER) || '')"
        twice = "SELECT EXISTS (SELECT 1 FROM prompts GROUP BY CAST(own_id AS INTEGER) HAVING COUNT(*) > 1)"
        if any(self._database.execute(query).fetchone()[0] for query in (odd, twice)):
            given = "SELECT EXISTS (SELECT 1 FROM prompts WHERE own_id IS NOT NULL)"
            self.are_ids_lost = bool(self._database.execute(given).fetchone()[0])
        else:
            self._id = "CAST(own_id AS INTEGER)"


@contextmanager
def open_matching() -> Iterator[Matching]:
    """An empty one, gone when this ends.

    Raises:
        StorageError: the machine's temporary folder is full.
    """
    with temporary_folder("prompts-") as folder:
        database = sqlite3.connect(Path(folder) / "prompts.sqlite")
        try:
            database.executescript(_TABLES)
            yield Matching(database)
        except sqlite3.OperationalError as error:
            raise StorageError(f"the prompts can't be sorted in {folder}: {error}") from error
        finally:
            database.close()


def _make_source(image: FileImage, *, is_listed: bool) -> tuple[Any, ...]:
    """An image as the plan may know it: by a list's name and id, by a name as it writes them or as people do, by a URI."""
    height, width = image.frame_hw or (None, None)
    name = image.name.removeprefix("./")
    is_absolute = "://" in name or name.startswith("/")
    uri = storage.path_to_uri(name) if is_absolute else None
    by_name = storage.encode_name(name)
    by_id = _add_id(by_name, image.ref) if is_listed else None
    return image.ref, image.name, height, width, by_id, by_name, name, uri, _find_form(by_name)


def _add_id(file_name: str, image_id: str | None) -> str:
    """A key that no file name is: both."""
    return f"{image_id}\n{file_name}"


def _find_form(file_name: str) -> str | None:
    """A key that no file name is, the same of a name however its accents are written: Macs take them apart."""
    return None if file_name.isascii() else f"NFC\n{unicodedata.normalize('NFC', file_name)}"


def _prompt_to_body(prompt: Prompt) -> str:
    error = prompt.error and (prompt.error.kind, prompt.error.reason)
    return json.dumps((prompt.box_xyxy, prompt.points_xy, prompt.point_labels, prompt.frame_hw, error))


def _row_to_prompt(row: tuple[Any, ...]) -> Prompt:
    prompt_id, ref, name, own_id, category_id, body, height, width, image_id = row
    box, points, labels, frame, error = json.loads(body)
    frame = frame or (None if height is None else (height, width))
    prompt = Prompt(
        prompt_id=prompt_id,
        source_id=own_id,
        image=ref if name is None else name,
        image_id=image_id,
        category_id=category_id,
        box_xyxy=None if box is None else tuple(box),
        points_xy=tuple(map(tuple, points)),
        point_labels=tuple(labels),
        frame_hw=None if frame is None else (frame[0], frame[1]),
    )
    return prompt if error is None else replace(prompt, error=PromptError(*error))
