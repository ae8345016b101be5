"""What the command lines share: each mask option as a flag, and errors as exit codes.

Must not know any command. Flags come from ``labeler.options``, where names, ranges, defaults and help texts stand.
"""

import atexit
import codecs
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import UNSET, App, ArgumentCollection, CycloptsError, Parameter
from pydantic import BaseModel, ValidationError, create_model

from labeler.errors import ImageError, LabelerError, OptionsError
from labeler.options import MaskOptions, Preset, describe_validation_error, refuse_empty
from labeler.signals import catch_signals

EXIT_DONE = 0
EXIT_STOPPED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

_TELLING = tuple(f"labeler.{module}" for module in ("checkpoints", "convert", "graphs", "models", "quantize"))
"""Loggers of work that may take minutes: they tell what they are doing."""

EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 a file, the storage or the model is at fault; 2 usage or a bad option; 130, 143 interrupted."
)


_PRESET_HELP = (
    "sa1b, as that dataset was made: 32 points per side, two crop layers (with 16 and 8 points per side), regions below 100 "
    "pixels removed, no mask above 0.95 of the image. Single options win over it."
)
PresetFlag = Annotated[Preset | None, Parameter(help=_PRESET_HELP)]


def refuse_empty_arguments(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A hook of cyclopts, run once flags and ``--config`` are put together: empty texts are refused."""
    tokens = ((argument.name, token) for argument in arguments for token in argument.tokens)
    refuse_empty((name, token.value) for name, token in tokens if token.implicit_value is UNSET)  # A flag has no text.


def leave(code: int) -> NoReturn:
    """End this process with its exit code, and without Python's own end.

    While Python is taken down, a thread of a C++ library that still wants to tell it something (Arrow's readers do) aborts
    the process: exit code -6 after work that went well. Here exit handlers have run and output is flushed.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _make_flag(name: str) -> tuple[Any, None]:
    """A mask option as it is typed: None where it is not given, so that the model's own default can count."""
    field = MaskOptions.model_fields[name]
    # The grids are read from a file by MaskOptions itself.
    typed: Any = Path if name == "point_grids" else field.annotation
    default = "" if field.default is None else f" Default: the model's own, else {_shorten(field.default)}."
    return Annotated[typed | None, Parameter(help=f"{field.description}{default}", show_default=False, negative=())], None


def _shorten(default: object) -> str:
    return f"{default:.4g}" if isinstance(default, float) else str(default)


if TYPE_CHECKING:
    MaskFlags = BaseModel
else:
    # Not MaskOptions itself: what is typed can only be checked together with the preset and the model's own defaults.
    MaskFlags = create_model("MaskFlags", **{name: _make_flag(name) for name in MaskOptions.model_fields})
"""All mask options as flags (``Annotated[MaskFlags | None, Parameter(name="*", group=...)]``), unchecked."""


def tell_default(value: object) -> str | None:
    """What help says is the default: nothing where that is none, or off."""
    return None if value is None or value is False or value == () else str(value)


def given_options(flags: BaseModel | None) -> dict[str, Any]:
    """The options that were typed, for ``resolve_mask_options``."""
    return {} if flags is None else flags.model_dump(exclude_none=True)


def run_command(app: App, arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments (default: this process's) name.

    Returns:
        The exit code: what the command returned, or the one its error stands for; the error is then one line on stderr.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in _TELLING:
        logging.getLogger(name).setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name that is no text must not end what went well.
            stream.reconfigure(errors="backslashreplace")
    if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        return _fail("names of files are read and written as UTF-8 here: set PYTHONUTF8=1 in the environment", code=EXIT_USAGE)
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with catch_signals(signal.SIGTERM) as signals:  # It ends a command as Ctrl-C does: nothing half made is left.
        try:
            result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        except CycloptsError as error:
            fault = error.__cause__
            message = describe_validation_error(fault) if isinstance(fault, ValidationError) else str(error).strip()
            return _fail(message, hint=f"See: {' '.join(app.name)} --help", code=EXIT_USAGE)
        except OptionsError as error:
            return _fail(str(error), code=EXIT_USAGE)
        except ImageError as error:
            return _fail(error.reason, code=EXIT_STOPPED)
        except LabelerError as error:
            return _fail(str(error), code=EXIT_STOPPED)
        except KeyboardInterrupt:
            is_terminated = bool(signals.received)
            return _fail("terminated", code=EXIT_TERMINATED) if is_terminated else _fail("interrupted", code=EXIT_INTERRUPTED)
    if not tokens:  # The help was shown.
        return EXIT_USAGE
    return result if isinstance(result, int) else EXIT_DONE


def _fail(message: str, *, code: int, hint: str = "") -> int:
    print(f"error: {message}", *([hint] if hint else []), sep="\n", file=sys.stderr)
    return code
