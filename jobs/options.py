"""Every option of a job that changes no mask, declared once: type, range, default and help text.

Must not know how a mask is made: what changes one lives in ``labeler.options``. ``Selection`` says which images a run
is about and is frozen at its first start; ``JobOptions`` may change at every resume.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=1)]


class Selection(BaseModel):
    """Which of the images under the input a run labels. Frozen with the plan: a resume must give the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    include: tuple[str, ...] = ()
    """Label only images whose file name matches this pattern, such as ``train/*.jpg``. May be repeated."""

    exclude: tuple[str, ...] = ()
    """Leave out images whose file name matches this pattern. May be repeated; wins over --include."""

    limit: _Count | None = None
    """Label only the first this many images, in order of file name."""

    sample: _Count | None = None
    """Label this many images drawn at random, the same ones wherever --seed and the file names are the same."""

    seed: int = 0
    """Another seed draws another --sample."""


class JobOptions(BaseModel):
    """How a run is spread over machines and what it puts up with. Changes the speed, never a mask."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    workers: _Count | Literal["auto"] = "auto"
    """Processes that label side by side, each with its own model in memory. 'auto' fills all CPUs there are."""

    cpus_per_worker: _Count = 1
    """CPU threads one worker computes with. Fewer and wider workers need less memory; narrow ones are faster in sum."""

    images_per_shard: _Count = 64
    """Images committed together: what is lost at most when a worker dies. Frozen with the plan; a resume keeps its size."""

    retries: Annotated[int, Field(ge=0)] = 3
    """How often a shard is tried again after its worker died, and a storage call after it failed, before giving up."""

    image_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which an image that is still in work becomes an error row (timeout). Not set: images take their time."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The part of the images that may fail before a finished job exits with 3 instead of 0."""

    points_per_batch: _Count = 64
    """Accepted because SAM's own command has it, without effect: the model folder fixes the prompts per call."""
