"""What somebody does with one photo: clicks that are added and taken back, and the masks the model answers.

Must not know pages, files or runs. What a person did is a value (``Clicks``, ``Asked``), and undo is the value before.
``Desk`` holds the model and, for a while, what is costly to make again: decoded photos and their embeddings, so that a
click costs one call of the decoder, whoever clicks. Safe to use from several threads.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from labeler import rle
from labeler.errors import OptionsError
from labeler.generator import generate_masks
from labeler.options import resolve_mask_options
from labeler.predictor import Predictor
from labeler.types import MAX_POINTS, Embedding, Float32, Image, MaskSet, Prompts, Size, UInt32

logger = logging.getLogger(__name__)

Point = tuple[float, float]

_NUM_WARM_CLICKS = 4

MAX_PHOTO_BYTES = 768 << 20
MAX_EMBEDDING_BYTES = 256 << 20

_SHOWN_LOGIT = 8.0
"""What the model is told of a pixel inside of a mask that is to be refined: as sure as its own answers are."""


@dataclass(frozen=True, slots=True)
class Clicks:
    """What is asked for one mask, in pixels of the photo.

    Attributes:
        points_xy, labels: clicked, inside (1) or outside (0).
        box_xyxy: left, top, right, bottom.
        corner_xy: the first of a box's two corners, until the other is clicked.
    """

    points_xy: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box_xyxy: tuple[float, float, float, float] | None = None
    corner_xy: Point | None = None

    def add_point(self, xy: Point, *, is_inside: bool) -> "Clicks":
        """One more click.

        Raises:
            OptionsError: there are as many as a model takes.
        """
        if len(self.points_xy) == MAX_POINTS:
            raise OptionsError(f"a mask takes {MAX_POINTS} clicks at most; undo some, or begin anew")
        return replace(self, points_xy=(*self.points_xy, xy), labels=(*self.labels, 1 if is_inside else 0), corner_xy=None)

    def set_box(self, first_xy: Point, second_xy: Point) -> "Clicks":
        """A box from corner to corner, in the place of one there was. One without area changes nothing."""
        (x0, x1), (y0, y1) = sorted((first_xy[0], second_xy[0])), sorted((first_xy[1], second_xy[1]))
        if x0 == x1 or y0 == y1:
            return replace(self, corner_xy=None)
        return replace(self, box_xyxy=(x0, y0, x1, y1), corner_xy=None)

    def click_corner(self, xy: Point) -> "Clicks":
        """The first click of a box is remembered, the second one makes it."""
        return replace(self, corner_xy=xy) if self.corner_xy is None else self.set_box(self.corner_xy, xy)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to ask."""
        return not self.points_xy and self.box_xyxy is None

    @property
    def is_ambiguous(self) -> bool:
        """A single point may mean a part or the whole: then the model gives three answers to choose from."""
        return self.labels == (1,) and self.box_xyxy is None


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about a photo, the answer to it, and what was asked before.

    Attributes:
        clicks: what is asked.
        refined: the run lengths of the mask that the clicks are to mend, if any.
        answers: the model's, one mask or three.
        chosen: which of them.
        before: the same before the last click, with the answers of then; None at the beginning.
    """

    clicks: Clicks = Clicks()
    refined: UInt32 | None = None
    answers: MaskSet | None = None
    chosen: int = 0
    before: "Asked | None" = None

    def add(self, clicks: Clicks) -> "Asked":
        """One more step, which is not answered yet."""
        return Asked(clicks=clicks, refined=self.refined, before=self)

    def choose(self, number: int) -> "Asked":
        """Another one of the answers; one that is not there any more changes nothing."""
        return replace(self, chosen=number) if number in range(len(self.answers or ())) else self

    @property
    def undone(self) -> "Asked":
        """Without the last step, as it was; the beginning stays."""
        return self.before or self

    @property
    def mended(self) -> UInt32 | None:
        """The run lengths of the mask that the last click mends: the one shown when it was made. A new box asks anew."""
        step = self
        while step.before is not None and step.clicks.box_xyxy == step.before.clicks.box_xyxy:
            step = step.before
            if step.mask is not None:
                return step.mask.runs(0)
        return self.refined

    @property
    def mask(self) -> MaskSet | None:
        """The one mask that was chosen, as a set of one; None where there is none."""
        if self.answers is None or not len(self.answers):
            return None
        return self.answers.take(np.array([self.chosen], np.int64))


_T = TypeVar("_T")


class _Kept(Generic[_T]):
    """The last used of what is costly to make, within a bound of bytes; the last one always. Each is made once."""

    def __init__(self, max_bytes: int, measure: Callable[[_T], int]) -> None:
        self._max_bytes, self._measure = max_bytes, measure
        self._items: OrderedDict[str, _T] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def get(self, key: str, make: Callable[[], _T]) -> _T:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._items:
                    self._items.move_to_end(key)
                    return self._items[key]
            try:
                item = make()
            except BaseException:
                with self._lock:
                    self._making.pop(key, None)
                raise
            with self._lock:
                self._making.pop(key, None)
                self._items[key] = item
                while len(self._items) > 1 and sum(map(self._measure, self._items.values())) > self._max_bytes:
                    self._items.popitem(last=False)
            return item


class Desk:
    """Photos that are open, and the model if there is one.

    Args:
        predictor: the model, or None: then photos can be looked at.
    """

    def __init__(self, predictor: Predictor | None) -> None:
        self.predictor = predictor
        self.defaults: Mapping[str, Any] = {} if predictor is None else predictor.info.defaults
        self._lock = threading.Lock()
        self._wanted: tuple[str, Image] | None = None
        self._is_preparing = False
        self._photos: _Kept[Image] = _Kept(MAX_PHOTO_BYTES, lambda image: image.pixels.nbytes)
        self._embeddings: _Kept[Embedding] = _Kept(MAX_EMBEDDING_BYTES, lambda embedding: embedding.features.nbytes)

    def warm_up(self) -> None:
        """Compile what answers the first clicks, so that none of them waits for it. Takes a few seconds."""
        info = self._get_model().info
        side = info.image_size
        photo = Image(pixels=np.zeros((side, side, 3), np.uint8), stored_hw=(side, side))
        nothing = np.zeros(info.embedding_shape, np.float32)  # The encoder is compiled already, and slow.
        embedding = Embedding(features=nothing, crop_xyxy=(0, 0, side, side), image_hw=(side, side), input_hw=(side, side))
        self._embeddings.get("", lambda: embedding)
        steps = [Clicks().set_box((0.0, 0.0), (side, side))]
        steps.append(steps[0].add_point((1.0, 1.0), is_inside=True))
        clicks = Clicks()
        for _ in range(_NUM_WARM_CLICKS):
            clicks = clicks.add_point((1.0, 1.0), is_inside=True)
            steps.append(clicks)
        everywhere = np.array([0, side * side], np.uint32)
        for step in steps:
            self.ask(Asked(step), key="", image=photo)
            self.ask(Asked(step, refined=everywhere), key="", image=photo)

    def open(self, key: str, read: Callable[[], Image]) -> Image:
        """A photo by a key that is its alone; ``read`` is called where it is not held any more."""
        return self._photos.get(key, read)

    def prepare(self, key: str, image: Image) -> None:
        """Encode a photo while the person still looks at it: the first click then is as quick as the others.

        One at a time. Who leafs through photos faster than they are encoded has only the last one encoded.
        """
        if self.predictor is None:
            return
        with self._lock:
            self._wanted = (key, image)
            if self._is_preparing:
                return
            self._is_preparing = True
        threading.Thread(target=self._prepare_wanted, daemon=True).start()

    def _prepare_wanted(self) -> None:
        while True:
            with self._lock:
                wanted, self._wanted = self._wanted, None
                self._is_preparing = wanted is not None
            if wanted is None:
                return
            try:
                self.embed(*wanted)
            except Exception as error:  # Who clicks on it is told, and the next photo is encoded all the same.
                logger.warning("a photo can't be encoded: %s", error)

    def embed(self, key: str, image: Image) -> Embedding:
        """The photo as the model sees it, encoded once while it is held."""
        model = self._get_model()
        return self._embeddings.get(key, lambda: model.embed(image.pixels))

    def ask(self, asked: Asked, *, key: str, image: Image) -> Asked:
        """The same with the model's answers; the most trusted one is chosen."""
        clicks, before, mended = asked.clicks, asked.before, asked.mended
        if before is not None and replace(clicks, corner_xy=before.clicks.corner_xy) == before.clicks:
            return replace(asked, answers=before.answers, chosen=before.chosen)  # Half a box asks nothing yet.
        if clicks.is_empty:
            return replace(asked, answers=None, chosen=0)
        model, embedding = self._get_model(), self.embed(key, image)
        prompts = Prompts(
            points_xy=np.array(clicks.points_xy, np.float64).reshape(1, -1, 2),
            labels=np.array(clicks.labels, np.int32).reshape(1, -1),
            boxes_xyxy=None if clicks.box_xyxy is None else np.array([clicks.box_xyxy], np.float64),
            mask_logits=None if mended is None else self._to_logits(mended, embedding),
        )
        several = clicks.is_ambiguous and mended is None
        prediction = model.predict(embedding, prompts, multimask=several)
        answers = self._trace(prediction.logits[0], prediction.predicted_iou[0], embedding, clicks)
        return replace(asked, answers=answers, chosen=int(answers.predicted_iou.argmax()) if len(answers) else 0)

    def find_all(self, image: Image, options: Mapping[str, Any]) -> MaskSet:
        """Everything in a photo, by the automatic generator.

        Raises:
            OptionsError: an option is out of its range.
        """
        resolved = resolve_mask_options(options, model_defaults=self.defaults)
        masks, _ = generate_masks(image.pixels, predictor=self._get_model(), options=resolved)
        return masks

    def _get_model(self) -> Predictor:
        if self.predictor is None:
            raise OptionsError("there is no model to ask; start with --model")
        return self.predictor

    def _trace(self, logits: Float32, predicted_iou: Float32, embedding: Embedding, clicks: Clicks) -> MaskSet:
        """(K, h, w) logits as masks of the photo; empty ones are left out."""
        model = self._get_model()
        offset = resolve_mask_options(model_defaults=self.defaults).stability_score_offset
        tracer = model.make_tracer(embedding, stability_score_offset=offset)
        point_xy = np.array((clicks.points_xy[:1] or [(np.nan, np.nan)])[0])
        answers = zip(logits, predicted_iou, strict=True)
        masks = tracer.collect([tracer.trace(plane, predicted_iou=iou, point_xy=point_xy) for plane, iou in answers])
        masks = replace(masks, stability_score=np.nan_to_num(masks.stability_score))
        return masks.take(masks.areas > 0)

    def _to_logits(self, runs: UInt32, embedding: Embedding) -> Float32:
        """A mask as the logits (1, 1, 4h, 4w) of an earlier answer: those of the model's whole padded input."""
        info = self._get_model().info
        mask = rle.runs_to_mask(runs, image_hw=embedding.image_hw)
        side_hw = 4 * info.embedding_shape[2], 4 * info.embedding_shape[3]
        logits = np.full((1, 1, *side_hw), -_SHOWN_LOGIT, np.float32)
        picture_hw = _scale(embedding.input_hw, side_hw, info.image_size)
        y, x = (
            ((np.arange(small) + 0.5) * full / small).astype(np.int64)
            for small, full in zip(picture_hw, embedding.image_hw, strict=True)
        )
        logits[0, 0, : picture_hw[0], : picture_hw[1]][mask[np.ix_(y, x)]] = _SHOWN_LOGIT
        return logits


def _scale(input_hw: Size, side_hw: Size, image_size: int) -> Size:
    """How much of the logits lies on the picture, and not on the padding beside it."""
    height, width = (max(1, round(inner * side / image_size)) for inner, side in zip(input_hw, side_hw, strict=True))
    return height, width
