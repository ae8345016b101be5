"""The errors of the house, sorted by who must act.

    LabelerError
    ├── OptionsError   the person who typed the command: an unknown, malformed or contradictory option
    ├── ImageError     nobody: this image can't be read or labeled; it leaves a row that says why, the job goes on
    ├── PromptError    nobody: this prompt can't be asked or has no answer; it leaves a row that says why, the job goes on
    ├── StorageError   who runs the storage: it does not answer, refuses, or is full; retried, then the job stops, resumable
    │   ├── StorageRefusedError   the same, where trying again is no use: credentials expired, bucket gone, disk full
    │   └── PartDamagedError      the same: it gave the bytes of a part, and they are no table
    ├── ModelError     who prepared the model: it can't be read, compiled or run here
    │   └── UnknownModelError     also an OptionsError: no model is called so
    └── ClusterError   who runs the cluster: it can't be joined, or Ray can't start here

Must not know what raised them: each seam translates its library's own exceptions, chained with ``from``.
Every class survives pickling, because errors travel between processes.
"""

from typing import Generic, Literal, TypeVar, get_args

ErrorKind = Literal[
    "missing",
    "forbidden",
    "changed",
    "unsupported",
    "truncated",
    "corrupt",
    "too_large",
    "too_small",
    "timeout",
    "worker_died",
    "internal",
]
"""Why an image has no masks: the closed list of the images table's ``error_kind``."""

ERROR_KINDS: tuple[str, ...] = get_args(ErrorKind)

PromptFault = Literal["malformed", "crowd", "reversed", "empty", "outside", "size", "frame", "no_mask"]
"""What may be wrong with a prompt itself: not numbers as they should be; COCO's crowd; a box reversed, of no area, beside
the image; made for an image of another size; in a frame that can't be told; answered with an empty mask."""

PROMPT_ERROR_KINDS: tuple[str, ...] = (*ERROR_KINDS, *get_args(PromptFault))
"""The closed list of the prompts table's ``error_kind``: also its image's own (``missing``: the run has no such image)."""


class LabelerError(Exception):
    """Any error this project raises on purpose. Its text is a sentence for a person."""


class OptionsError(LabelerError):
    """An option is unknown, malformed or contradictory, or a resume does not fit. Raised before any work; exit code 2."""


class StorageError(LabelerError):
    """The store does not answer, refuses or is full. Never an image's fault."""


class StorageRefusedError(StorageError):
    """The store answers, and will answer the same again: credentials not accepted, bucket gone, disk full. Not retried."""


class PartDamagedError(StorageError):
    """A part of a run was read, but its bytes are no whole Parquet file. Made again, where that is possible."""


class ModelError(LabelerError):
    """The model can't be read, compiled or run on this machine."""


class UnknownModelError(OptionsError, ModelError):
    """There is no model and no folder of that name; on a worker, perhaps only because its machine does not see the folder."""


class ClusterError(LabelerError):
    """The Ray cluster can't be joined, or none can be started on this machine."""


_Kind = TypeVar("_Kind", bound=str)


class _OneError(LabelerError, Generic[_Kind]):
    """What keeps one image or one prompt from its masks: it stands in a row of its table, nothing stops.

    Args:
        kind: why, out of a closed list.
        reason: one sentence for a person, without the file's name or the prompt's id (the row has it).
    """

    def __init__(self, kind: _Kind, reason: str) -> None:
        reason = reason.encode(errors="backslashreplace").decode()  # It may quote bytes that are no text, and tables take none.
        super().__init__(kind, reason)
        self.kind: _Kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class ImageError(_OneError[ErrorKind]):
    """This image can't be read or labeled."""


class PromptError(_OneError[PromptFault]):
    """This prompt can't be asked, or its answer is no mask."""
