"""A finished run to look through and to review: its images in an order, their masks as they stand, what is decided.

Must not know pages or models. The run's own tables are only read; a decision is a new file (``labeler.reviews``), and
others' decisions are seen when an image is shown again.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from labeler import rle, tables
from labeler.errors import OptionsError
from labeler.reviews import Decision, MaskKey, ReviewedMask, Row, Verdict, new_drawn_id, read_reviews, write_decision
from labeler.runs import Run, iterate_images, iterate_parts, iterate_rows
from labeler.types import MaskSet, Size, UInt32

Order = Literal["as in the run", "most masks", "fewest masks", "lowest score", "failures first"]
ORDERS: tuple[Order, ...] = ("as in the run", "most masks", "fewest masks", "lowest score", "failures first")

_IMAGE_COLUMNS = (
    "image_id", "file_name", "uri", "width", "height", "status", "error_kind", "error_message", "num_masks",
)  # fmt: skip
_KEPT_SHARDS = 4


@dataclass(frozen=True, slots=True)
class RunImage:
    """One image of the run: its place in it, its shard, its row of the images table."""

    place: int
    shard: int
    row: Row


class ReviewDesk:
    """A run and its review, as far as it is known here. Safe to use from several threads.

    Args:
        run: what is committed of it counts.

    Raises:
        OptionsError: nothing is; or the review is about other images.
        StorageError: a part can't be read.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._reviews = run.reviews
        shards = [(s, row) for s, rows in iterate_parts(run, table="images", columns=_IMAGE_COLUMNS) for row in rows]
        self.images = tuple(RunImage(place, shard, row) for place, (shard, row) in enumerate(shards))
        if not self.images:
            raise OptionsError(f"{run.output} has no committed images to show")
        for _, row in shards:
            run.reviews.check_image(row["image_id"], file_name=row["file_name"])
        self._read_shard = lru_cache(maxsize=_KEPT_SHARDS)(self._read_shard_anew)

    def sort(self, order: Order) -> list[int]:
        """The places of all images in an order, after the review; equal ones as in the run."""
        images = self.images
        if order == "most masks":
            return sorted(range(len(images)), key=lambda i: -self.count_masks(images[i]))
        if order == "fewest masks":
            return sorted(range(len(images)), key=lambda i: (images[i].row["status"] != "ok", self.count_masks(images[i])))
        if order == "failures first":
            return sorted(range(len(images)), key=lambda i: images[i].row["status"] == "ok")
        if order == "lowest score":
            means = self._measure_scores()
            return sorted(range(len(images)), key=lambda i: means.get(images[i].row["image_id"], np.inf))
        return list(range(len(images)))

    def count_masks(self, image: RunImage) -> int:
        """How many masks an image has after the review, as far as it is known."""
        return self._reviews.count_masks(image.row)

    def list_masks(self, image: RunImage) -> list[ReviewedMask]:
        """The masks of an image as they stand, those that are rejected too. Others' new decisions are read first."""
        self._refresh()
        rows = self._read_shard(image.shard).get(image.row["image_id"], [])
        return self._reviews.list_masks(rows, image_id=image.row["image_id"])

    def find_decision(self, key: MaskKey) -> Decision | None:
        """What holds of a mask, where anything was decided."""
        return self._reviews.standing.get(key)

    def toggle(self, image: RunImage, mask: ReviewedMask) -> tuple[Decision, Decision | None] | None:
        """Reject a mask, or take one back that was shown as rejected.

        Returns:
            The decision and what held before; None where others decided the same since the mask was shown.
        """
        self._refresh()
        before = self.find_decision(mask.key)
        is_rejected = before is not None and before.verdict == "reject"
        if is_rejected != (mask.verdict == "reject"):
            return None
        changed = None if before is None else before.mask
        verdict: Verdict = "reject"
        if is_rejected:
            verdict = "restore" if changed is None else "draw" if mask.is_drawn else "refine"
        return self._decide(Decision(key=mask.key, verdict=verdict, file_name=image.row["file_name"], mask=changed)), before

    def put(self, image: RunImage, mask: MaskSet, *, key: MaskKey | None) -> tuple[Decision, Decision | None]:
        """Put one mask in the place of another, or add it where ``key`` is None: the decision, and what held before."""
        self._refresh()
        before = None if key is None else self.find_decision(key)
        image_id = image.row["image_id"]
        verdict: Verdict = "draw" if key is None or isinstance(key[1], str) else "refine"
        row = tables.masks_to_batch(mask, image_id=image_id, file_name=image.row["file_name"]).to_pylist()[0]
        key = key or (image_id, new_drawn_id())
        return self._decide(Decision(key=key, verdict=verdict, file_name=image.row["file_name"], mask=row)), before

    def take_back(self, decision: Decision, before: Decision | None) -> Decision:
        """Decide what held of a mask before a decision; what others decided about it since is taken back, too."""
        self._refresh()
        if before is not None:
            return self._decide(before)
        verdict: Verdict = "reject" if decision.is_drawn else "restore"
        return self._decide(replace(decision, verdict=verdict, mask=decision.mask if decision.is_drawn else None))

    def count(self) -> dict[str, int]:
        """How many masks of the run are rejected, refined and drawn, as far as it is known."""
        return dict(self._reviews.count())

    def _decide(self, decision: Decision) -> Decision:
        with self._lock:
            reviews = write_decision(self.run.output, decision, about=self.run.about, after=self._reviews)
            self._reviews = reviews
            return reviews.standing[decision.key]

    def _refresh(self) -> None:
        with self._lock:
            self._reviews = read_reviews(self.run.output, about=self.run.about, known=self._reviews)

    def _read_shard_anew(self, shard: int) -> dict[int, list[Row]]:
        """The rows of a shard's masks, by image."""
        rows: dict[int, list[Row]] = {}
        for row in iterate_rows(self.run, table="masks", columns=tuple(tables.MASKS_SCHEMA.names), shards=[shard]):
            rows.setdefault(row["image_id"], []).append(row)
        return rows

    def _measure_scores(self) -> dict[int, float]:
        """The mean predicted IoU of each image's masks after the review."""
        run, means = replace(self.run, reviews=self._reviews), {}
        for row, masks in iterate_images(run, columns=("image_id",), mask_columns=("image_id", "predicted_iou")):
            if masks:
                means[row["image_id"]] = float(np.mean([mask["predicted_iou"] for mask in masks]))
        return means


def find_mask(masks: Sequence[ReviewedMask], xy: tuple[float, float], *, only_rejected: bool = False) -> ReviewedMask | None:
    """The smallest mask at a point of the image; one that is rejected only where no other is, or where it is asked for."""
    hit = [mask for mask in masks if (mask.verdict == "reject" or not only_rejected) and _holds(mask.row, xy)]
    return min(hit, key=lambda mask: (mask.verdict == "reject", mask.row["area"]), default=None)


def find_inner_point(runs: UInt32, *, image_hw: Size) -> tuple[float, float]:
    """x, y of a pixel that is surely within a mask: the middle of its longest run."""
    longest = 2 * int(runs[1::2].argmax()) + 1
    first = int(runs[:longest].sum(dtype=np.int64))
    x, y = divmod(first + int(runs[longest]) // 2, image_hw[0])
    return x + 0.5, y + 0.5


def row_to_runs(row: Row) -> UInt32:
    """The run lengths of a row of the masks table."""
    return rle.counts_to_runs(row["segmentation"]["counts"])


def _holds(row: Row, xy: tuple[float, float]) -> bool:
    height, width = row["segmentation"]["size"]
    x, y = min(int(xy[0]), width - 1), min(int(xy[1]), height - 1)
    left, top, w, h = row["bbox"]
    if not (left <= x < left + w and top <= y < top + h):
        return False
    crop = rle.runs_to_crop(row_to_runs(row), image_hw=(height, width), box_xywh=(x, y, 1, 1))
    return bool(crop[0, 0])
