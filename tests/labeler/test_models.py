"""Model folders: what is read, what is refused, and how a name becomes a folder on this disk."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec
import pytest

from labeler import architecture, checkpoints
from labeler.checkpoints import CHECKPOINTS, Checkpoint
from labeler.errors import ModelError, OptionsError, UnknownModelError
from labeler.model_folder import ModelInfo, check_model, model_sha256, read_model_info
from labeler.models import find_cache_folder, find_model

ROOT = Path(__file__).parent.parent.parent
GRAPHS = ("encoder", "predictor", "predictor_mask")


def make_folder(folder: Path, **changes: Any) -> Path:
    """A model folder whose graphs are a few bytes: whole, though nothing can be run with it."""
    folder.mkdir(parents=True)
    files = {}
    for name in (f"{graph}.{kind}" for graph in GRAPHS for kind in ("xml", "bin")):
        (folder / name).write_bytes(name.encode() * 1000)
        files[name] = hashlib.sha256(name.encode() * 1000).hexdigest()
    record = {
        "format_version": 1,
        "model_type": "vit_t",
        "architecture": {"encoder": "vit"},
        "image_size": 256,
        "embedding_shape": [1, 96, 16, 16],
        "mask_threshold": 0.0,
        "defaults": {"points_per_side": 16},
        "prompts_per_call": 64,
        "weights": "f16",
        "checkpoint_sha256": "0" * 64,
        "files": files,
        "tools": {"openvino": "1"},
    }
    (folder / "model.json").write_text(json.dumps({**record, **changes}))
    return folder


def test_a_model_folder_is_read_and_checked(tmp_path: Path) -> None:
    """model.json comes back as values, and writing them again gives the same content."""
    folder = make_folder(tmp_path / "model")
    info = check_model(folder)
    assert info == read_model_info(folder)
    assert (info.embedding_shape, info.defaults) == ((1, 96, 16, 16), {"points_per_side": 16})
    assert json.loads(info.to_json()) == json.loads((folder / "model.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format_version 2, but this version reads 1"),
        ({"image_size": 0}, "does not describe a model: image_size"),
        ({"files": {"encoder.xml": "abc"}}, "files.encoder.xml"),
        ({"files": {"../encoder.xml": "a" * 64}}, "files"),
        ({"files": {"/encoder.xml": "a" * 64}}, "files"),
        ({"mask_threshold": float("nan")}, "mask_threshold"),
        ({"defaults": {"pred_iou_threshold": 0.5}}, r"model\.json has defaults that are none, --pred-iou-threshold"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_malformed_description_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Another format, numbers out of range and unknown keys are errors that name them."""
    with pytest.raises(ModelError, match=message):
        read_model_info(make_folder(tmp_path / "model", **changes))


def test_incomplete_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    """No folder, no model.json, none that is JSON, a missing file, other bytes: each is told apart."""
    with pytest.raises(ModelError, match="there is no model folder"):
        read_model_info(tmp_path / "nowhere")
    folder = make_folder(tmp_path / "model")
    (folder / "predictor.bin").write_bytes(b"other")
    read_model_info(folder)
    with pytest.raises(ModelError, match=r"damaged: predictor\.bin differ"):
        check_model(folder)
    (folder / "predictor.bin").unlink()
    with pytest.raises(ModelError, match=r"lacks predictor\.bin"):
        read_model_info(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_model_info(folder)
    (folder / "model.json").unlink()
    with pytest.raises(ModelError, match="conversion did not finish"):
        read_model_info(folder)


def test_a_models_hash_names_its_masks(tmp_path: Path) -> None:
    """Other graphs or another mask threshold are another model; other defaults or a bigger call are not."""
    info = read_model_info(make_folder(tmp_path / "model"))
    changed: list[dict[str, Any]] = [{"mask_threshold": 0.5}, {"files": {**info.files, "encoder.bin": "1" * 64}}]
    same: list[dict[str, Any]] = [{"defaults": {}}, {"prompts_per_call": 1}, {"tools": {}}]
    assert all(model_sha256(ModelInfo(**{**info.model_dump(), **change})) != model_sha256(info) for change in changed)
    assert all(model_sha256(ModelInfo(**{**info.model_dump(), **change})) == model_sha256(info) for change in same)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SAM_LABELER_CACHE wins over the user's cache folder, that over ~/.cache."""
    monkeypatch.setenv("SAM_LABELER_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert find_cache_folder() == tmp_path / "ours"
    monkeypatch.delenv("SAM_LABELER_CACHE")
    assert find_cache_folder() == tmp_path / "xdg" / "sam-labeler"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_cache_folder() == tmp_path / "home" / ".cache" / "sam-labeler"


def test_a_local_folder_is_used_where_it_is(tmp_path: Path) -> None:
    """A path or file URI needs no cache; an incomplete folder or a word that means nothing is an error."""
    folder = make_folder(tmp_path / "a model")
    cache = tmp_path / "cache"
    assert find_model(str(folder), cache=cache) == folder
    assert find_model(folder.as_uri(), cache=cache) == folder
    assert not cache.exists()
    with pytest.raises(ModelError, match="neither one of tiny, vit_b, vit_l, vit_h, vit_t, nor a folder, nor a URI"):
        find_model("vit_x", cache=cache)
    (folder / "encoder.xml").unlink()
    with pytest.raises(ModelError, match=r"lacks encoder\.xml"):
        find_model(str(folder), cache=cache)


@pytest.mark.parametrize(
    ("name", "words"), [("", "--model is empty"), (" ", "--model is empty"), ("x" * 300, "x: File name too long")]
)
def test_a_name_that_no_model_can_have(name: str, words: str) -> None:
    """The typist's to mend, as every model that is not there."""
    with pytest.raises(OptionsError, match=words):
        find_model(name)


def test_a_model_in_a_forbidden_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell there whether it is one. (To root nothing is forbidden, so the answer is faked.)"""

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UnknownModelError, match="--model /theirs/model: Permission denied"):
        find_model("/theirs/model")


def test_tiny_is_the_embedded_folder() -> None:
    """`tiny` is the folder that comes with the package, whole, and small enough to come with it."""
    folder = find_model("tiny")
    info = check_model(folder)
    assert info.model_type == "tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000


def list_cached(cache: Path) -> list[str]:
    """What lies in a cache of models, but for the empty files that are its locks."""
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[str]:
    """A model folder in fsspec's memory store."""
    store = fsspec.filesystem("memory")
    store.put(str(make_folder(tmp_path / "source")), "/bucket/model", recursive=True)
    yield "memory://bucket/model"
    store.rm("/bucket", recursive=True)


def test_a_folder_by_uri_is_fetched_once_and_checked(remote: str, tmp_path: Path) -> None:
    """The first call downloads and verifies; the next takes the copy; a damaged copy is fetched again."""
    cache = tmp_path / "cache"
    folder = find_model(remote, cache=cache)
    assert check_model(folder) == read_model_info(tmp_path / "source")
    made = (folder / "encoder.bin").stat().st_mtime_ns
    assert find_model(remote, cache=cache) == folder
    assert (folder / "encoder.bin").stat().st_mtime_ns == made
    (folder / "encoder.bin").write_bytes(b"a disk went bad")
    assert check_model(find_model(remote, cache=cache)) == read_model_info(tmp_path / "source")
    assert list_cached(cache) == [folder.name]


def test_a_damaged_or_absent_remote_folder_leaves_nothing(remote: str, tmp_path: Path) -> None:
    """Other bytes than model.json says, a missing file or no model at all end as ModelError and not in the cache."""
    store, cache = fsspec.filesystem("memory"), tmp_path / "cache"
    store.pipe_file("/bucket/model/encoder.bin", b"other")
    with pytest.raises(ModelError, match=r"memory://bucket/model is damaged: encoder\.bin .*upload the folder again"):
        find_model(remote, cache=cache)
    store.rm("/bucket/model/encoder.bin")
    with pytest.raises(ModelError, match=r"encoder\.bin, but there is no such file"):
        find_model(remote, cache=cache)
    store.rm("/bucket/model/model.json")
    with pytest.raises(ModelError, match=r"has no model\.json"):
        find_model(remote, cache=cache)
    assert list_cached(cache) == []


@dataclass
class Store:
    """A model folder behind an HTTP server, and what that was asked for. A file is sent once ``is_open`` is set."""

    uri: str = ""
    is_open: Event = field(default_factory=Event)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """One that is open."""
    pytest.importorskip("aiohttp", reason="needs aiohttp, which the extras for stores bring")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    make_folder(tmp_path / "published" / "model")
    store = Store()
    store.is_open.set()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            store.asked.append(name)
            if name != "model.json":
                store.is_open.wait(30)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "published"))) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        store.uri = f"http://127.0.0.1:{server.server_port}/model"
        yield store
        store.is_open.set()
        server.shutdown()


_FIND = """
import sys
from pathlib import Path
from labeler.model_folder import check_model
from labeler.models import find_model
print("ready", flush=True)
sys.stdin.readline()
print(check_model(find_model(sys.argv[1], cache=Path(sys.argv[2]))).model_type)
"""


def start_finding(uri: str, cache: Path) -> "subprocess.Popen[str]":
    """A process that will look for a model as soon as it is sent a line."""
    command = [sys.executable, "-c", _FIND, uri, str(cache)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_ten_processes_download_a_model_once(store: Store, tmp_path: Path) -> None:
    """Each asks what the model is; one fetches its files, and all have it whole."""
    processes = [start_finding(store.uri, tmp_path / "cache") for _ in range(10)]
    for process in processes:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    assert [process.communicate(timeout=60)[0] for process in processes] == ["vit_t\n"] * 10
    files = read_model_info(tmp_path / "published" / "model").files
    assert Counter(store.asked) == {"model.json": 10, **dict.fromkeys(files, 1)}
    assert len(list_cached(tmp_path / "cache")) == 1


def test_who_dies_while_it_downloads_holds_nobody_up(store: Store, tmp_path: Path) -> None:
    """Its lock goes with it, and what it left is cleared away by the next."""
    store.is_open.clear()
    process = start_finding(store.uri, tmp_path / "cache")
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    end = time.monotonic() + 30
    while store.asked != ["model.json", "encoder.bin"]:
        assert time.monotonic() < end, store.asked
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert [name.rpartition(".")[2] for name in list_cached(tmp_path / "cache")] == ["making"]
    store.is_open.set()
    folder = find_model(store.uri, cache=tmp_path / "cache")
    assert check_model(folder) == read_model_info(tmp_path / "published" / "model")
    assert list_cached(tmp_path / "cache") == [folder.name]


def test_an_unknown_kind_of_store_is_an_option_error(tmp_path: Path) -> None:
    """A URI of a store that does not exist is the typist's to mend."""
    with pytest.raises(OptionsError, match="nosuch"):
        find_model("nosuch://bucket/model", cache=tmp_path)


def test_a_published_name_offline_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network the error names address, file and place, and leaves no half-made model."""
    pytest.importorskip("torch", reason="needs the extra convert")
    monkeypatch.setattr(checkpoints, "_WAITS_S", ())
    url = "http://127.0.0.1:9/sam_vit_b_01ec64.pth"  # The discard port: nobody listens.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(CHECKPOINTS, "vit_b", Checkpoint("vit_b", url, "0" * 64, 1))
    with pytest.raises(ModelError) as caught:
        find_model("vit_b", cache=tmp_path)
    assert all(part in str(caught.value) for part in (url, str(tmp_path / "checkpoints" / "sam_vit_b_01ec64.pth")))
    assert list_cached(tmp_path) == []


SMALLEST: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "encoder_embed_dim": 16,
    "encoder_depth": 1,
    "encoder_num_heads": 1,
    "encoder_mlp_ratio": 1,
    "encoder_global_attn_indexes": [0],
    "window_size": 2,
    "prompt_embed_dim": 16,
    "mask_in_chans": 4,
    "decoder_depth": 1,
    "decoder_mlp_dim": 8,
    "decoder_num_heads": 1,
    "iou_head_depth": 1,
    "iou_head_hidden_dim": 8,
}


def test_a_published_name_is_downloaded_converted_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of `--model vit_b`, with a small SAM published in vit_b's place; the second call needs neither."""
    torch = pytest.importorskip("torch", reason="needs the extra convert")
    from labeler.convert import build_sam

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(architecture.PUBLISHED_ARCHITECTURES, "vit_b", architecture.Architecture(**SMALLEST))
    published = tmp_path / "published"
    published.mkdir()
    torch.save(build_sam(SMALLEST).state_dict(), published / "sam_vit_b_01ec64.pth")
    content = (published / "sam_vit_b_01ec64.pth").read_bytes()
    handler = partial(SimpleHTTPRequestHandler, directory=str(published))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://127.0.0.1:{server.server_port}/sam_vit_b_01ec64.pth"
        sha256 = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(CHECKPOINTS, "vit_b", Checkpoint("vit_b", url, sha256, len(content)))
        try:
            folder = find_model("vit_b", cache=tmp_path / "cache")
        finally:
            server.shutdown()
    info = check_model(folder)
    assert (info.model_type, info.weights, info.checkpoint_sha256) == ("vit_b", "f16", sha256)
    shutil.rmtree(tmp_path / "cache" / "checkpoints")
    assert find_model("vit_b", cache=tmp_path / "cache") == folder
