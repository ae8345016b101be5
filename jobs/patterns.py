"""Inputs that are patterns: globs, and the braces in which WebDataset names its shards. Must not know what lies there.

``*`` and ``?`` stop at a slash, ``**`` does not, ``[a-c]`` is one of these. ``{000000..000019}`` stands for each of these
numbers, with as many digits, and ``{train,val}`` for each of these words. A file or folder that is called like a pattern
is one.
"""

import itertools
import re
from collections.abc import Callable, Iterator

from labeler import storage
from labeler.errors import OptionsError
from labeler.stores import means_itself, unquote_key

_BRACES = re.compile(r"\{(-?\d+\.\.-?\d+|[^{}]*,[^{}]*)\}")
_SPECIAL = re.compile(rf"[*?\[]|{_BRACES.pattern}")
_WILDCARD = re.compile(r"[*?\[]")


def may_be_pattern(root: str) -> bool:
    """Whether a URI is a pattern as far as its name tells: it shows that only in what ``%`` stands for."""
    return _SPECIAL.search(_split_scheme(root)[1]) is not None and not means_itself(root)


def is_pattern(root: str) -> bool:
    """Whether a URI is a pattern, and nothing is called so."""
    if not may_be_pattern(root):
        return False
    scheme, text = _split_scheme(root)
    try:
        return bool(scheme and _SPECIAL.search(text.partition("/")[0])) or not storage.exists(root)  # No bucket is called so.
    except PermissionError:  # A store that may not be listed says so of every key that is not there.
        return True


def split_pattern(root: str) -> tuple[str, str]:
    """The folder before the first special character, and the pattern below it.

    Raises:
        OptionsError: it is the bucket that is a pattern.
    """
    scheme, text = _split_scheme(root)
    match = _SPECIAL.search(text)
    assert match is not None  # Only patterns are split.
    folder, _, _ = text[: match.start()].rpartition("/")
    if scheme and not folder:
        raise OptionsError(f"--input {root}: a pattern stands for files in one bucket; name the bucket in full")
    place = storage.join(scheme, folder) if scheme else storage.path_to_uri(folder or "/")
    return place, text[len(folder) :].lstrip("/")


def has_wildcard(pattern: str) -> bool:
    """Whether it takes a listing to know what a pattern stands for: braces alone say it by themselves."""
    return bool(_WILDCARD.search(pattern))


def expand_braces(pattern: str) -> Iterator[str]:
    """Each text that the braces of a pattern stand for, in order; without braces the pattern itself."""
    pieces = _BRACES.split(pattern)  # What is between the braces stands at even places, what is in them at odd ones.
    choices = [_expand(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    yield from map("".join, itertools.product(*choices))


def compile_pattern(pattern: str) -> Callable[[str], object]:
    """Tells whether the path of a file below the fixed folder is meant.

    Raises:
        OptionsError: it has brackets in which nothing can be, such as ``[z-a]``.
    """
    try:
        return re.compile("|".join(map(_glob_to_regex, expand_braces(pattern)))).fullmatch
    except re.error as error:
        raise OptionsError(f"--input: {pattern} is no pattern: {error.msg}") from error


def _split_scheme(root: str) -> tuple[str, str]:
    """``s3://`` and what it means below it, decoded; of a local place an empty text and its path."""
    path = storage.uri_to_path(root)
    if path is not None:
        return "", str(path)
    scheme, mark, rest = root.partition("://")
    return scheme + mark, unquote_key(rest)


def _expand(inside: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    begin, _, end = inside.partition("..")
    is_padded = any(re.match(r"-?0\d", number) for number in (begin, end))
    width = max(len(begin), len(end)) if is_padded else 0
    step = 1 if int(begin) <= int(end) else -1
    return [f"{number:0{width}d}" for number in range(int(begin), int(end) + step, step)]


def _glob_to_regex(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "(?s:" + "".join(known.get(piece) or _piece_to_regex(piece) for piece in pieces) + ")"


def _piece_to_regex(piece: str) -> str:
    if len(piece) > 2 and piece[0] == "[" and piece[-1] == "]":
        inside = piece[1:-1].replace("\\", "\\\\")
        return f"[^{inside[1:]}]" if inside[0] == "!" else f"[{inside}]"
    return re.escape(piece)
