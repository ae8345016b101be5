"""How long a job would take: a few of its images timed on this machine, in this process. Must not know options' words.

Nothing is written, and no more than the chosen images are held: the listing may have millions.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.asking import ShardPrompts, read_prompts
from jobs.labeling import ImageLabeler
from jobs.options import JobOptions
from jobs.plan import PlannedImage, RunRecord, RunSpec, count_shard_images, read_shard
from jobs.prompts import MatchedPrompts
from jobs.refs import Listing, batch_to_refs
from jobs.sources import find_root
from jobs.worker import load_predictor
from labeler import tables
from labeler.limits import count_usable_cpus
from labeler.prompts import Prompt

_NUM_TIMED_IMAGES = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would be like on this machine. Nothing is left to do where there are no images."""

    num_images: int
    seconds_an_image: float = 0.0
    num_workers: int = 0

    @property
    def total_s(self) -> float:
        """Seconds from the first image to the last."""
        return self.num_images * self.seconds_an_image / max(1, self.num_workers)


@dataclass(frozen=True, slots=True)
class Work:
    """The images that are left to label: those of a run's shards, and those that were just listed."""

    output: str
    record: RunRecord | None
    listing: Listing | None
    shards: Sequence[int]

    def count(self) -> int:
        """How many they are."""
        planned = sum(count_shard_images(self.record, shard) for shard in self.shards) if self.record else 0
        return planned + (self.listing.num_images if self.listing else 0)

    def draw(self, count: int) -> list[PlannedImage]:
        """Some of them, from all over."""
        assert count > 0  # Of none there would be nothing to time.
        planned: list[PlannedImage] = []
        if self.record and self.shards:
            step = max(1, len(self.shards) // count)
            planned = [read_shard(self.output, self.record, shard)[0] for shard in self.shards[::step][:count]]
        if self.listing and self.listing.num_images:
            step = max(1, self.listing.num_images // count)
            planned += list(_pick(self.listing, step=step))[:count]
        return planned[:: max(1, len(planned) // count)][:count]


def estimate_job(
    spec: RunSpec,
    *,
    record: RunRecord | None,
    listing: Listing | None,
    output: str,
    folder: Path,
    job: JobOptions,
    engine: str,
    prompts: MatchedPrompts | None = None,
) -> Estimate:
    """Time a few of the images that are left.

    Args:
        spec: what was asked for.
        record: the run, where one stands.
        listing: what was listed: a new run's images, or those that would be added.
        output: the run's folder.
        folder: the model's.
        job: how it would be spread.
        engine: see ``jobs.worker``.
        prompts: what is asked about the images that were listed, in a new run with prompts.
    """
    done = tables.list_committed_shards(output) if record else set()
    shards = [shard for shard in range(record.num_shards) if shard not in done] if record else []
    work = Work(output, record, listing, shards)
    num_images = work.count()
    if not num_images:
        return Estimate(0)
    predictor = load_predictor(folder, options=spec.options, threads=job.cpus_per_worker, engine=engine)
    labeler = ImageLabeler(
        find_root(spec.input, selection=spec.selection),
        options=spec.options,
        predictor=predictor,
        image_column=spec.selection.image_column,
        prompt_options=spec.prompts.options if spec.prompts else None,
    )
    images = work.draw(_NUM_TIMED_IMAGES)
    seconds = _time_images(labeler, images, prompts=_draw_prompts(images, output=output, record=record, matched=prompts))
    here = max(1, count_usable_cpus() // job.cpus_per_worker)
    num_workers = (job.max_workers or max(here, job.min_workers or 0)) if job.workers == "auto" else job.workers
    num_new_shards = -(-listing.num_images // (record.images_per_shard if record else job.images_per_shard)) if listing else 0
    return Estimate(num_images, seconds, min(num_workers, len(shards) + num_new_shards))


def _time_images(labeler: ImageLabeler, images: Sequence[PlannedImage], *, prompts: ShardPrompts | None = None) -> float:
    """Seconds an image takes, here and now, on average; the first is labeled twice, for it also compiles the model."""

    def label(image: PlannedImage) -> None:
        asked = None if prompts is None else prompts.get(image.image_id, ())
        labeler.label(image, functools.partial(labeler.read, image.ref), prompts=asked)

    label(images[0])
    start = time.perf_counter()
    for image in images:
        label(image)
    return (time.perf_counter() - start) / len(images)


def _draw_prompts(
    images: Sequence[PlannedImage], *, output: str, record: RunRecord | None, matched: MatchedPrompts | None
) -> ShardPrompts | None:
    """What is asked about some images of a run with prompts, new or begun."""
    if matched is not None:
        return {image.image_id: matched.read_image(image.image_id) for image in images}
    if record is None or record.prompts is None:
        return None
    prompts: dict[int | None, Sequence[Prompt]] = {}
    for image in images:
        prompts |= read_prompts(output, record, (image.image_id - 1) // record.images_per_shard) or {}
    return prompts


def _pick(listing: Listing, *, step: int) -> Iterator[PlannedImage]:
    """Every ``step``-th image of a listing."""
    begin = 0
    for batch in listing.source:
        for place in range(-begin % step, batch.num_rows, step):
            yield PlannedImage(begin + place + 1, batch_to_refs(batch.slice(place, 1))[0])
        begin += batch.num_rows
