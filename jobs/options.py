"""Every option of a job that changes no mask, declared once: type, range, default and help text.

Must not know how a mask is made: what changes one lives in ``labeler.options``. ``Selection`` says which images a run
is about and is frozen at its first start; ``JobOptions`` may change at every resume.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from labeler.retries import RETRIES_OF_A_MINUTE


def _check_text(text: str) -> str:
    """A run's record is JSON, which has no bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8; in a pattern ? stands for any other byte") from None
    return text


_Count = Annotated[int, Field(ge=1)]
_NumWorkers = Annotated[int, Field(ge=1, le=100_000)]
_Text = Annotated[str, AfterValidator(_check_text)]


class Selection(BaseModel):
    """Which of the images under the input a run labels. Frozen with the plan: a resume must give the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    include: tuple[_Text, ...] = ()
    """Label only images whose file name matches this pattern, such as ``train/*.jpg``. May be repeated. ``*`` stands for
    slashes too, and braces for themselves: patterns of names, unlike those of --input."""

    exclude: tuple[_Text, ...] = ()
    """Leave out images whose file name matches this pattern. May be repeated; wins over --include."""

    limit: _Count | None = None
    """Label only the first N images, in order of file name."""

    sample: _Count | None = None
    """Label this many images drawn at random, the same ones wherever --seed and the file names are the same."""

    seed: int = 0
    """Another seed draws another --sample."""

    images_root: str | None = None
    """Where the names in a list or COCO file begin. Not set: in the folder that the list itself is in."""

    keep_columns: tuple[_Text, ...] = ()
    """A column of a list, COCO file or Parquet file to carry into the images table, as text. May be repeated."""

    image_column: _Text | None = None
    """The column of Parquet files that holds the images, where there are several and none is called image."""


class JobOptions(BaseModel):
    """How a run is spread over machines and what it puts up with. Changes the speed, never a mask."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    workers: _NumWorkers | Literal["auto"] = "auto"
    """Worker processes; each holds a model of its own. 'auto' fills all CPUs there are."""

    min_workers: _NumWorkers | None = None
    """With --workers auto: ask for at least this many, even where they do not fit yet, so that a cluster that can grow does."""

    max_workers: _NumWorkers | None = None
    """With --workers auto: ask for this many at once, never for more, whether they fit or not."""

    cpus_per_worker: Annotated[int, Field(ge=1, le=4096)] = 1
    """CPU threads one worker computes with. Fewer and wider workers need less memory; narrow ones are faster in sum."""

    images_per_shard: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Images committed together: what is lost at most when a worker dies. Frozen with the plan; a resume keeps its size."""

    retries: Annotated[int, Field(ge=0)] = 3
    """How often a shard is tried again after its worker died. Storage calls are tried for a minute; with 0 only once."""

    image_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which an image becomes an error row (timeout), counted from when its bytes are there. Not set: images
    take their time."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The fraction of the images that may fail before a finished job exits with 3 instead of 0."""

    storage_options: Annotated[tuple[str, ...], Field(repr=False, exclude=True)] = ()
    """KEY=VALUE for fsspec, such as anon=true or output.endpoint_url=http://minio:9000, everywhere or for input, output,
    model or a URL. May be repeated. Never written down: a resume must give them again."""

    points_per_batch: _Count = 64
    """Accepted because SAM's own command has it, without effect: the model folder fixes the prompts per call."""

    @property
    def storage_retries(self) -> int:
        """How often a storage call that failed is tried again: the pauses between so many add up to a minute."""
        return max(self.retries, RETRIES_OF_A_MINUTE) if self.retries else 0

    @model_validator(mode="after")
    def _min_is_not_more_than_max(self) -> Self:
        if self.min_workers is not None and self.max_workers is not None and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than max_workers {self.max_workers}")
        return self
