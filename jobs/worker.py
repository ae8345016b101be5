"""One worker: the model loaded once, then shard after shard labeled and committed. Must not know Ray or other workers.

What happens to a shard is told image by image, as events; each image is announced before its first byte is touched,
so that whoever watches can name the image that was in work when a worker died.
"""

import contextlib
import importlib
import itertools
import platform
import random
import resource
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from jobs.asking import complete_rows, read_prompts
from jobs.events import Event, ImageAwaited, ImageDone, ImageStarted, ShardCommitted, WorkerInfo
from jobs.labeling import ImageBytes, ImageLabeler
from jobs.lease import Permit, name_process
from jobs.outages import OutageWatch
from jobs.plan import PlannedImage, find_images_root, read_run, read_shard
from jobs.reading import find_holder, look_again
from jobs.shards import LabeledImage, commit_shard, read_kept, tally_rows
from labeler import storage
from labeler.errors import ImageError, LabelerError, ModelError, StorageError
from labeler.generator import warm_up
from labeler.model_folder import model_sha256, read_model_info
from labeler.models import find_cache_folder, find_model
from labeler.options import MaskOptions
from labeler.predictor import Predictor
from labeler.retries import use_retries
from labeler.stores import StoreOptions, use_store_options

MAX_INTERNAL_IN_A_ROW = 20

_AWAITED_S = 1.0
_NUM_DRAWN = 20


class WorkerStoppedError(LabelerError):
    """So many images in a row failed for no fault of their own that labeling more of them makes no sense."""


class ShardLabeler:
    """Labels shards of one run.

    Args:
        output: the run's folder; it holds everything a worker needs to know.
        threads: CPU threads to compute with.
        retries: how often this process tries a storage call that failed again.
        engine: ``module:name`` of what makes the engine; called as ``labeler.engine.Engine`` is.
        store_options: with which stores are opened, where this is a process of its own; they are written nowhere.
    """

    def __init__(
        self, output: str, *, threads: int, retries: int, engine: str, store_options: StoreOptions | None = None
    ) -> None:
        if store_options is not None:
            use_store_options(store_options)
        use_retries(retries)
        self._output = output
        self._threads = threads
        self._engine = engine
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._internal_in_a_row = 0

    def load(self) -> WorkerInfo:
        """Open the run, its input and its model. Apart from the constructor so that its errors arrive as they are.

        Raises:
            StorageError: this machine does not see the output or the input.
            ModelError: the model can't be read, compiled or run here.
        """
        record = read_run(self._output)
        if record is None:
            raise StorageError(f"{platform.node()} does not see {self._output}/run.json")
        root = find_images_root(self._output, record)
        if not storage.has_content(root):
            raise StorageError(f"{platform.node()} does not see the input {root}, or sees an empty folder: is it mounted?")
        folder = find_model(storage.join(self._output, "model"))
        if model_sha256(read_model_info(folder)) != record.model.sha256:
            raise ModelError(f"{self._output}/model is not the model that {self._output}/run.json names")
        predictor = load_predictor(folder, options=record.options, threads=self._threads, engine=self._engine)
        self._record = record
        self._labeler = ImageLabeler(
            root,
            options=record.options,
            predictor=predictor,
            image_column=record.selection.image_column,
            prompt_options=record.prompts.options if record.prompts else None,
            outages=OutageWatch(self._draw_uris),
        )
        is_slower = predictor.has_bf16 and record.options.precision == "f32"
        return WorkerInfo(platform.node(), name_process(), measure_peak_memory(), is_slower)

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
            again: the shard stands: only its images with errors of these kinds are labeled, as they are now; the others stay.
            permit: without it no other process can be at this shard; with it, it is looked at before each write.

        Raises:
            StorageError: the store did not answer in all tries; nothing of this shard counts.
            LeaseLostError: another process may write this shard now.
            WorkerStoppedError: ``MAX_INTERNAL_IN_A_ROW`` images failed in a row.
        """
        images = read_shard(self._output, self._record, shard)
        prompts = read_prompts(self._output, self._record, shard)
        kept = read_kept(self._output, shard, kinds=again) if again else {}
        labeled = dict(kept)
        wanted = [image for image in images if image.image_id not in kept]
        if again:
            wanted = [PlannedImage(image.image_id, look_again(image.ref)) for image in wanted]
        for step in self._read_ahead(wanted, depth=1 if careful else 2, verdicts=verdicts or {}):
            if isinstance(step, ImageStarted):
                yield step
                continue
            image, reading = step
            while not wait([reading], timeout=_AWAITED_S).done:
                yield ImageAwaited(image.image_id)
            asked = None if prompts is None else prompts.get(image.image_id, ())
            result = self._labeler.label(image, reading.result, prompts=asked)
            labeled[image.image_id] = result
            yield ImageDone(image.image_id, result.row.num_masks, result.row.error_kind, result.log)
            self._stop_after_faults_in_a_row(result, is_second_chance=bool(again))
        results = [labeled[image_id] for image_id in sorted(labeled)]
        rows = [result.row for result in results]
        if [row.image_id for row in rows] != [image.image_id for image in images]:
            raise RuntimeError(f"shard {shard} has {len(rows)} rows for {len(images)} images")
        prompt_rows = complete_rows(prompts, [(result.row, result.prompts) for result in results])
        commit_shard(
            self._output,
            shard,
            masks=[batch for result in results for batch in result.batches],
            rows=rows,
            prompts=prompt_rows,
            metadata=self._record.metadata,
            permit=permit,
        )
        kept_tally = tally_rows(
            [image.row for image in kept.values()], [row for image in kept.values() for row in image.prompts]
        )
        yield ShardCommitted(shard, tally_rows(rows, prompt_rows or ()), measure_peak_memory(), kept=kept_tally)

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

    def _draw_uris(self) -> Iterator[str]:
        """Files from anywhere in the run: images, or the archives and tables that hold them."""
        for _ in range(_NUM_DRAWN):
            images = read_shard(self._output, self._record, random.randrange(self._record.num_shards))
            yield find_holder(random.choice(images).ref)

    def _stop_after_faults_in_a_row(self, result: LabeledImage, *, is_second_chance: bool) -> None:
        """Images that had errors before are expected to have them again: they do not count."""
        is_internal = result.row.error_kind == "internal"
        self._internal_in_a_row = self._internal_in_a_row + 1 if is_internal and not is_second_chance else 0
        if self._internal_in_a_row >= MAX_INTERNAL_IN_A_ROW:
            raise WorkerStoppedError(
                f"{MAX_INTERNAL_IN_A_ROW} images in a row failed inside this program, which is a bug or a broken "
                f"machine ({platform.node()}), not their fault. The last one, {result.row.file_name}:\n{result.log}"
            )


def load_predictor(folder: Path, *, options: MaskOptions, threads: int, engine: str) -> Predictor:
    """A model folder, compiled and warm on this machine. The first worker compiles it; others find it in the node's cache."""
    info = read_model_info(folder)
    module, _, name = engine.partition(":")
    make_engine: Callable[..., Any] = getattr(importlib.import_module(module), name)
    cache_folder = None
    with contextlib.suppress(ModelError):  # Without a home every worker compiles anew.
        cache_folder = find_cache_folder() / "compiled"
    predictor = Predictor(
        make_engine(folder, info, threads=threads, precision=options.precision, cache_folder=cache_folder), info
    )
    warm_up(predictor, options)
    return predictor


def measure_peak_memory() -> int:
    """The most memory this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
