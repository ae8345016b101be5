"""The prompts of a run: what a person asks for, frozen with the plan, read shard by shard. Must not know how they are answered.

``prompts_plan/`` has as many parts as the plan, and in each of them one row group a shard, so that a worker reads no more
than its own. Prompts whose image the run lacks are dealt evenly to all shards: there they leave their rows.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from jobs.matching import Matching, open_matching
from jobs.prompt_files import PromptFile
from jobs.refs import Listing
from labeler import storage, tables
from labeler.errors import OptionsError
from labeler.image_rows import open_parquet
from labeler.options import Preset, PromptOptions, refuse_unused_options
from labeler.prompt_rows import plan_to_batch, values_to_prompt
from labeler.prompts import Prompt
from labeler.ranges import open_ranges

_CHUNK_BYTES = 1 << 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptsSpec(_Record):
    """What a person asks for and a resume must repeat. ``uri`` is where the file was; the same bytes are the same file."""

    uri: str
    sha256: str
    options: PromptOptions


class PromptsPlan(_Record):
    """The frozen prompts.

    Attributes:
        num_prompts: all of them; each leaves one row.
        num_without_image: those whose image the run does not have.
        num_images_without: images of the run that nothing is asked about.
        num_without_category: prompts of no category.
        has_image_ids: the images table has each image's id in the COCO file of the prompts as its ``source_id``.
        categories: the file's, by id, as COCO writes them.
        parts: the sha256 of each part.
    """

    num_prompts: int
    num_without_image: int
    num_images_without: int
    num_without_category: int
    has_image_ids: bool
    categories: tuple[dict[str, Any], ...]
    parts: tuple[str, ...]


def identify(spec: PromptsSpec | None) -> dict[str, Any] | None:
    """What of the prompts decides masks."""
    return None if spec is None else {"sha256": spec.sha256, "options": spec.options.model_dump(mode="json")}


def check_prompt_flags(
    prompts: str | None, options: PromptOptions | None, *, given: Mapping[str, Any], preset: Preset | None, extend: bool
) -> None:
    """Refuse what does not go together, before anything is listed or loaded.

    Raises:
        OptionsError: an option of prompts without prompts, or one with them that does nothing there.
    """
    if prompts is not None:
        refuse_unused_options(given, preset=preset)
        if extend:
            raise OptionsError("--extend: a run with --prompts has only those; name a new --output with all prompts")
    elif options is not None and options.model_fields_set:
        name = sorted(options.model_fields_set)[0].replace("_", "-")
        raise OptionsError(f"--{name} says how prompts are answered; give --prompts FILE too")


def describe_prompts(prompts: str | None, *, options: PromptOptions | None, frozen: PromptsSpec | None) -> PromptsSpec | None:
    """What is asked for, by the path or URI of a file. If it is gone, the frozen record of the same URI stands for it.

    Raises:
        OptionsError: there is no such file.
    """
    if prompts is None:
        return None
    uri = storage.path_to_uri(prompts)
    options = options or PromptOptions()
    PromptFile(uri)
    try:
        sha256 = hash_file(uri)
    except FileNotFoundError as error:
        if frozen is not None and frozen.uri == uri:
            return PromptsSpec(uri=uri, sha256=frozen.sha256, options=options)
        raise OptionsError(f"--prompts {prompts} does not exist") from error
    except PermissionError as error:
        raise OptionsError(f"--prompts {prompts} may not be read: permission denied") from error
    return PromptsSpec(uri=uri, sha256=sha256, options=options)


def hash_file(uri: str) -> str:
    """The sha256 (hex) of a file of any size. Raises as ``labeler.storage`` does."""
    digest = hashlib.sha256()
    with open_ranges(uri) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def compare_prompts(old: PromptsSpec | None, new: PromptsSpec | None) -> Iterator[str]:
    """Each difference between what was frozen and what is asked for now, as ``--option: old -> new``."""
    if (old and old.sha256) != (new and new.sha256):
        names = [f"{spec.uri} ({spec.sha256[:12]})" if spec else "not set" for spec in (old, new)]
        yield f"--prompts: {names[0]} -> {names[1]}"
    if old and new:
        for name in PromptOptions.model_fields:
            before, after = getattr(old.options, name), getattr(new.options, name)
            if before != after:
                yield f"--{name.replace('_', '-')}: {before or 'not set'} -> {after or 'not set'}"


class MatchedPrompts:
    """The prompts of a file, each with its image of a listing, before they are frozen. See ``match_prompts``."""

    def __init__(self, matching: Matching, *, categories: tuple[dict[str, Any], ...], listing: Listing) -> None:
        num_images = listing.num_images
        self._matching = matching
        self._categories = categories
        self._first_name = next((ref.file_name for ref in listing.read_refs()), "")
        self._counts = matching.count()
        self._num_images_without = num_images - self._counts.num_images
        self._has_image_ids = matching.has_image_ids(num_images)

    def describe(self) -> str:
        """What was found, for people."""
        counts = self._counts
        text = f"{counts.num_prompts} prompts for {counts.num_images} images"
        if counts.num_without_image:
            text += f"; {counts.num_without_image} name no image of this run, an error row each"
            lost = next(self._matching.read_lost())
            text += f", such as {lost.image or 'none at all'}"
            if not counts.num_images:  # Surely a slip, but then everything is an error row and nothing is lost.
                text += f". WARNING: none of them is in it; its images are called as {self._first_name} is"
        if counts.num_without_category:
            text += f"; {counts.num_without_category} have no category (or category_id); their masks are called object"
        if self._matching.are_ids_lost:
            text += "; their ids are not whole numbers, each once, so prompt_id is a prompt's place in the file, from 1"
        if self._matching.is_listed and not self._has_image_ids:
            text += "; it does not list all images of the run, each under a whole number, so exports count them from 1"
        if self._num_images_without:
            text += f"; {self._num_images_without} images have no prompt and get no masks"
        return text

    def read_image(self, image_id: int) -> list[Prompt]:
        """Those of one image."""
        return list(self._matching.read_image(image_id))

    def name_images(self, listing: Listing) -> Listing:
        """The listing with the images' ids in the file of the prompts, if that knows them all and nothing else does."""
        return replace(listing, source=_NamedRefs(listing.source, self._matching)) if self._has_image_ids else listing

    def write(self, output: str, *, images_per_shard: int, shards_of_parts: Sequence[int]) -> PromptsPlan:
        """Write ``prompts_plan/``, in the order of the plan.

        Args:
            output: the run's folder.
            images_per_shard: how the plan was cut.
            shards_of_parts: how many shards each of its parts has.

        Raises:
            StorageError: the output, or this machine's temporary folder, can't be written.
        """
        shards = self._deal_to_shards(num_shards=sum(shards_of_parts), images_per_shard=images_per_shard)
        hashes = [_write_part(output, number, islice(shards, size)) for number, size in enumerate(shards_of_parts)]
        return PromptsPlan(
            num_prompts=self._counts.num_prompts,
            num_without_image=self._counts.num_without_image,
            num_images_without=self._num_images_without,
            num_without_category=self._counts.num_without_category,
            has_image_ids=self._has_image_ids,
            categories=self._categories,
            parts=tuple(hashes),
        )

    def _deal_to_shards(self, *, num_shards: int, images_per_shard: int) -> Iterator[tuple[int, list[Prompt]]]:
        """Every shard and its prompts."""
        found, lost, num_lost = self._matching.read_found(), self._matching.read_lost(), self._counts.num_without_image
        upcoming = next(found, None)
        for shard in range(num_shards):
            prompts = []
            while upcoming is not None and ((upcoming.image_id or 1) - 1) // images_per_shard == shard:
                prompts.append(upcoming)
                upcoming = next(found, None)
            begin, end = (num_lost * (shard + i) // num_shards for i in (0, 1))
            yield shard, [*prompts, *islice(lost, end - begin)]


@contextmanager
def match_prompts(
    spec: PromptsSpec | None, *, listing: Listing | None, say: Callable[[str], None] = lambda _: None
) -> Iterator[MatchedPrompts | None]:
    """The prompts of a file with the images of a listing; gone when this ends. None without prompts or without a listing.

    Raises:
        OptionsError: the file is no prompts file, holds none, or has changed since it was described.
        StorageError: it can't be read, or this machine's temporary folder can't be written.
    """
    if spec is None or listing is None:
        yield None
        return
    with open_matching() as matching:
        categories = _add_file(spec, matching)
        matching.find_images(listing.read_refs())
        matched = MatchedPrompts(matching, categories=categories, listing=listing)
        if not matching.count().num_prompts:
            raise OptionsError(f"--prompts {spec.uri} holds no prompt")
        say(matched.describe())
        yield matched


def _add_file(spec: PromptsSpec, matching: Matching) -> tuple[dict[str, Any], ...]:
    """Take in the prompts of the file and give its categories. It is read several times: all must be of what was hashed."""
    file = PromptFile(spec.uri)
    changed = f"--prompts {spec.uri} changed while it was read; run the same command again"
    try:
        matching.add_prompts(file.read_images(), file.read_prompts())
        if hash_file(spec.uri) != spec.sha256:
            raise OptionsError(changed)
    except FileNotFoundError as error:
        raise OptionsError(changed) from error
    return tuple(file.categories)


def read_shard_prompts(output: str, *, part: int, group: int) -> list[Prompt]:
    """The prompts of one shard: those of its images, by ``image_id`` and ``prompt_id``, then those that found no image.

    Args:
        output: the run's folder.
        part: the number of the part of the plan that has the shard.
        group: the shard's place in it.
    """
    uri = tables.locate_part(output, "prompts_plan", part)
    rows = open_parquet(uri).read_row_group(group, use_threads=False)
    return [values_to_prompt(values) for values in rows.to_pylist()]


def _write_part(output: str, number: int, shards: Iterator[tuple[int, list[Prompt]]]) -> str:
    """One part, a row group a shard; gives its sha256."""
    schema = tables.PROMPTS_PLAN_SCHEMA
    with ExitStack() as stack:
        sink = stack.enter_context(storage.open_whole(tables.locate_part(output, "prompts_plan", number)))
        file = _HashedSink(sink)
        writer = stack.enter_context(pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd"))
        for shard, prompts in shards:
            batch = plan_to_batch(prompts, shard=shard)
            writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
    return file.sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class _NamedRefs:
    """Record batches of ``REFS_SCHEMA``, iterable again; ``source_id`` is the id that the prompts' file gives."""

    batches: Iterable[pa.RecordBatch]
    matching: Matching

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        begin = 1
        for batch in self.batches:
            end = begin + batch.num_rows
            names = self.matching.read_image_ids(begin, end - 1)
            ids = pa.array([names.get(number) for number in range(begin, end)], pa.string())
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns["source_id"] = pc.coalesce(ids, columns["source_id"])
            yield pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)
            begin = end


class _HashedSink(io.RawIOBase):
    """Passes on what is written and hashes it."""

    def __init__(self, sink: storage.Sink) -> None:
        super().__init__()
        self._sink = sink
        self._num_bytes = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """How much was written."""
        return self._num_bytes

    def write(self, data: Any, /) -> int:
        """Pass on."""
        chunk = bytes(data)
        self._sink.write(chunk)
        self.sha256.update(chunk)
        self._num_bytes += len(chunk)
        return len(chunk)
