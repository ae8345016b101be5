"""What people decided about a run's masks: rejected, refined, drawn. Files below ``review/``, and what they make of rows.

Must not know pages, models or formats. A decision is one row of a small Parquet file of its own that is written once and
never again, so writers can't lose each other's: the latest by time, then by the file's name, holds. A decision says
all of what is to become of its mask, so no other has to be read to know. The run's own tables are never touched.
"""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from labeler import storage
from labeler.errors import OptionsError, StorageError
from labeler.tables import BOX_OR_NULL, MASKS_SCHEMA, SCHEMA_VERSION, decode_part, read_metadata

FOLDER = "review"

Verdict = Literal["reject", "restore", "refine", "draw"]
"""Leave the mask out; take the run's own again; put another in its place; add one that the run did not find."""

Row = dict[str, Any]

_MASK_COLUMNS = (
    "segmentation", "bbox", "area", "predicted_iou", "stability_score", "point_coords", "crop_box",
)  # fmt: skip

_BOXES = ("bbox", "crop_box")

REVIEW_SCHEMA = pa.schema(
    [
        ("decided_at", pa.timestamp("us", tz="UTC")),
        ("verdict", pa.string()),
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("mask_id", pa.int32()),  # The mask of the run that this is about; null where it was drawn.
        ("drawn_id", pa.string()),  # Names a drawn mask; null where it is the run's.
        # What was refined or drawn; null where it is the run's own.
        *((name, BOX_OR_NULL if name in _BOXES else MASKS_SCHEMA.field(name).type) for name in _MASK_COLUMNS),
    ]
)

PROMPTED = "labeler.fingerprint"
"""What ``Run.about`` has more in a run with prompts."""

_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{16}\.parquet")
_READERS = 16
_NOT_YET = datetime.min.replace(tzinfo=UTC)

MaskKey = tuple[int, int | str]
"""image_id, and the mask_id of one of the run's masks or the drawn_id of one that was drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to become of one mask.

    Attributes:
        key: which mask.
        verdict: what becomes of it.
        file_name: its image's, as the run has it.
        mask: the columns of the masks table that hold from now on, where it was refined or drawn; where such a mask is
            rejected they are kept, so that it can be taken back.
        decided_at: when, and ``name``: in which file; set by ``write_decision``.
    """

    key: MaskKey
    verdict: Verdict
    file_name: str
    mask: Row | None = None
    decided_at: datetime = _NOT_YET
    name: str = ""

    @property
    def is_drawn(self) -> bool:
        """Whether it is about a mask that the run did not find."""
        return isinstance(self.key[1], str)


@dataclass(frozen=True, slots=True)
class ReviewedMask:
    """A mask as it stands: its row of the masks table, and what was decided about it, if anything."""

    key: MaskKey
    row: Row
    verdict: Verdict | None

    @property
    def is_drawn(self) -> bool:
        """Whether the run did not find it."""
        return isinstance(self.key[1], str)


@dataclass(frozen=True)
class Reviews:
    """All decisions about a run that were there when it was read, by the names of their files. Memory grows with them."""

    by_file: Mapping[str, tuple[Decision, ...]] = field(default_factory=dict)

    @cached_property
    def standing(self) -> Mapping[MaskKey, Decision]:
        """The one that holds of each mask."""
        return {decision.key: decision for decision in self._in_order()}

    @cached_property
    def drawn(self) -> Mapping[int, tuple[str, ...]]:
        """The drawn masks of each image, rejected ones too, in the order in which they were first drawn."""
        drawn: dict[int, dict[str, None]] = {}
        for decision in self._in_order():
            if isinstance(decision.key[1], str):
                drawn.setdefault(decision.key[0], {}).setdefault(decision.key[1])
        return {image_id: tuple(ids) for image_id, ids in drawn.items()}

    @cached_property
    def num_added(self) -> Mapping[int, int]:
        """How many masks more each image has than the run found; less than 0 where some are rejected."""
        added: Counter[int] = Counter()
        for decision in self.standing.values():
            added[decision.key[0]] += int(decision.is_drawn) - int(decision.verdict == "reject")
        return added

    def count_masks(self, image: Row) -> int:
        """How many masks an image has after the review, by its row of the images table."""
        return int(image["num_masks"]) + self.num_added.get(image["image_id"], 0)

    @cached_property
    def file_names(self) -> Mapping[int, frozenset[str]]:
        """What the decisions about each image call it."""
        names: dict[int, set[str]] = {}
        for decision in self.standing.values():
            names.setdefault(decision.key[0], set()).add(decision.file_name)
        return {image_id: frozenset(found) for image_id, found in names.items()}

    def check_image(self, image_id: int, *, file_name: str) -> None:
        """Whether the decisions about an image are about this one.

        Raises:
            OptionsError: they are about another's: the review of other images, labeled with the same model and options.
        """
        others = self.file_names.get(image_id, frozenset()) - {file_name}
        if others:
            raise OptionsError(
                f"the review is about {min(others)} where this run has {file_name}; "
                f"remove the folder {FOLDER}, or leave the review out with --ignore-review"
            )

    def apply(self, rows: Sequence[Row], *, image_id: int) -> list[Row]:
        """An image's rows of the masks table, all of them and with ``mask_id``, as they are after the review.

        Those that people refined or drew have ``is_by_hand`` True, the others no such key.
        """
        masks = [mask for mask in self.list_masks(rows, image_id=image_id) if mask.verdict != "reject"]
        return [mask.row if mask.verdict is None else {**mask.row, "is_by_hand": True} for mask in masks]

    def list_masks(self, rows: Sequence[Row], *, image_id: int) -> list[ReviewedMask]:
        """The same with those that are rejected, each with what was decided.

        Drawn masks get the mask_ids after the run's own, in the order in which they were drawn; one that was rejected
        keeps its number. So no number is ever two masks', and few are needed.
        """
        masks = []
        for row in rows:
            key = image_id, row["mask_id"]
            decision = self.standing.get(key)
            if decision is None or decision.verdict == "restore":
                masks.append(ReviewedMask(key, row, None))
            else:
                changed = {name: value for name, value in (decision.mask or {}).items() if name in row}
                masks.append(ReviewedMask(key, row | changed, decision.verdict))
        first = max((row["mask_id"] for row in rows), default=-1) + 1
        for mask_id, drawn_id in enumerate(self.drawn.get(image_id, ()), start=first):
            decision = self.standing[image_id, drawn_id]
            known = {"image_id": image_id, "mask_id": mask_id, "file_name": decision.file_name}
            masks.append(ReviewedMask(decision.key, known | (decision.mask or {}), decision.verdict))
        return masks

    def count(self) -> Mapping[str, int]:
        """How many masks of the run are rejected, how many refined, and how many are drawn."""
        verdicts = Counter(
            "draw" if decision.is_drawn and decision.verdict == "refine" else decision.verdict
            for decision in self.standing.values()
            if not (decision.is_drawn and decision.verdict == "reject")
        )
        return {"rejected": verdicts["reject"], "refined": verdicts["refine"], "drawn": verdicts["draw"]}

    @property
    def digest(self) -> str:
        """Equal where the decisions are: files are never rewritten, so their names say it all."""
        return hashlib.sha256("\n".join(sorted(self.by_file)).encode()).hexdigest()

    def __bool__(self) -> bool:
        return bool(self.by_file)

    def _in_order(self) -> Iterable[Decision]:
        decisions = (decision for group in self.by_file.values() for decision in group)
        return sorted(decisions, key=lambda decision: (decision.decided_at, decision.name))


def read_reviews(output: str, *, about: Mapping[str, str], known: Reviews | None = None) -> Reviews:
    """All decisions below a run's folder. None is a normal answer. Files with other names are not read.

    Args:
        output: the run's folder.
        about: ``Run.about``: which masks these are; decisions about another run's masks would hit the wrong ones.
        known: what was read before: its files are not read again.

    Raises:
        OptionsError: they are about another run.
        StorageError: a file can't be read or is damaged.
    """
    try:
        folder = storage.join(output, FOLDER)
        files = {name: storage.join(folder, name) for name in storage.list_names(folder) if _NAME.fullmatch(name)}
    except FileNotFoundError:
        return Reviews()
    except PermissionError as error:
        raise StorageError(f"{output}/{FOLDER} may not be read: permission denied") from error
    before = known.by_file if known is not None else {}
    with ThreadPoolExecutor(_READERS) as pool:
        unread = sorted(files.keys() - before.keys())
        read = dict(zip(unread, pool.map(lambda name: _read_file(files[name], name, about), unread), strict=True))
    return Reviews({**{name: group for name, group in before.items() if name in files}, **read})


def write_decision(output: str, decision: Decision, *, about: Mapping[str, str], after: Reviews | None = None) -> Reviews:
    """Write a decision into a file of its own, whole or not at all.

    Args:
        output: the run's folder.
        decision: its time and name are set here.
        about: ``Run.about``.
        after: what the person had seen. The new decision is later than that, whatever this machine's clock says.

    Returns:
        ``after`` with the new decision.

    Raises:
        StorageError: it can't be written.
    """
    seen = after or Reviews()
    now = datetime.now(UTC)
    before = seen.standing.get(decision.key)
    if before is not None and now <= before.decided_at:
        now = before.decided_at + timedelta(microseconds=1)
    name = f"{now:%Y%m%dT%H%M%S.%f}Z-{secrets.token_hex(8)}.parquet"
    image_id, mask = decision.key
    row = {
        "decided_at": now,
        "verdict": decision.verdict,
        "image_id": image_id,
        "file_name": decision.file_name,
        "mask_id": None if isinstance(mask, str) else mask,
        "drawn_id": mask if isinstance(mask, str) else None,
        **{column: decision.mask[column] if decision.mask else None for column in _MASK_COLUMNS},
    }
    schema = REVIEW_SCHEMA.with_metadata(dict(about))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), sink, compression="zstd")
    uri = storage.join(output, FOLDER, name)
    storage.write_bytes(uri, bytes(sink.getvalue()))
    return Reviews({**seen.by_file, name: (_to_decision(row, name),)})


def new_drawn_id() -> str:
    """A name for a mask that a person drew: unlike any other's, whoever draws at the same time."""
    return secrets.token_hex(8)


def _read_file(uri: str, name: str, about: Mapping[str, str]) -> tuple[Decision, ...]:
    try:
        table = decode_part(storage.read_bytes(uri), name=uri)
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{uri} can't be read: {error}") from error
    found = read_metadata(table)
    if found.get("labeler.schema_version") != str(SCHEMA_VERSION) or set(REVIEW_SCHEMA.names) - set(table.column_names):
        raise OptionsError(f"{uri} is no decision that this version can read; leave the review out with --ignore-review")
    if found not in (dict(about), {key: value for key, value in about.items() if key != PROMPTED}):  # Of before it was written.
        raise OptionsError(
            f"{uri} is about masks of another model, other options or other prompts than this run's; "
            "remove that folder, or leave the review out with --ignore-review"
        )
    return tuple(_to_decision(row, name) for row in table.to_pylist())


def _to_decision(row: Row, name: str) -> Decision:
    drawn_id = row["drawn_id"]
    return Decision(
        key=(row["image_id"], row["mask_id"] if drawn_id is None else drawn_id),
        verdict=row["verdict"],
        file_name=row["file_name"],
        mask=None if row["segmentation"] is None else {column: row[column] for column in _MASK_COLUMNS},
        decided_at=row["decided_at"],
        name=name,
    )
