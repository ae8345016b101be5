"""Find a model by name, path or URI, and bring it to this machine's disk.

Must not know how a model runs; conversion and its heavy libraries are called only where a name asks for a published
checkpoint that was not converted here before.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from labeler import storage
from labeler.checkpoints import CHECKPOINTS, download
from labeler.errors import ModelError, UnknownModelError
from labeler.locks import open_alone
from labeler.model_folder import FORMAT_VERSION, MODEL_JSON, check_model, parse_model_info
from labeler.options import refuse_empty

logger = logging.getLogger(__name__)

TINY = "tiny"
TINY_FOLDER = Path(__file__).parent / "assets" / "tiny"
"""The embedded model, to try things out; its card lies in the folder."""

_CHUNK_BYTES = 64 << 20


def find_cache_folder() -> Path:
    """Where this machine keeps what it downloaded or converted: SAM_LABELER_CACHE, else the user's cache folder.

    Raises:
        ModelError: this user has no home.
    """
    if given := os.environ.get("SAM_LABELER_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam-labeler"
    except RuntimeError as error:  # As where a container's user is but a number.
        raise ModelError("there is no home folder to keep a model in; set SAM_LABELER_CACHE to a folder") from error


def find_model(name: str, *, cache: Path | None = None) -> Path:
    """A complete model folder on this machine's disk.

    Args:
        name: ``tiny``, ``vit_b``, ``vit_l``, ``vit_h``, ``vit_t``, a folder, or a folder's URI. A name wins over a folder
            called the same; ``./vit_b`` is the folder.
        cache: where downloads and conversions are kept; ``find_cache_folder()`` by default.

    Raises:
        OptionsError: the name is empty; UnknownModelError: there is no such model, or none that may be looked at.
        ModelError: it is incomplete or damaged, or can't be fetched or made here; says what to do.
        StorageError: the store of a URI does not answer.
    """
    refuse_empty([("--model", name)])
    if name in CHECKPOINTS:
        return _find_published(name, cache=cache or find_cache_folder())
    folder = TINY_FOLDER if name == TINY else storage.uri_to_path(name)
    if folder is None:
        return _fetch_folder(name, cache=cache or find_cache_folder())
    try:
        is_there = folder.is_dir()
    except OSError as error:  # It lies in a folder that is forbidden, or no name is that long.
        raise UnknownModelError(f"--model {name}: {error.strerror}") from error
    if not is_there:
        names = ", ".join([TINY, *CHECKPOINTS])
        raise UnknownModelError(f"--model {name}: neither one of {names}, nor a folder, nor a URI")
    check_model(folder)
    return folder


def _find_published(model_type: str, *, cache: Path) -> Path:
    """The published checkpoint as a model folder, converted once a machine."""
    checkpoint = CHECKPOINTS[model_type]
    name = f"{model_type}-f16-{checkpoint.sha256[:12]}-v{FORMAT_VERSION}"

    def convert(folder: Path) -> None:
        from labeler.convert import convert_checkpoint

        path = download(checkpoint, folder=cache / "checkpoints")
        convert_checkpoint(path, output=folder, model_type=model_type, weights="f16")

    return _find_cached(cache / "models" / name, make=convert)


def _fetch_folder(uri: str, *, cache: Path) -> Path:
    """A model folder from an object store, downloaded once a machine."""
    try:
        info = parse_model_info(storage.read_bytes(storage.join(uri, MODEL_JSON)), source=storage.join(uri, MODEL_JSON))
    except FileNotFoundError as error:
        raise ModelError(f"{uri} has no {MODEL_JSON}: not a model folder, or its conversion did not finish") from error
    except PermissionError as error:
        raise ModelError(f"{uri} may not be read: {error}") from error

    def download(folder: Path) -> None:
        logger.info("downloading model %s", uri)
        for file_name in sorted(info.files):
            with (folder / file_name).open("wb") as file:
                file.writelines(_read_pieces(storage.join(uri, file_name)))
        (folder / MODEL_JSON).write_text(info.to_json(), encoding="utf-8")
        try:
            check_model(folder)
        except ModelError as error:
            raise ModelError(f"{str(error).replace(str(folder), uri)}; upload the folder again") from error

    # Not model_sha256: two folders of the same graphs may have other defaults.
    return _find_cached(cache / "models" / hashlib.sha256(info.to_json().encode()).hexdigest(), make=download)


def _read_pieces(uri: str) -> Iterator[bytes]:
    """The bytes of a model's file, piece by piece: weights may be larger than the memory that is left."""
    try:
        size_bytes = storage.measure_file(uri)
        for offset in range(0, size_bytes, _CHUNK_BYTES):
            yield storage.read_bytes(uri, offset=offset, length=min(_CHUNK_BYTES, size_bytes - offset))
    except FileNotFoundError as error:
        raise ModelError(f"model.json names {uri}, but there is no such file") from error
    except PermissionError as error:
        raise ModelError(f"{uri} may not be read: {error}") from error


def _find_cached(folder: Path, *, make: Callable[[Path], None]) -> Path:
    """The folder, if it is there and whole; else what ``make`` writes into a folder beside, moved there when finished.

    Of processes that come at the same time one makes it and the others wait. Should that one die, the next clears away
    what it left and makes it anew.
    """
    if _is_whole(folder):
        return folder
    made = folder.with_name(f"{folder.name}.making")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_alone(folder.with_name(f"{folder.name}.lock")):
            if _is_whole(folder):
                return folder
            for leftover in (made, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            made.mkdir()
            try:
                make(made)
                made.replace(folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"can't write the cache {folder.parent} ({error.strerror or error}); set SAM_LABELER_CACHE") from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a model of the cache is there, with every file as its ``model.json`` says."""
    if not folder.is_dir():
        return False
    try:
        check_model(folder)
    except ModelError as error:
        logger.warning("not used, but made again: %s", error)
        return False
    return True
