"""Opening stores other than the local disk, with the options a person gave for them. The fsspec seam.

Must not know what is read or written. In a URL ``%`` followed by two hex digits stands for a byte, as ``file://`` URIs
have it, so that every key an object store allows has a URL that opens it again; ``http(s)`` and chained URLs are
fsspec's own business and passed on as they are.

The options hold secrets: they stand in no record, no log and no text of an error. They belong to the process, as its
environment does; whoever starts another process hands them on with ``get_store_options``.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

import fsspec

from labeler.errors import OptionsError

StoreOptions: TypeAlias = Mapping[str, Mapping[str, Any]]
"""fsspec's options by the URL under which they hold; ``""`` is everywhere but http."""

S3 = frozenset({"s3", "s3a"})
HTTP = frozenset({"http", "https"})

OBJECT_STORES = frozenset({*S3, "gs", "gcs", "az", "abfs", "abfss"})
"""Stores without folders: nothing needs to be made before a key is written."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_MEANS_ITSELF = re.compile(r"^https?://|::", re.IGNORECASE)
_ESCAPED = re.compile(r"[%?#\x00-\x1f\x7f]|:(?=:)|(?<=:):")  # Two colons would chain URLs.
_PASSWORD = re.compile(r"^[a-z0-9+.-]+://[^/@]*:[^/@]*@", re.IGNORECASE)
# Whoever lists twice wants to see what came in between; and a store that is gone is to be noticed within a minute.
_DEFAULTS: dict[str, Any] = {"use_listings_cache": False}
_S3_DEFAULTS: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}}
}
_HTTP_CONNECT_S = 10
_HTTP_READ_S = 60
_HTTP_WHOLE_S = 300
_PUBLIC = frozenset({"endpoint_url", "region_name", "profile", "account_name", "account_host", "project", "addressing_style"})
_SHORTEST_SECRET = 4

_options: StoreOptions = {}


def use_store_options(options: StoreOptions) -> None:
    """From now on this process opens stores with these."""
    global _options
    _options = {place: dict(values) for place, values in options.items()}


def get_store_options() -> StoreOptions:
    """Those of this process. Holds secrets: for handing on to another process and nothing else."""
    return _options


def parse_store_options(texts: Iterable[str], *, places: Mapping[str, str | None]) -> StoreOptions:
    """``[PLACE.]KEY=VALUE``, each, as a person types them; what is JSON is taken as such.

    Args:
        texts: such as ``anon=true``, ``output.endpoint_url=http://minio:9000`` or ``s3://photos.profile=work``.
        places: what the words for a place (``input``) stand for; one that is not a URL takes no options.

    Raises:
        OptionsError: names the key and never the value.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        place, _, key = name.rpartition(".")
        if not equals or not key.isidentifier():
            raise OptionsError("--storage-options: give KEY=VALUE or PLACE.KEY=VALUE, such as anon=true or output.profile=work")
        if place and "://" not in place and place not in places:
            raise OptionsError(f"--storage-options: {place} is no place; {', '.join(places)} and URLs are")
        url = places.get(place, place)
        if url is not None:
            options.setdefault(url.rstrip("/"), {})[key] = _parse_value(value)
    return options


def open_store(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the key in it.

    Raises:
        OptionsError: no such kind of store, its package is not installed, or the URL holds a password.
    """
    check_url(uri)
    scheme = find_scheme(uri)
    try:
        defaults = _find_defaults(scheme) if "::" not in uri else {}
        store, key = fsspec.core.url_to_fs(uri, **{**defaults, **_find_options(uri)})
    except (ImportError, ValueError, TypeError) as error:
        raise OptionsError(f"{uri} can't be opened: {hide_secrets(str(error))}") from error
    return store, str(key) if means_itself(uri) else unquote_key(key)


def check_url(url: str) -> None:
    """Whether such a URL could be opened here, as far as can be told without asking a store.

    Raises:
        OptionsError: no such kind of store, its package is not installed, or the URL holds a password.
    """
    for link in url.split("::"):
        if _PASSWORD.match(link):
            raise OptionsError("a URL with a password in it would be written into the run; use --storage-options instead")
        if "://" in link:
            _find_store_class(find_scheme(link))


def find_scheme(uri: str) -> str:
    """Which kind of store a URL names: ``s3``, ``gs``, ..."""
    return uri.partition("://")[0].lower()


def quote_key(key: str) -> str:
    """A key, or a piece of one, as it stands in a URL: as it is, but for what would not open again."""
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", key)


def unquote_key(text: str) -> str:
    """The key that a piece of a URL stands for."""
    return unquote(text, errors="surrogateescape")


def means_itself(url: str) -> bool:
    """Whether nothing in a URL is taken as percent-encoded here: an address of the web, or a chained one."""
    return _MEANS_ITSELF.search(url) is not None


def normalize_url(url: str) -> str:
    """The same place by its one name: only what must be is percent-encoded, and no slash ends it."""
    if means_itself(url):
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{quote_key(unquote_key(rest)).rstrip('/')}"


def find_bucket(url: str) -> str:
    """The URL of the bucket or container that a place is in."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.partition('/')[0]}"


def hide_secrets(text: str) -> str:
    """The text without any value that was given as an option, but for those that are known to be harmless."""
    for secret in sorted({s for values in _options.values() for s in _list_secrets(values)}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


@functools.lru_cache
def _find_store_class(scheme: str) -> Any:
    try:
        return fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        extra = _EXTRAS.get(scheme)
        hint = f"; pip install '.[{extra}]'" if extra else ""
        raise OptionsError(f"{scheme}:// can't be opened: {error}{hint}") from error


def _find_defaults(scheme: str) -> dict[str, Any]:
    if scheme in HTTP:
        import aiohttp  # Only who reads from the web needs it.

        timeout = aiohttp.ClientTimeout(total=_HTTP_WHOLE_S, sock_connect=_HTTP_CONNECT_S, sock_read=_HTTP_READ_S)
        return {**_DEFAULTS, "client_kwargs": {"timeout": timeout}}
    return {**_DEFAULTS, **(_S3_DEFAULTS if scheme in S3 else {})}


def _find_options(uri: str) -> dict[str, Any]:
    """Those of every place that the URL lies under; the narrower place wins."""
    found: dict[str, Any] = {}
    if "::" in uri:
        return found
    for place in sorted(_options, key=len):
        everywhere = not place and not uri.lower().startswith("http")
        if everywhere or (place and (uri == place or uri.startswith(place + "/"))):
            found |= _options[place]
    return found


def _list_secrets(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _list_secrets(value)
        elif isinstance(value, str) and key not in _PUBLIC and len(value) >= _SHORTEST_SECRET:
            yield value


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
