"""What was typed, where the command-line library needs help: ``--config`` and ``--retry-failed``. Must not know commands."""

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path

from cyclopts.config import Dict

from labeler.errors import ERROR_KINDS, OptionsError


def read_config(tokens: Sequence[str]) -> list[Dict]:
    """What ``--config`` names, for cyclopts to put below what is typed."""
    path = next((b for a, b in itertools.pairwise(tokens) if a == "--config"), None)
    path = next((token.partition("=")[2] for token in tokens if token.startswith("--config=")), path)
    if path is None or not path.strip():
        return []  # One that is empty is refused as every empty text is.
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionsError(f"--config: can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise OptionsError(f"--config: {path} is not TOML: {error}") from error
    tables = sorted(name for name, value in content.items() if isinstance(value, dict))
    if tables:
        raise OptionsError(f"--config {path}: options stand by themselves, not below [{tables[0]}]")
    return [Dict(content, use_commands_as_keys=False, allow_unknown=False, source=path)]


def complete_retry_failed(tokens: list[str]) -> list[str]:
    """``--retry-failed`` may stand alone: then it means every kind of error."""
    following = [*tokens, "--"][1:]
    return [
        "--retry-failed=all" if token == "--retry-failed" and after.startswith("-") else token
        for token, after in zip(tokens, following, strict=True)
    ]


def parse_kinds(text: str | None) -> frozenset[str]:
    """The value of ``--retry-failed``."""
    if text is None or text == "all":
        return frozenset(ERROR_KINDS if text else ())
    kinds = frozenset(kind.strip() for kind in text.split(","))
    if unknown := sorted(kinds - set(ERROR_KINDS)):
        raise OptionsError(f"--retry-failed: {', '.join(unknown)} is no kind of error; there are {', '.join(ERROR_KINDS)}")
    return kinds
