"""A store's listing, page by page, so that a prefix of any size is listed in the memory of one page.

Must not know what the files are, nor how a store is opened: it gets fsspec's file system. fsspec's own ``find`` gathers
a whole listing before it gives the first name; the three object stores are therefore asked directly, through the
connection that their file system holds. Each request is handed to the caller, who may try it again: a page that comes
late loses none of those before it. Errors leave as the store's library raises them.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import fsspec.asyn

Ask: TypeAlias = Callable[[Callable[[], Any]], Any]
"""Makes a request and gives its answer."""


class ListedKey(NamedTuple):
    """One object: its name, with the bucket where the store has buckets, its size and its ETag."""

    name: str
    size_bytes: int | None
    etag: str | None


def list_keys(store: Any, key: str, *, ask: Ask = lambda request: request()) -> Iterator[ListedKey]:
    """Every object below a folder, at any depth, in any order. Marks that stand for folders are left out."""
    bucket, _, prefix = key.strip("/").partition("/")
    listers = {"s3": _list_s3, "gs": _list_gcs, "gcs": _list_gcs, "abfs": _list_azure, "az": _list_azure}
    lister = listers.get(_name_protocol(store))
    if lister is None:
        found: dict[str, dict[str, Any]] = ask(lambda: store.find(key, detail=True))
        yield from (ListedKey(name, about.get("size"), find_etag(about)) for name, about in found.items())
        return
    for listed in lister(store, bucket, f"{prefix.rstrip('/')}/" if prefix else "", ask):
        if not listed.name.endswith("/"):
            yield listed


def read_info(store: Any, key: str) -> dict[str, Any]:
    """fsspec's description of a file. The answer to a HEAD has no body: only a request for a byte says why it is refused."""
    bucket, _, name = key.strip("/").partition("/")
    if _name_protocol(store) in ("gs", "gcs") and name:  # gcsfs asks for a listing, too, at ten times the price.
        about = store.call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        return {**about, "size": int(about.get("size", 0))}
    try:
        found: dict[str, Any] = store.info(key)
    except FileNotFoundError:
        raise
    except Exception:
        store.cat_file(key, start=0, end=1)
        raise
    return found


def find_etag(about: dict[str, Any]) -> str | None:
    """What changes when the content does, out of fsspec's description of a file."""
    for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified"):
        if about.get(key) is not None:
            return str(about[key]).strip('"')
    return None


def _name_protocol(store: Any) -> str:
    return str(store.protocol if isinstance(store.protocol, str) else store.protocol[0])


def _list_s3(store: Any, bucket: str, prefix: str, ask: Ask) -> Iterator[ListedKey]:
    position: dict[str, str] = {}
    while True:
        request = functools.partial(store.call_s3, "list_objects_v2", Bucket=bucket, Prefix=prefix, **position)
        page = ask(request)
        for item in page.get("Contents", ()):
            yield ListedKey(f"{bucket}/{item['Key']}", item["Size"], find_etag(item))
        if not page.get("IsTruncated"):
            return
        position = {"ContinuationToken": page["NextContinuationToken"]}


def _list_gcs(store: Any, bucket: str, prefix: str, ask: Ask) -> Iterator[ListedKey]:
    position: dict[str, str] = {}
    while True:
        about = {"prefix": prefix, "maxResults": 1000, "json_out": True, **position}
        page = ask(functools.partial(store.call, "GET", "b/{}/o", bucket, **about))
        for item in page.get("items", ()):
            yield ListedKey(f"{bucket}/{item['name']}", int(item.get("size", 0)), find_etag(item))
        if not page.get("nextPageToken"):
            return
        position = {"pageToken": page["nextPageToken"]}


def _list_azure(store: Any, container: str, prefix: str, ask: Ask) -> Iterator[ListedKey]:
    client = store.service_client.get_container_client(container)
    pages = client.list_blobs(name_starts_with=prefix, include=["metadata"]).by_page()

    async def read_page() -> list[ListedKey] | None:  # After an error the pager asks for the same page again.
        try:
            page = await anext(pages)
        except StopAsyncIteration:
            return None
        return [
            ListedKey(f"{container}/{blob.name}", blob.size, find_etag({"etag": blob.etag}))
            async for blob in page
            if not (blob.metadata or {}).get("hdi_isfolder")
        ]

    while (keys := ask(lambda: fsspec.asyn.sync(store.loop, read_page))) is not None:
        yield from keys
