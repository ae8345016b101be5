"""Any name a file system allows is listed, read, written and named in text; errors say whose fault they are."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stores
from nobody import as_nobody, make_public_folder

from labeler import storage
from labeler.errors import OptionsError, StorageError, StorageRefusedError
from labeler.store_errors import translate_local_errors
from labeler.temporary import make_temporary_folder, temporary_folder

NAMES = [
    "plain.jpg",
    "with space.jpg",
    "50% off.jpg",
    "%41.jpg",
    "what#fragment?query&x=1.jpg",
    "-rf.jpg",
    "quote'\"quote.jpg",
    "größe 日本.jpg",
    "tab\tnew\nline.jpg",
    "a:b;c|d*e[f].jpg",
    "s3:file.jpg",
    "back\\slash.jpg",
    ".hidden.jpg",
    "a" * 196 + ".jpg",
    os.fsdecode(b"caf\xe9 \xff.jpg"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of awkward names, each holding its own name."""
    for name in NAMES:
        try:
            (tmp_path / name).write_bytes(os.fsencode(name))
        except OSError:  # Not every file system takes every name.
            continue
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "x.jpg" / "inner%20.jpg").write_bytes(b"inner%20.jpg")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    """A store that is not the local disk."""
    fsspec = pytest.importorskip("fsspec")
    root = "memory://test-storage"
    yield root
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/test-storage", recursive=True)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """See ``make_public_folder``."""
    with make_public_folder() as folder:
        yield folder


# --- names


@pytest.mark.parametrize("name", NAMES)
def test_a_path_comes_back_from_its_uri(name: str) -> None:
    """The URI is plain ASCII without spaces, quotes, # or ?, and standard: what urllib makes of it is the path."""
    path = Path("/some/folder") / name
    uri = storage.path_to_uri(path)
    assert uri.isascii()
    assert not set(uri) & set(" #?'\"\n\t\\")
    assert storage.uri_to_path(uri) == path
    assert urllib.request.url2pathname(uri.removeprefix("file://")) == str(path) or "\udce9" in name
    assert storage.path_to_uri(uri) == uri


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_table_is_valid_text_and_comes_back(name: str) -> None:
    """Only % and bytes that are not UTF-8 are changed."""
    text = storage.encode_name(name)
    assert text.encode("utf-8").decode("utf-8") == text
    assert storage.decode_name(text) == name
    if "%" not in name and "\udce9" not in name:
        assert text == name


def test_names_are_encoded_as_the_contract_says() -> None:
    """The two cases by example."""
    assert storage.encode_name("50% off/größe.jpg") == "50%25 off/größe.jpg"
    assert storage.encode_name(os.fsdecode(b"caf\xe9.jpg")) == "caf%E9.jpg"


def test_places_are_told_apart() -> None:
    """A path is taken literally; a file URI is decoded; what has a scheme is not local."""
    assert storage.uri_to_path("/a/%41#.jpg") == Path("/a/%41#.jpg")
    assert storage.uri_to_path("file:///a/%41%23.jpg") == Path("/a/A#.jpg")
    assert storage.uri_to_path("FILE://localhost/a.jpg") == Path("/a.jpg")
    for uri in ("s3://bucket/a.jpg", "memory://a", "tar://member.jpg::file:///a.tar", "simplecache::s3://b/a"):
        assert storage.uri_to_path(uri) is None
        assert storage.path_to_uri(uri) == uri


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is read from other folders."""
    monkeypatch.chdir(tmp_path)
    assert storage.uri_to_path(storage.path_to_uri("a/../b.jpg")) == tmp_path / "b.jpg"


@pytest.mark.parametrize("as_uri", [False, True])
def test_join_names_what_a_listing_found(folder: Path, as_uri: bool) -> None:
    """For a plain root and for a URI, whatever stands in the name."""
    root = storage.path_to_uri(folder) if as_uri else str(folder)
    for file in storage.list_files(root):
        assert storage.read_bytes(storage.join(root, file.path)).decode("utf-8", "replace")
        assert storage.uri_to_path(storage.join(root, *file.path.split("/"))) == storage.uri_to_path(file.uri)
    assert storage.join("/", "a", "b") == "/a/b"
    assert storage.join("s3://bucket/run/", "masks", "part") == "s3://bucket/run/masks/part"
    assert storage.join("rel", "a") == "rel/a"
    assert storage.join(root) == root


# --- listing


@pytest.mark.parametrize("as_uri", [False, True])
def test_every_awkward_name_is_listed_and_read(folder: Path, as_uri: bool) -> None:
    """Each URI opens the file whose name it holds; a folder that is called like an image is a folder."""
    files = list(storage.list_files(storage.path_to_uri(folder) if as_uri else str(folder)))
    assert {f.path for f in files} == {p.name for p in folder.iterdir() if p.is_file()} | {"x.jpg/inner%20.jpg"}
    for file in files:
        content = storage.read_bytes(file.uri)
        assert content == os.fsencode(file.path.rsplit("/", 1)[-1])
        assert (file.size_bytes, storage.stat_file(file.uri).etag) == (len(content), file.etag)


def test_links_are_followed_but_never_round_in_circles(tmp_path: Path) -> None:
    """A file by two ways is listed twice; dangling and looping links are listed without a size, and are missing."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "a.jpg").write_bytes(b"a")
    links = {
        "b.jpg": "real/a.jpg",
        "other": "real",
        "real/up": "..",
        "real/deep/self": ".",
        "dangling.jpg": "nowhere.jpg",
        "loop.jpg": "loop.jpg",
        "loop1.jpg": "loop2.jpg",
        "loop2.jpg": "loop1.jpg",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    files = {f.path: f for f in storage.list_files(str(tmp_path))}
    broken = {"dangling.jpg", "loop.jpg", "loop1.jpg", "loop2.jpg"}
    assert {p for p, f in files.items() if f.size_bytes is None} == broken
    assert {p for p, f in files.items() if f.size_bytes == 1} == {"b.jpg", "real/a.jpg", "other/a.jpg"}
    for name in broken:
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(files[name].uri)
    assert storage.read_bytes(files["other/a.jpg"].uri) == b"a"
    assert sorted(storage.list_names(str(tmp_path))) == sorted(files)


def test_names_alone_are_had_without_a_look_at_each_file(folder: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names as of a whole listing; of a network's disk each look would be a request."""
    os.mkfifo(folder / "pipe.jpg")
    storage.write_bytes(f"{memory}/run/part.parquet", b"x")
    for root in (str(folder), storage.path_to_uri(folder), memory):
        assert sorted(storage.list_names(root)) == sorted(file.path for file in storage.list_files(root))
    looked_at, look = [], storage._stat_entry
    monkeypatch.setattr(storage, "_stat_entry", lambda entry: (looked_at.append(entry.name), look(entry))[1])
    assert len(list(storage.list_names(str(folder)))) > len(NAMES) // 2
    assert sorted(looked_at) == ["inner%20.jpg", "pipe.jpg", "x.jpg"]
    for root in (f"{folder}/nothing", f"{folder}/plain.jpg", f"{memory}/nothing"):
        with pytest.raises(FileNotFoundError):
            list(storage.list_names(root))


def test_pipes_are_neither_listed_nor_waited_for(tmp_path: Path) -> None:
    """Opening one would block until somebody writes."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(storage.list_files(str(tmp_path))) == []
    with pytest.raises(FileNotFoundError, match="not a regular file"):
        storage.read_bytes(str(tmp_path / "pipe.jpg"))


def test_a_folder_that_may_not_be_read_is_not_passed_over(public_folder: Path) -> None:
    """Its images would be lost without a word."""
    (public_folder / "open").mkdir()
    (public_folder / "closed").mkdir(mode=0)
    with as_nobody(), pytest.raises(PermissionError):
        list(storage.list_files(str(public_folder)))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_fails_while_it_is_listed_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A stale handle or a dead mount is no file that is gone: a whole folder would be lost without a word."""
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(storage, "_scan_folder", lambda folder: [FailingEntry(entry, number) for entry in os.scandir(folder)])
    with pytest.raises(StorageError, match="mount"):
        list(storage.list_files(str(tmp_path)))


class FailingEntry:
    """What a scan finds and no stat answers for."""

    def __init__(self, entry: Any, number: int) -> None:
        self.name, self.path, self._number = entry.name, entry.path, number

    def is_symlink(self) -> bool:
        return False

    def stat(self) -> os.stat_result:
        raise OSError(self._number, os.strerror(self._number), self.path)


def test_a_path_too_long_to_be_opened_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file by itself, so that it is missed by name; a folder has files that nobody could name."""
    folder = tmp_path
    while len(str(folder)) < 3850:
        folder = folder / ("d" * 200)
    folder = folder / ("d" * (4000 - len(str(folder))))
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)  # From here the file has a short name.
    Path("x" * 200 + ".jpg").write_bytes(b"x")
    (file,) = storage.list_files(str(tmp_path))
    assert (file.path[-4:], file.size_bytes) == (".jpg", None)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(file.uri)
    Path("y" * 200).mkdir()
    with pytest.raises(StorageError, match="too long"):
        list(storage.list_files(str(tmp_path)))


def test_what_may_be_entered_but_not_listed_is_there(public_folder: Path) -> None:
    """Its files open by their names; a folder that may not even be entered holds nothing for this process."""
    folder = public_folder / "closed"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a")
    for mode, expected in ((0o711, True), (0o700, False)):
        folder.chmod(mode)
        with as_nobody():
            assert storage.has_content(str(folder)) is expected


def test_a_changed_file_has_another_etag(tmp_path: Path) -> None:
    """Also where its size stays."""
    place = str(tmp_path / "a.jpg")
    storage.write_bytes(place, b"old")
    before = storage.stat_file(place)
    assert before == next(storage.list_files(str(tmp_path)))
    storage.write_bytes(place, b"new")
    assert storage.stat_file(place).etag != before.etag


# --- reading and writing


def test_a_part_of_a_file_can_be_read(tmp_path: Path, memory: str) -> None:
    """From an offset, for a length; less where the file ends before."""
    for place in (str(tmp_path / "a"), f"{memory}/a"):
        storage.write_bytes(place, b"0123456789")
        assert storage.read_bytes(place) == b"0123456789"
        assert storage.read_bytes(place, offset=4) == b"456789"
        assert storage.read_bytes(place, length=3) == b"012"
        assert storage.read_bytes(place, offset=8, length=9) == b"89"


@pytest.mark.parametrize("name", ["", "/sub", "/no/such/folder"])
def test_what_is_not_there_is_missing(tmp_path: Path, memory: str, name: str) -> None:
    """A name that is a folder's, runs through a file, is too long or can't be, is no file either."""
    (tmp_path / "file.jpg").write_bytes(b"x")
    for place in (f"{tmp_path}{name}", f"{tmp_path}/file.jpg/x", f"{tmp_path}/{'x' * 300}", f"{tmp_path}/\0"):
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(place)
        with pytest.raises(FileNotFoundError):
            storage.stat_file(place)
    assert not storage.exists(f"{tmp_path}/file.jpg/x")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{memory}/nothing")


def test_listing_a_folder_that_is_not_there_is_an_error(tmp_path: Path, memory: str) -> None:
    """An empty list would be an answer; and a file is no folder."""
    (tmp_path / "file").write_bytes(b"")
    for root in (f"{tmp_path}/nothing", f"{tmp_path}/file", f"{memory}/nothing"):
        with pytest.raises(FileNotFoundError):
            list(storage.list_files(root))


def test_reading_and_writing_without_permission_says_so(public_folder: Path) -> None:
    """Of what is read PermissionError, as it is, for it may be an image's; what can't be written or deleted is the store's."""
    file = public_folder / "a.jpg"
    file.write_bytes(b"x")
    file.chmod(0)
    with as_nobody(), pytest.raises(PermissionError):
        storage.read_bytes(str(file))
    public_folder.chmod(0o555)
    with as_nobody(), pytest.raises(StorageRefusedError, match="new can't be written: Permission denied"):
        storage.write_bytes(str(public_folder / "new"), b"x")
    with as_nobody(), pytest.raises(StorageRefusedError, match=r"a\.jpg can't be written: Permission denied"):
        storage.delete(str(file))


def test_writing_replaces_the_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Folders are made; the file may be read by others as any new file; no temporary file stays."""
    place = storage.path_to_uri(tmp_path / "a" / "b c%.json")
    for data in (b"first", b"", b"second" * 1000):
        storage.write_bytes(place, data)
        assert storage.read_bytes(place) == data
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b c%.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a" / "b c%.json").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("blocked", ["file/x", "folder"])
def test_a_place_that_can_t_be_written_is_a_storage_error(tmp_path: Path, blocked: str) -> None:
    """Below a file, or where a folder stands: nothing changes, nothing is left."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        storage.write_bytes(str(tmp_path / blocked), b"data")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_names_that_a_disk_does_not_take(tmp_path: Path) -> None:
    """EILSEQ is what Macs say of bytes that are no text, EINVAL what exFAT says of a colon: neither passes by waiting."""
    with pytest.raises(FileNotFoundError), translate_local_errors(tmp_path):
        raise OSError(errno.EILSEQ, "Illegal byte sequence")
    for code in (errno.EILSEQ, errno.EINVAL):
        with pytest.raises(StorageRefusedError, match="can't be written"), translate_local_errors(tmp_path, writing=True):
            raise OSError(code, os.strerror(code))


def test_no_temporary_folder_is_a_storage_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose files are read-only; it says what helps."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    with pytest.raises(StorageError, match="no temporary folder can be made: No such file or directory; TMPDIR"):
        make_temporary_folder("x-")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("x-") as folder:
        assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    """A process that may write no more than a page stands for the disk."""
    place = tmp_path / "part.parquet"
    place.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from labeler import storage\n"
        "from labeler.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: storage.write_bytes(sys.argv[1], bytes(100_000))\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, timeout=60)
    assert "can't be written" in done.stdout, done.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("part.parquet", b"old")]


def test_a_killed_writer_leaves_the_old_file_and_only_a_hidden_one(tmp_path: Path) -> None:
    """SIGKILL between writing and renaming."""
    place = tmp_path / "part.parquet"
    place.write_bytes(b"old")
    code = (
        "import os, signal, sys\n"
        "from labeler import storage\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_bytes(sys.argv[1], b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, timeout=60)
    assert done.returncode == -9
    assert place.read_bytes() == b"old"
    left = [p.name for p in tmp_path.iterdir() if p != place]
    assert [name[0] for name in left] == ["."]
    storage.write_bytes(str(place), b"new")
    assert place.read_bytes() == b"new"


def test_deleting_what_is_not_there_is_fine(tmp_path: Path, memory: str) -> None:
    """And a folder is never deleted."""
    for place in (str(tmp_path / "a"), f"{memory}/a"):
        storage.write_bytes(place, b"x")
        assert storage.exists(place)
        for _ in range(2):
            storage.delete(place)
        assert not storage.exists(place)
    with pytest.raises((StorageError, PermissionError)):
        storage.delete(str(tmp_path))


def test_folders_are_told_from_files(tmp_path: Path, memory: str) -> None:
    """Locally and in a store."""
    for root in (str(tmp_path), storage.path_to_uri(tmp_path), memory):
        storage.write_bytes(storage.join(root, "sub", "a"), b"x")
        assert storage.is_folder(storage.join(root, "sub"))
        assert not storage.is_folder(storage.join(root, "sub", "a"))
        assert not storage.is_folder(storage.join(root, "none"))
        assert storage.exists(storage.join(root, "sub", "a"))


def test_a_store_lists_and_reads_as_a_disk_does(memory: str) -> None:
    """The same door for object stores."""
    names = ["a.jpg", "sub/50% b.jpg", "sub/deeper/.hidden"]
    for name in names:
        storage.write_bytes(storage.join(memory, name), name.encode())
    files = {f.path: f for f in storage.list_files(memory)}
    assert sorted(files) == sorted(names)
    for name, file in files.items():
        assert (storage.read_bytes(file.uri), file.size_bytes) == (name.encode(), len(name))
        assert storage.stat_file(file.uri).size_bytes == len(name)


def test_a_folder_is_copied_between_stores(folder: Path, memory: str, tmp_path: Path) -> None:
    """There and back, names and bytes."""
    source = str(folder / "x.jpg")
    stores.copy_folder(source, target=f"{memory}/copy")
    stores.copy_folder(f"{memory}/copy", target=storage.path_to_uri(tmp_path / "back"))
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "back").iterdir()] == [("inner%20.jpg", b"inner%20.jpg")]


def test_an_unknown_kind_of_store_is_the_caller_s_mistake() -> None:
    """Nothing to retry."""
    with pytest.raises(OptionsError, match="nosuch"):
        storage.read_bytes("nosuch://bucket/a.jpg")


# --- writing piece by piece


def test_a_file_written_in_pieces_appears_whole(tmp_path: Path, memory: str) -> None:
    """Until the block ends the old content is there, and no other name but a hidden one; folders are made."""
    place = str(tmp_path / "new" / "a.bin")
    storage.write_bytes(place, b"old")
    with storage.open_whole(place) as file:
        assert [file.write(piece) for piece in (b"one", b"", b"two" * 100_000)] == [3, 0, 300_000]
        assert storage.read_bytes(place) == b"old"
        assert [path.name for path in (tmp_path / "new").iterdir() if not path.name.startswith(".")] == ["a.bin"]
    assert storage.read_bytes(place) == b"one" + b"two" * 100_000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]
    for empty in (str(tmp_path / "empty"), f"{memory}/empty"):
        with storage.open_whole(empty):
            pass
        assert storage.read_bytes(empty) == b""


@pytest.mark.parametrize("fault", [ValueError("of the block"), OSError(28, "elsewhere"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_nothing_and_its_own_error(tmp_path: Path, fault: BaseException) -> None:
    """The old content stays, the file that was begun goes, and the error is not taken for the file's."""
    place = str(tmp_path / "a.bin")
    storage.write_bytes(place, b"old")

    def write() -> None:
        with storage.open_whole(place) as file:
            file.write(b"new")
            raise fault

    with pytest.raises(type(fault)) as raised:
        write()
    assert raised.value is fault
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_pieces_that_do_not_fit_on_the_disk_are_refused(tmp_path: Path) -> None:
    """At the piece that does not fit, or at the end, where the file is flushed; the old file stays, nothing else does."""
    place = tmp_path / "a.bin"
    place.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from labeler import storage\n"
        "from labeler.errors import StorageRefusedError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "for pieces in ([bytes(100_000)] * 3, [bytes(5000)]):\n"
        "    try:\n"
        "        with storage.open_whole(sys.argv[1]) as file:\n"
        "            for piece in pieces: file.write(piece)\n"
        "    except StorageRefusedError as error: print('full:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("full:") == 2, done.stderr
    assert "the disk is full" in done.stdout
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"old")]


def test_a_place_for_pieces_that_can_t_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """Before the first piece, where a file stands in the way of a folder; at the end, where a folder has the name."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for name in ("file/x", "folder"):
        with pytest.raises(StorageError), storage.open_whole(str(tmp_path / name)) as file:
            file.write(b"data")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
