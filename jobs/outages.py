"""Whether an image that can't be had is alone in that, or nothing can be read any more. Must not know Ray.

A store may refuse some images for good (an archive tier, a folder of other people), and in a list of web addresses, where
every server is a store of its own, some servers are gone. Those images are rows that say so. But where no image of the
run can be read, it is the credentials or the network: the job stops, for its rows would all mean nothing.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

from labeler import storage
from labeler.errors import ImageError, LabelerError, StorageError, StorageRefusedError
from labeler.retries import trying_once
from labeler.stores import HTTP, find_scheme

MAX_IN_A_ROW = 10
"""After so many images that could not be had, others from all over the run are asked for."""


class OutageWatch:
    """Watches images being read, in one thread.

    Args:
        draw: URIs from all over the run, to see whether any can be read.
    """

    def __init__(self, draw: Callable[[], Iterable[str]] = tuple) -> None:
        self._draw = draw
        self._in_a_row = 0
        self._answered: set[str] = set()  # Web servers; the others are those that never did.
        self._gone: set[str] = set()

    @contextlib.contextmanager
    def watching(self, uri: str) -> Iterator[None]:
        """Read an image in this block; what it alone can't be had for becomes its error.

        A web server that does not answer is tried for a while; if it never answered, each other address of it once.

        Raises:
            ImageError: ``forbidden``: refused; ``missing``: a web server's other faults.
            StorageError: of a store of this job as it is; or no image of the run can be read now.
        """
        server = _find_server(uri)
        try:
            with trying_once() if server in self._gone else contextlib.nullcontext():
                yield
        except (PermissionError, StorageError) as error:
            is_refused = isinstance(error, PermissionError)
            if not is_refused and server is None:
                raise
            if server is not None and server not in self._answered:
                self._gone.add(server)
            reason = str(error.strerror if isinstance(error, PermissionError) else error).removeprefix(f"{uri}: ")
            self._check(uri, reason, cause=error)
            if is_refused or isinstance(error, StorageRefusedError):
                raise ImageError("forbidden", f"it may not be read: {reason}") from error
            raise ImageError("missing", f"its web server does not give it: {reason}") from error
        except (FileNotFoundError, ImageError):
            self._note_answer(server)
            raise
        self._note_answer(server)

    def _note_answer(self, server: str | None) -> None:
        self._in_a_row = 0
        if server is not None:
            self._answered.add(server)
            self._gone.discard(server)

    def _check(self, uri: str, reason: str, *, cause: Exception) -> None:
        self._in_a_row += 1
        if self._in_a_row % MAX_IN_A_ROW == 0 and not any(map(_can_be_read, self._draw())):
            raise StorageError(
                f"{MAX_IN_A_ROW} images in a row could not be had, the last one {uri} ({reason}), nor could any other that "
                "was tried; check this job's permissions, its credentials and the network"
            ) from cause


def _can_be_read(uri: str) -> bool:
    """Whether a store gives an image, or says that it has it no more."""
    try:
        with trying_once():
            storage.read_bytes(uri, length=1)
    except FileNotFoundError:
        return True
    except (LabelerError, PermissionError):
        return False
    return True


def _find_server(uri: str) -> str | None:
    """Whose a web address is; None for a store of this job's own."""
    if find_scheme(uri) not in HTTP:
        return None
    try:
        return urlsplit(uri).netloc.lower()
    except ValueError:  # Brackets that hold no address.
        return uri
