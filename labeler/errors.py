"""The errors of the house, sorted by who must act.

    LabelerError
    ├── OptionsError   the person who typed the command: an unknown, malformed or contradictory option
    ├── ImageError     nobody: this image can't be read or labeled; it leaves a row that says why, the job goes on
    ├── StorageError   who runs the storage: it does not answer, refuses, or is full; retried, then the job stops, resumable
    │   └── StorageRefusedError   the same, where trying again is no use: credentials expired, bucket gone, disk full
    └── ModelError     who prepared the model: it can't be read, compiled or run here

Must not know what raised them: each seam translates its library's own exceptions, chained with ``from``.
Every class survives pickling, because errors travel between processes.
"""

from typing import Literal, get_args

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


class LabelerError(Exception):
    """Any error this project raises on purpose. Its text is a sentence for a person."""


class OptionsError(LabelerError):
    """An option is unknown, malformed or contradictory, or a resume does not fit. Raised before any work; exit code 2."""


class StorageError(LabelerError):
    """The store does not answer, refuses or is full. Never an image's fault."""


class StorageRefusedError(StorageError):
    """The store answers, and will answer the same again: credentials not accepted, bucket gone, disk full. Not retried."""


class ModelError(LabelerError):
    """The model can't be read, compiled or run on this machine."""


class ImageError(LabelerError):
    """This image can't be read or labeled.

    Args:
        kind: one of ``ERROR_KINDS``; stands in the images table.
        reason: one sentence for a person, without the file's name (the row has it).
    """

    def __init__(self, kind: ErrorKind, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind: ErrorKind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"
