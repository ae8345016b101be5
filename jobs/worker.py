"""One worker: the model loaded once, then shard after shard labeled and committed. Must not know Ray or other workers.

What happens to a shard is told image by image, as events; each image is announced before its first byte is touched,
so that whoever watches can name the image that was in work when a worker died.
"""

import fcntl
import functools
import importlib
import itertools
import json
import logging
import platform
import resource
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jobs.events import Event, ImageDone, ImageStarted, ShardCommitted, WorkerInfo
from jobs.lease import Permit, name_process
from jobs.plan import PlannedImage, read_run, read_shard
from jobs.reading import read_image
from jobs.refs import ImageRef
from jobs.shards import call_with_retries, commit_shard, read_kept, tally_rows
from jobs.sources import find_root
from labeler import storage
from labeler.errors import ImageError, LabelerError, ModelError, StorageError
from labeler.generator import generate_masks
from labeler.images import decode_image
from labeler.models import check_model, find_cache_folder, find_model, model_sha256, read_model_info
from labeler.options import MaskOptions
from labeler.predictor import Predictor
from labeler.stores import StoreOptions, use_store_options
from labeler.tables import ImageRow, masks_to_batch

logger = logging.getLogger(__name__)

MAX_INTERNAL_IN_A_ROW = 20
MAX_FORBIDDEN_IN_A_ROW = 10


class WorkerStoppedError(LabelerError):
    """So many images in a row failed for no fault of their own that labeling more of them makes no sense."""


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """What was read of an image, and how long it took."""

    data: bytes
    seconds: float


class LabeledImage(NamedTuple):
    """One image's row, its masks as record batches (none where it failed), a traceback where the fault is ours."""

    row: ImageRow
    batches: Sequence[Any] = ()
    log: str | None = None


class ImageLabeler:
    """Reads and labels single images.

    Args:
        root: the input they come from; a missing file is only missing while this still answers.
        options: the run's.
        predictor: the model.
        retries: how often a storage call that failed is tried again.
        image_column: which column of Parquet files holds the images, where they have several.
    """

    def __init__(
        self, root: str, *, options: MaskOptions, predictor: Predictor, retries: int, image_column: str | None = None
    ) -> None:
        self._root = root
        self._options = options
        self._predictor = predictor
        self._retries = retries
        self._image_column = image_column

    def read(self, ref: ImageRef) -> ImageBytes:
        """The bytes of an image.

        Raises:
            ImageError: it is missing, forbidden or changed.
            StorageError: the store does not answer.
        """
        start = time.perf_counter()
        try:
            data = call_with_retries(lambda: read_image(ref, image_column=self._image_column), retries=self._retries)
        except FileNotFoundError as error:
            if not call_with_retries(lambda: storage.exists(self._root), retries=self._retries):
                raise StorageError(f"the input {self._root} is gone") from error
            raise ImageError("missing", "listed when the run was planned, but not there any more") from error
        except PermissionError as error:
            raise ImageError("forbidden", "the store refuses to give it: permission denied") from error
        return ImageBytes(data, time.perf_counter() - start)

    def label(self, image: PlannedImage, read: Callable[[], ImageBytes]) -> LabeledImage:
        """Decode an image and find its masks. ``read`` gives its bytes or raises what ``read`` above does.

        Raises:
            StorageError, ModelError: never an image's fault. Everything else becomes the image's row.
        """
        known: dict[str, Any] = {
            "image_id": image.image_id,
            "uri": image.ref.uri,
            "file_name": image.ref.file_name,
            "source_id": image.ref.source_id,
            "size_bytes": image.ref.size_bytes,
            "etag": image.ref.etag,
            "kept": json.loads(image.ref.kept or "{}"),
        }
        try:
            data = read()
            known["seconds_read"] = data.seconds
            start = time.perf_counter()
            picture = decode_image(data.data, exif=self._options.exif, max_pixels=self._options.max_pixels)
            known["seconds_decode"] = time.perf_counter() - start
            masks, seconds = generate_masks(picture.pixels, predictor=self._predictor, options=self._options)
            batch = masks_to_batch(masks, image_id=image.image_id, file_name=image.ref.file_name)
        except ImageError as error:
            return LabeledImage(ImageRow(**known, status="error", error_kind=error.kind, error_message=error.reason))
        except LabelerError:
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            row = ImageRow(**known, status="error", error_kind="internal", error_message=message)
            return LabeledImage(row, log=traceback.format_exc())
        row = ImageRow(
            **known,
            width=picture.hw[1],
            height=picture.hw[0],
            stored_width=picture.stored_hw[1],
            stored_height=picture.stored_hw[0],
            exif_orientation=picture.exif_orientation,
            num_frames=picture.num_frames,
            warnings=picture.warnings,
            num_masks=batch.num_rows,
            seconds_encode=seconds.encode,
            seconds_predict=seconds.predict,
            seconds_post=seconds.post,
        )
        return LabeledImage(row, [batch])


class ShardLabeler:
    """Labels shards of one run.

    Args:
        output: the run's folder; it holds everything a worker needs to know.
        threads: CPU threads to compute with.
        retries: how often a storage call that failed is tried again.
        engine: ``module:name`` of what makes the engine; called as ``labeler.engine.Engine`` is.
        store_options: with which stores are opened, where this is a process of its own; they are written nowhere.
    """

    def __init__(
        self, output: str, *, threads: int, retries: int, engine: str, store_options: StoreOptions | None = None
    ) -> None:
        if store_options is not None:
            use_store_options(store_options)
        self._output = output
        self._threads = threads
        self._retries = retries
        self._engine = engine
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._internal_in_a_row = 0
        self._forbidden_in_a_row = 0

    def load(self) -> WorkerInfo:
        """Open the run, its input and its model. Apart from the constructor so that its errors arrive as they are.

        Raises:
            StorageError: this machine does not see the output or the input.
            ModelError: the model can't be read, compiled or run here.
        """
        record = call_with_retries(lambda: read_run(self._output), retries=self._retries)
        if record is None:
            raise StorageError(f"{platform.node()} does not see {self._output}/run.json")
        root = find_root(record.input, selection=record.selection)
        if not call_with_retries(lambda: storage.exists(root), retries=self._retries):
            raise StorageError(f"{platform.node()} does not see the input {root}")
        folder = find_model(storage.join(self._output, "model"))
        if model_sha256(check_model(folder)) != record.model.sha256:
            raise ModelError(f"{self._output}/model is not the model that {self._output}/run.json names")
        predictor = load_predictor(folder, options=record.options, threads=self._threads, engine=self._engine)
        self._record = record
        self._labeler = ImageLabeler(
            root,
            options=record.options,
            predictor=predictor,
            retries=self._retries,
            image_column=record.selection.image_column,
        )
        return WorkerInfo(platform.node(), name_process(), measure_peak_memory())

    def label_shard(
        self,
        shard: int,
        *,
        verdicts: Mapping[int, ImageError] | None = None,
        careful: bool = False,
        again: Collection[str] = (),
        permit: Permit | None = None,
    ) -> Iterator[Event]:
        """Label every image of a shard, then commit it.

        Args:
            shard: its number in the plan.
            verdicts: images that are not touched, by id, and the error that is their row.
            careful: touch one image at a time, without reading ahead, so that a death names one image.
            again: the shard stands: only its images with errors of these kinds are labeled, the others stay as they are.
            permit: without it no other process can be at this shard; with it, it is looked at before each write.

        Raises:
            StorageError: the store did not answer in all tries; nothing of this shard counts.
            LeaseLostError: another process may write this shard now.
            WorkerStoppedError: ``MAX_INTERNAL_IN_A_ROW`` images failed in a row.
        """
        images = read_shard(self._output, self._record, shard)
        kept = read_kept(self._output, shard, kinds=again) if again else {}
        labeled = {image_id: LabeledImage(image.row, image.batches) for image_id, image in kept.items()}
        wanted = [image for image in images if image.image_id not in kept]
        for step in self._read_ahead(wanted, depth=1 if careful else 2, verdicts=verdicts or {}):
            if isinstance(step, ImageStarted):
                yield step
                continue
            image, reading = step
            result = self._labeler.label(image, reading.result)
            labeled[image.image_id] = result
            yield ImageDone(image.image_id, result.row.num_masks, result.row.error_kind, result.log)
            self._stop_after_faults_in_a_row(result, is_second_chance=bool(again))
        results = [labeled[image_id] for image_id in sorted(labeled)]
        rows = [result.row for result in results]
        if [row.image_id for row in rows] != [image.image_id for image in images]:
            raise RuntimeError(f"shard {shard} has {len(rows)} rows for {len(images)} images")
        commit_shard(
            self._output,
            shard,
            masks=[batch for result in results for batch in result.batches],
            rows=rows,
            metadata=self._record.metadata,
            retries=self._retries,
            permit=permit,
        )
        kept_tally = tally_rows([image.row for image in kept.values()])
        yield ShardCommitted(shard, tally_rows(rows), measure_peak_memory(), kept=kept_tally)

    def _read_ahead(
        self, images: list[PlannedImage], *, depth: int, verdicts: Mapping[int, ImageError]
    ) -> Iterator[ImageStarted | tuple[PlannedImage, "Future[ImageBytes]"]]:
        """Each image's announcement, then its bytes; those of the next image are read while this one is labeled."""
        upcoming = iter(images)
        window: deque[tuple[PlannedImage, Future[ImageBytes]]] = deque()
        while True:
            for image in itertools.islice(upcoming, depth - len(window)):
                if image.image_id in verdicts:
                    reading: Future[ImageBytes] = Future()
                    reading.set_exception(verdicts[image.image_id])
                else:
                    yield ImageStarted(image.image_id)
                    reading = self._reader.submit(self._labeler.read, image.ref)
                window.append((image, reading))
            if not window:
                return
            yield window.popleft()

    def _stop_after_faults_in_a_row(self, result: LabeledImage, *, is_second_chance: bool) -> None:
        """Images that had errors before are expected to have them again: then only the store's refusals count."""
        kind = result.row.error_kind
        self._forbidden_in_a_row = self._forbidden_in_a_row + 1 if kind == "forbidden" else 0
        if self._forbidden_in_a_row >= MAX_FORBIDDEN_IN_A_ROW:
            raise StorageError(
                f"the store refused {MAX_FORBIDDEN_IN_A_ROW} images in a row, the last one {result.row.uri}; "
                "check this job's permissions and credentials"
            )
        self._internal_in_a_row = self._internal_in_a_row + 1 if kind == "internal" and not is_second_chance else 0
        if self._internal_in_a_row >= MAX_INTERNAL_IN_A_ROW:
            raise WorkerStoppedError(
                f"{MAX_INTERNAL_IN_A_ROW} images in a row failed inside this program, which is a bug or a broken "
                f"machine ({platform.node()}), not their fault. The last one, {result.row.file_name}:\n{result.log}"
            )


def load_predictor(folder: Path, *, options: MaskOptions, threads: int, engine: str) -> Predictor:
    """A model folder, compiled and warm on this machine: a first, gray image is labeled here, with few points.

    Workers of a node do this one after the other: the first compiles the model, the others find it in the node's cache.
    """
    info = read_model_info(folder)
    module, _, name = engine.partition(":")
    make_engine: Callable[..., Any] = getattr(importlib.import_module(module), name)
    few_points = options.model_copy(update={"points_per_side": 2, "point_grids": None, "crop_n_layers": 0})
    with _lock_cache() as cache_folder:
        made = make_engine(folder, info, threads=threads, precision=options.precision, cache_folder=cache_folder)
        predictor = Predictor(made, info)
        generate_masks(np.full((64, 64, 3), 128, np.uint8), predictor=predictor, options=few_points)
    return predictor


@contextmanager
def _lock_cache() -> Iterator[Path | None]:
    """The node's folder of compiled models, for one process at a time; None where there can be none.

    The kernel takes the lock from a process that dies.
    """
    folder = find_cache_folder() / "compiled"
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context((folder / "lock").open("w")), fcntl.LOCK_EX)
        except OSError as error:
            logger.info("compiled models are not kept in %s: %s", folder, error)
            yield None
            return
        yield folder


def time_images(labeler: ImageLabeler, images: Sequence[PlannedImage]) -> float:
    """Seconds an image takes, here and now, on average; the first is labeled twice, for it also compiles the model."""
    labeler.label(images[0], lambda: labeler.read(images[0].ref))
    start = time.perf_counter()
    for image in images:
        labeler.label(image, functools.partial(labeler.read, image.ref))
    return (time.perf_counter() - start) / len(images)


def measure_peak_memory() -> int:
    """The most memory this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
