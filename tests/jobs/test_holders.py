"""Lists that name images, and files that hold them: what is found, how it is called, how its bytes are got again."""

import codecs
import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket_jobs import label
from fakes import freeze, label_arguments, make_tar, write_picture
from nobody import as_nobody, make_public_folder

import jobs.ordering
from jobs.extension import find_new_images
from jobs.options import Selection
from jobs.reading import read_image
from jobs.refs import ImageRef
from jobs.sources import list_images
from jobs.verify import find_faults
from labeler import storage
from labeler.errors import ImageError, OptionsError


def find(place: Path | str, **selection: Any) -> list[ImageRef]:
    listing = list_images(storage.path_to_uri(str(place)), selection=Selection(**selection))
    refs = list(listing.read_refs())
    assert len(refs) == listing.num_images
    return refs


def names(refs: list[ImageRef]) -> list[str]:
    return [ref.file_name for ref in refs]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three images in two folders, each holding its own name."""
    for name in ("a.jpg", "sub/50% off.jpg", "sub/a.jpg"):
        path = tmp_path / "few" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "few"


def write_txt(path: Path, entries: list[str]) -> None:
    path.write_text("\n".join(entries) + "\n")


def write_csv(path: Path, entries: list[str]) -> None:
    pd.DataFrame({"id": range(len(entries)), "uri": entries}).to_csv(path)


def write_jsonl(path: Path, entries: list[str]) -> None:
    path.write_text("".join(json.dumps({"uri": entry, "id": number}) + "\n" for number, entry in enumerate(entries)))


def write_parquet(path: Path, entries: list[str]) -> None:
    pd.DataFrame({"uri": entries, "id": range(len(entries))}).to_parquet(path)


@pytest.mark.parametrize("write", [write_txt, write_csv, write_jsonl, write_parquet])
def test_a_list_names_images_as_it_likes(few: Path, write: Callable[..., None]) -> None:
    """Relative to its folder or --images-root, absolute, or a URI; the name is the entry; twice is two rows."""
    entries = ["sub/a.jpg", "sub/50% off.jpg", "a.jpg", "a.jpg", str(few / "a.jpg"), storage.path_to_uri(few / "sub" / "a.jpg")]
    path = few / f"list.{write.__name__.removeprefix('write_')}"
    write(path, entries)
    refs = find(path)
    assert names(refs) == sorted(storage.encode_name(entry) for entry in entries)
    by_name = {"a.jpg": b"a.jpg", "sub/50%25 off.jpg": b"sub/50% off.jpg", "sub/a.jpg": b"sub/a.jpg"}
    assert [read_image(ref) for ref in refs if ref.file_name in by_name] == [
        b"a.jpg",
        b"a.jpg",
        b"sub/50% off.jpg",
        b"sub/a.jpg",
    ]
    if write is not write_txt:
        assert [ref.source_id for ref in refs if ref.file_name == "a.jpg"] == ["2", "3"]
    moved = path.rename(few.parent / path.name)
    with pytest.raises(OptionsError, match="--images-root"):
        _find_relative(moved, write, ["sub/a.jpg"])
    assert names(find(moved, images_root=storage.path_to_uri(few))) == ["sub/a.jpg"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nope://x/b.png", "list.txt, entry 2: .*nope"),
        ("tar://b.png::nope://x/a.tar", "list.txt, entry 2: .*nope"),
        ("s3://me:hush-hush@x/b.png", "list.txt, entry 2: a URL with a password"),
    ],
)
def test_a_url_that_no_worker_could_open_is_refused_before_the_run(few: Path, url: str, words: str) -> None:
    """By its line, before it is frozen into a plan: neither does it stop the job later, nor is a secret written down."""
    write_txt(few / "list.txt", ["a.jpg", url])
    with pytest.raises(OptionsError, match=words) as refusal:
        find(few / "list.txt")
    assert "hush" not in str(refusal.value)


def test_a_list_of_nothing_that_is_there_is_refused(few: Path) -> None:
    """Also where it says from the root on where its images are: surely a disk is not mounted."""
    write_txt(few / "list.txt", [str(few / "disk" / f"{number}.jpg") for number in range(12)])
    with pytest.raises(OptionsError, match="is it mounted"):
        find(few / "list.txt")


def _find_relative(path: Path, write: Callable[..., None], entries: list[str]) -> list[ImageRef]:
    write(path, entries)
    return find(path)


def test_a_list_s_own_columns_are_kept(few: Path) -> None:
    """As texts, under their names, null as null; one that is not there is refused, and one that would hide ours."""
    rows = [{"uri": "a.jpg", "label": "cat", "box": [1, 2]}, {"uri": "sub/a.jpg", "label": None, "box": []}]
    (few / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refs = find(few / "list.jsonl", keep_columns=("label", "box"))
    assert [json.loads(ref.kept or "") for ref in refs] == [{"label": "cat", "box": "[1, 2]"}, {"label": None, "box": "[]"}]
    with pytest.raises(OptionsError, match="has no colour; it has uri, label, box"):
        find(few / "list.jsonl", keep_columns=("colour",))
    with pytest.raises(OptionsError, match="a column width of its own"):
        find(few / "list.jsonl", keep_columns=("width",))


def test_halves_of_characters_are_escaped_or_refused(few: Path) -> None:
    """JSON can escape them: a column that is kept has them so too, no name or id may. A path of odd bytes is another matter."""
    (few / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"caf")
    rows = [{"uri": "a.jpg", "label": "nice \ud83d"}, {"uri": os.fsdecode(b"caf\xe9.jpg"), "label": ["\ud83d"]}]
    (few / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refs = find(few / "list.jsonl", keep_columns=("label",))
    assert [json.loads(ref.kept or "")["label"] for ref in refs] == ["nice \\ud83d", '["\\ud83d"]']
    assert [read_image(ref) for ref in refs] == [b"a.jpg", b"caf"]
    for row in ({"uri": "\ud83d.jpg"}, {"uri": "a.jpg", "id": "\ud83d.jpg"}, {"uri": "s3://b/\udce9.jpg"}):
        (few / "list.jsonl").write_text(json.dumps(row))
        with pytest.raises(OptionsError, match=r"list\.jsonl has an entry .*ud.*\.jpg"):
            find(few / "list.jsonl")


def test_columns_that_nothing_has_are_refused(few: Path) -> None:
    """Photos and archives have none, a .txt neither; beside Parquet files an archive's images have nulls."""
    with pytest.raises(OptionsError, match=r"--keep-columns: the images of .*few have no columns"):
        find(few, keep_columns=("label",))
    (few.parent / "tars").mkdir()
    make_tar(few.parent / "tars" / "a.tar", ("x.jpg", b"x"))
    with pytest.raises(OptionsError, match="have no columns"):
        find(few.parent / "tars", keep_columns=("label",))
    pq.write_table(pa.table({"image": [b"y"], "label": ["cat"]}), few.parent / "tars" / "b.parquet")
    refs = find(few.parent / "tars", keep_columns=("label",))
    assert [ref.kept for ref in refs] == [None, '{"label": "cat"}']


def test_a_damaged_file_costs_the_others_no_column(tmp_path: Path, model_folder: Path) -> None:
    """Its row comes first in the shard and has nulls in the columns that are kept, however often they were named."""
    data = write_picture(tmp_path / "x.png").read_bytes()
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [data, data], "label": ["cat", "dog"]}), tmp_path / "in" / "b.parquet")
    (tmp_path / "in" / "a.parquet").write_bytes(b"no footer")
    keep = ("label", "label")
    record = freeze(tmp_path / "in", tmp_path / "out", model_folder, images_per_shard=3, keep_columns=keep)
    assert label(str(tmp_path / "out"), range(1)) == ["corrupt", None, None]
    images = pq.read_table(tmp_path / "out" / "images").to_pylist()
    assert [row["label"] for row in images] == [None, "cat", "dog"]
    assert [str(fault) for fault in find_faults(str(tmp_path / "out"), record)] == []


def test_coco_images_keep_their_ids(few: Path) -> None:
    """Found under --images-root, whatever stands around the list of images and wherever it stands."""
    images = [{"id": 7, "file_name": "sub/a.jpg", "license": 3}, {"id": "x", "file_name": "a.jpg", "license": 1}]
    annotations = [{"id": number, "segmentation": [[1.5] * 1000]} for number in range(300)]
    content = {"info": {"images": [1]}, "year": 2017, "annotations": annotations, "images": images, "categories": []}
    path = few.parent / "instances.json"
    path.write_text(json.dumps(content, indent=1))
    refs = find(path, images_root=storage.path_to_uri(few), keep_columns=("license",))
    assert [(ref.file_name, ref.source_id, ref.kept) for ref in refs] == [
        ("a.jpg", "x", '{"license": "1"}'),
        ("sub/a.jpg", "7", '{"license": "3"}'),
    ]
    assert [read_image(ref) for ref in refs] == [b"a.jpg", b"sub/a.jpg"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"images": [', '{"images": [{"id": 1}]}', "not json"])
def test_what_is_no_list_of_images_is_refused(tmp_path: Path, text: str) -> None:
    """With a sentence."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(OptionsError, match=r"x\.json"):
        find(tmp_path / "x.json")


def test_members_of_an_archive_are_read_by_their_place(tmp_path: Path) -> None:
    """Of equal names the last one counts, others are skipped; names of any bytes; only their own bytes are read."""
    odd = "caf\udce9 50%::x.png"
    members = [
        ("0.jpg", b"zero"),
        ("0.json", b"{}"),
        ("./b/1.PNG", b"one"),
        ("./0.jpg", b"middle"),
        ("0.jpg", b"other"),
        (odd, b"odd"),
        ("x" * 150 + ".jpg", b"l"),
    ]
    path = make_tar(tmp_path / "a.tar", *members)
    refs = find(path)
    assert sorted(names(refs)) == sorted(
        ["a.tar/0.jpg", "a.tar/b/1.PNG", "a.tar/caf%E9 50%25::x.png", f"a.tar/{'x' * 150}.jpg"]
    )
    listing = list_images(storage.path_to_uri(path), selection=Selection())
    assert dict(listing.skipped) == {".json": 1, "replaced by a later one of its name": 2}
    assert {ref.file_name: read_image(ref) for ref in refs}["a.tar/0.jpg"] == b"other"
    assert {read_image(ref) for ref in refs} == {b"other", b"one", b"odd", b"l"}
    assert {ref.uri for ref in refs} >= {f"tar://0.jpg::{storage.path_to_uri(path)}"}
    for ref in refs:  # As somebody's list would name it.
        assert read_image(ImageRef(uri=ref.uri, file_name="x")) == read_image(ref)
    make_tar(path, ("0.jpg", b"changed"))
    with pytest.raises(ImageError, match="changed"):
        read_image(refs[0])


def test_archives_one_behind_the_other_are_read_to_the_last(tmp_path: Path) -> None:
    """With however many zeros between; damage in the second is a row; what is no archive behind the end mark is nothing."""
    parts = [make_tar(tmp_path / "part.tar", (f"{n}.jpg", bytes([n]) * 600)).read_bytes() for n in range(3)]
    path = tmp_path / "all.tar"
    for between in (b"", bytes(512), bytes(70_000 - 70_000 % 512)):
        path.write_bytes(between.join(parts))
        assert {ref.file_name: read_image(ref) for ref in find(path)} == {
            f"all.tar/{n}.jpg": bytes([n]) * 600 for n in range(3)
        }
    path.write_bytes(parts[0] + parts[1][:700])
    refs = find(path)
    assert names(refs) == ["all.tar", "all.tar/0.jpg", "all.tar/1.jpg"]
    assert explain(refs[0]) == "truncated"
    path.write_bytes(parts[0] + b"signature of somebody's tool" * 50)
    assert names(find(path)) == ["all.tar/0.jpg"]


def test_members_below_a_dot_are_no_dotfiles(tmp_path: Path) -> None:
    """As ``tar cf x.tar photos/.`` and ``tar -P`` call them."""
    path = make_tar(
        tmp_path / "a.tar", *((name, b"x") for name in ("p/./a.jpg", "../b.jpg", "./c.jpg", "./.d.jpg", ".e/f.jpg"))
    )
    assert sorted(names(find(path))) == ["a.tar/../b.jpg", "a.tar/c.jpg", "a.tar/p/./a.jpg"]


@pytest.mark.parametrize("size", [-512, -1, 1 << 40])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_sizes_that_nobody_means_are_damage(tmp_path: Path, size: int, kind: bytes) -> None:
    """Below zero, as one that sends a reader back to where it was, or a header larger than any memory."""
    path = make_tar(tmp_path / "a.tar", ("0.jpg", b"zero"))
    info = tarfile.TarInfo("caf\udce9.jpg")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    header[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(path.read_bytes()[:1024] + bytes(header) + bytes(1024))
    refs = find(path)
    assert names(refs)[:2] == ["a.tar", "a.tar/0.jpg"]
    with pytest.raises(ImageError, match=r"truncated|corrupt") as fault:
        read_image(refs[0])
    fault.value.reason.encode()


def test_a_folder_of_archives_is_their_images(tmp_path: Path) -> None:
    """Also by a glob; but beside images archives are skipped. One that is none, alone, is refused, as a compressed one is."""
    for name in ("01", "00"):
        make_tar(tmp_path / f"{name}.tar", ("x.jpg", name.encode()))
    assert names(find(tmp_path)) == ["00.tar/x.jpg", "01.tar/x.jpg"]
    assert names(find(f"{tmp_path}/*1.tar")) == ["01.tar/x.jpg"]
    (tmp_path / "z.jpg").write_bytes(b"z")
    listing = list_images(storage.path_to_uri(tmp_path), selection=Selection())
    assert (listing.num_images, listing.skipped) == (1, {".tar": 2})
    (tmp_path / "c.tar").write_bytes(b"<html>not found</html>")
    (tmp_path / "d.tar.gz").write_bytes(b"")
    for name in ("c.tar", "d.tar.gz"):
        with pytest.raises(OptionsError, match=name):
            print(names(find(tmp_path / name)))


def explain(ref: ImageRef) -> str:
    with pytest.raises(ImageError) as fault:
        read_image(ref)
    return fault.value.kind


def test_a_damaged_archive_is_a_row_beside_what_can_be_read(tmp_path: Path) -> None:
    """Cut off in an image, in a header, in padding; garbage between members; not there, forbidden or no archive at all.

    What stands before the damage is labeled, other archives are not touched by it, and the row says where the damage is.
    """
    whole = make_tar(tmp_path / "ok.tar", *((f"{number}.jpg", bytes([number]) * 700) for number in range(4))).read_bytes()
    member = 512 + 1024
    damaged = {
        "data.tar": (whole[: 2 * member + 600], 3, "truncated"),  # The third image is a row too, and truncated.
        "header.tar": (whole[: 2 * member + 100], 2, "truncated"),
        "padding.tar": (whole[: 2 * member - 20], 2, "truncated"),
        "garbage.tar": (whole[:member] + b"\xff" * 512 + whole[member:], 1, "corrupt"),
        "html.tar": (b"<html>" * 200, 0, "corrupt"),
        "short.tar": (b"<html>", 0, "truncated"),
        "empty.tar": (b"", 0, "truncated"),
    }
    for name, (data, _count, _kind) in damaged.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "gone.tar").symlink_to("nowhere")
    listing = list_images(storage.path_to_uri(tmp_path), selection=Selection(include=("*.jpg",)))
    refs = list(listing.read_refs())
    assert listing.num_damaged == len(damaged) + 1
    for name, (_data, count, kind) in damaged.items():
        images = [ref for ref in refs if ref.file_name.startswith(f"{name}/")]
        assert len(images) == count
        [holder] = [ref for ref in refs if ref.file_name == name]
        assert explain(holder) == kind
        assert storage.exists(holder.uri)
        read = [read_image(ref) for ref in images if (name, ref.file_name[-5:]) != ("data.tar", "2.jpg")]
        assert read == [bytes([number]) * 700 for number in range(len(read))]
    assert explain(next(ref for ref in refs if ref.file_name == "data.tar/2.jpg")) == "truncated"
    with pytest.raises(FileNotFoundError):
        read_image(next(ref for ref in refs if ref.file_name == "gone.tar"))
    assert [ref.file_name for ref in refs if ref.file_name.startswith("ok.tar")] == [f"ok.tar/{n}.jpg" for n in range(4)]
    (tmp_path / "data.tar").write_bytes(whole)
    assert explain(next(ref for ref in refs if ref.file_name == "data.tar")) == "changed"
    with pytest.raises(OptionsError, match=r"html\.tar"):
        find(tmp_path / "html.tar")
    assert names(find(tmp_path / "header.tar")) == ["header.tar", "header.tar/0.jpg", "header.tar/1.jpg"]


def test_a_run_with_a_damaged_archive_is_whole(tmp_path: Path, model_folder: Path) -> None:
    """Every image that can be read has its masks, the archive its error row, run.json the count; extended once it is mended."""
    pictures = [write_picture(tmp_path / f"{number}.png", seed=number).read_bytes() for number in range(4)]
    (tmp_path / "in").mkdir()
    whole = make_tar(tmp_path / "in" / "a.tar", *((f"{number}.png", data) for number, data in enumerate(pictures))).read_bytes()
    make_tar(tmp_path / "in" / "b.tar", ("x.png", pictures[0]))
    (tmp_path / "in" / "a.tar").write_bytes(whole[:1586])
    record = freeze(tmp_path / "in", tmp_path / "out", model_folder)
    kinds = label(str(tmp_path / "out"), range(1))
    rows = pd.read_parquet(tmp_path / "out" / "images")
    assert dict(zip(rows.file_name, kinds, strict=True)) == {
        "a.tar": "truncated",
        "a.tar/0.png": None,
        "a.tar/1.png": "truncated",
        "b.tar/x.png": None,
    }
    assert record.num_damaged == 1
    assert list(find_faults(str(tmp_path / "out"), record)) == []
    (tmp_path / "in" / "a.tar").write_bytes(whole)
    listing = list_images(record.input, selection=record.selection)
    new = find_new_images(listing, output=str(tmp_path / "out"), record=record)
    assert [ref.file_name for ref in new.read_refs()] == ["a.tar/2.png", "a.tar/3.png"]


def test_archives_of_every_writer_are_whole(tmp_path: Path) -> None:
    """Long names by GNU's and by POSIX's means, folders, no end mark; links are counted as skipped."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            for name in ("a/", "0.jpg", "é" * 40 + ".jpg", "link.jpg"):
                info = tarfile.TarInfo(name)
                info.type = {"a/": tarfile.DIRTYPE, "link.jpg": tarfile.LNKTYPE}.get(name, tarfile.REGTYPE)
                info.linkname = "0.jpg" if name == "link.jpg" else ""
                info.size = 3 if info.isreg() else 0
                tar.addfile(info, io.BytesIO(b"abc"))
        without_end = path.read_bytes().rstrip(b"\0")
        for data in (path.read_bytes(), without_end.ljust(-(-len(without_end) // 512) * 512, b"\0")):
            path.write_bytes(data)
            listing = list_images(storage.path_to_uri(path), selection=Selection())
            assert (listing.num_images, listing.num_damaged, dict(listing.skipped)) == (2, 0, {"link": 1})


def test_a_damaged_parquet_file_is_a_row_beside_the_others(tmp_path: Path) -> None:
    """Without its footer nothing of it is known; with damaged pages its rows are, and those are corrupt. Never internal."""
    data = [bytes([number]) * 1000 for number in range(20)]
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        pq.write_table(pa.table({"image": data, "n": range(20)}), tmp_path / name, row_group_size=10, compression="snappy")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-100])
    (tmp_path / "c.parquet").write_bytes(whole[:4] + b"\xff" * 300 + whole[304:])
    refs = find(tmp_path)
    assert names(refs).count("b.parquet") == 1
    assert len(refs) == 41
    assert explain(next(ref for ref in refs if ref.file_name == "b.parquet")) == "corrupt"
    by_name = {ref.file_name: ref for ref in refs}
    assert explain(by_name["c.parquet/0"]) == "corrupt"
    assert read_image(by_name["c.parquet/15"]) == data[15]
    assert read_image(by_name["a.parquet/3"]) == data[3]
    with pytest.raises(OptionsError, match=r"b\.parquet"):
        find(tmp_path / "b.parquet")


def test_any_damaged_footer_is_a_row(tmp_path: Path) -> None:
    """Whatever Arrow says of it; alone it is refused. A table without images is counted, not labeled."""
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": [b"x" * 50] * 9, "label": ["y"] * 9}), path)
    pq.write_table(pa.table({"label": ["y"]}), tmp_path / "in" / "meta.parquet")
    whole = path.read_bytes()
    listing = list_images(storage.path_to_uri(tmp_path / "in"), selection=Selection())
    assert (listing.num_images, dict(listing.skipped)) == (9, {".parquet without images": 1})
    begin = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(begin, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(OptionsError):  # What tells that a column holds images may be what is damaged.
            refs = find(tmp_path / "in")
            assert len(refs) == 9 or any(ref.is_holder for ref in refs)


def test_a_list_of_bytes_that_are_no_text_is_refused(few: Path) -> None:
    """As a Parquet file of another tool may hold them."""
    names_of_bytes = pa.array([b"a.jpg", b"caf\xe9.jpg"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"uri": pa.Array.from_buffers(pa.string(), 2, names_of_bytes.buffers())}), few / "list.parquet")
    with pytest.raises(OptionsError, match=r"list\.parquet"):
        find(few / "list.parquet")


def test_a_list_that_begins_with_what_is_forbidden() -> None:
    """It is a row that fails later; the list is read."""
    with make_public_folder() as folder:
        (folder / "a.jpg").write_bytes(b"a")
        (folder / "closed").mkdir(mode=0)
        write_txt(folder / "list.txt", ["closed/a.jpg", "a.jpg"])
        codecs.lookup("utf-8-sig")  # Python's own files may be closed to nobody, too.
        with as_nobody():
            assert names(find(folder / "list.txt")) == ["a.jpg", "closed/a.jpg"]


def test_a_file_larger_than_any_image_is_not_read(few: Path) -> None:
    """It would take a worker's memory and, that being gone, the worker."""
    with (few / "huge.jpg").open("wb") as file:
        file.truncate(3 << 30)
    ref = next(ref for ref in find(few) if ref.file_name == "huge.jpg")
    assert explain(ref) == "too_large"


def test_braces_name_shards(tmp_path: Path) -> None:
    """As WebDataset writes them: numbers with their zeros, words, also with stars; one that is not there is missed by name."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(8, 12):
            make_tar(tmp_path / split / f"s-{number:03d}.tar", ("x.jpg", f"{split} {number}".encode()))
    found = find(f"{tmp_path}/train/s-{{008..010}}.tar")
    assert names(found) == ["s-008.tar/x.jpg", "s-009.tar/x.jpg", "s-010.tar/x.jpg"]
    assert read_image(found[1]) == b"train 9"
    assert names(find(f"{tmp_path}/{{train,val}}/s-{{011..010}}.tar")) == [
        f"{split}/s-{number:03d}.tar/x.jpg" for split in ("train", "val") for number in (10, 11)
    ]
    assert names(find(f"{tmp_path}/{{val,none}}/*9.tar")) == ["val/s-009.tar/x.jpg"]
    assert len(find(f"{tmp_path}/{{train,val}}")) == 8
    for _ in range(2):  # Not there, and then empty: as a disk that is not mounted.
        with pytest.raises(OptionsError, match=r"/test .*mounted"):
            find(f"{tmp_path}/{{train,test}}")
        (tmp_path / "test").mkdir(exist_ok=True)
    assert names(find(f"{tmp_path}/val/s-{{011..013}}.tar")) == ["s-011.tar/x.jpg", "s-012.tar", "s-013.tar"]
    with pytest.raises(OptionsError, match="none of what its braces name"):
        find(f"{tmp_path}/val/t-{{0..3}}.tar")
    (tmp_path / "{1..2}").mkdir()
    (tmp_path / "{1..2}" / "y.jpg").write_bytes(b"y")
    assert names(find(f"{tmp_path}/{{1..2}}")) == ["y.jpg"]
    with pytest.raises(OptionsError, match="bucket"):
        find("s3://{a,b}/x.tar")


def test_patterns_in_a_store() -> None:
    """What a URL must escape, a pattern means: "?" is one character, "#" and "%" are themselves; a name is a name first."""
    root = "memory://test-patterns"
    for key in ("day#1/a.jpg", "day#1/b.jpg", "50% off/c.jpg", "photos [2024]/d.jpg", "x/e::f.jpg"):
        storage.write_bytes(storage.join(root, key), key.encode())
    for pattern, keys in {
        "day?1/?.jpg": ["day#1/a.jpg", "day#1/b.jpg"],
        "{day#1,50%25 off}": ["50% off/c.jpg", "day#1/a.jpg", "day#1/b.jpg"],
        "day#1/[b-c].jpg": ["day#1/b.jpg"],
        "photos [2024]": ["photos [2024]/d.jpg"],
        "x/*": ["x/e::f.jpg"],
    }.items():
        assert [read_image(ref).decode() for ref in find(f"{root}/{pattern}")] == keys


@pytest.mark.parametrize("is_struct", [True, False])
def test_rows_that_hold_images(tmp_path: Path, is_struct: bool) -> None:
    """As Hugging Face writes them: the row's number names the image, wherever its row group is; other columns can be kept."""
    data = [f"image {number}".encode() for number in range(12)]
    values = [{"bytes": value, "path": f"{value!r}.jpg"} for value in data] if is_struct else data
    table = pa.table({"image": values, "label": list(range(12))})
    pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=5)
    refs = find(tmp_path, keep_columns=("label",))
    assert names(refs) == sorted(f"train-0.parquet/{number}" for number in range(12))
    for ref in refs:
        number = int(ref.file_name.rpartition("/")[2])
        assert read_image(ref) == data[number]
        assert ref.uri == f"{storage.path_to_uri(tmp_path / 'train-0.parquet')}#row={number}"
        assert json.loads(ref.kept or "") == {"label": str(number)}
    pq.write_table(pa.table({"a": data, "b": data}), tmp_path / "train-0.parquet")
    with pytest.raises(OptionsError, match="--image-column"):
        find(tmp_path)
    assert read_image(find(tmp_path, image_column="b")[3], image_column="b") == b"image 11"


def test_a_glob_is_a_path_with_stars(few: Path) -> None:
    """A star stops at a slash, two do not; the name begins after the fixed folders; a real folder with a star in it is one."""
    assert names(find(f"{few}/*.jpg")) == ["a.jpg"]
    assert names(find(f"{few}/**/*.jpg")) == ["a.jpg", "sub/50%25 off.jpg", "sub/a.jpg"]
    assert names(find(f"{few}/sub/[a-c].jpg")) == ["a.jpg"]
    assert names(find(f"{few.parent}/f?w/sub/*")) == ["few/sub/50%25 off.jpg", "few/sub/a.jpg"]
    (few / "s*b").mkdir()
    (few / "s*b" / "x.jpg").write_bytes(b"x")
    assert names(find(f"{few}/s*b")) == ["x.jpg"]


def test_any_number_of_images_is_sorted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on disk, merged: the same as sorting at once, equal names in the order in which they were found."""
    monkeypatch.setattr(jobs.ordering, "_IMAGES_PER_RUN", 50)
    monkeypatch.setattr(jobs.ordering, "_IMAGES_PER_BLOCK", 7)
    refs = [ImageRef(uri=str(number), file_name=f"é{number * 37 % 101}" if number % 3 else "same") for number in range(333)]
    seen: list[int] = []
    source, count = jobs.ordering.sort_refs(iter(refs), on_progress=seen.append)
    expected = sorted(refs, key=lambda ref: ref.file_name.encode())
    assert count == 333
    assert seen == [50, 100, 150, 200, 250, 300, 333]
    for _ in range(2):
        assert [uri for batch in source for uri in batch["uri"].to_pylist()] == [ref.uri for ref in expected]
    short, count = jobs.ordering.sort_refs(iter(refs), limit=60)
    assert count == 60
    assert [uri for batch in short for uri in batch["uri"].to_pylist()] == [ref.uri for ref in expected][:60]


def test_kept_columns_stand_in_the_images_table(
    cluster: object, tmp_path: Path, model_folder: Path, run_jobs: Callable[..., Any]
) -> None:
    """From a list to the table, beside the list's ids, and the run is whole."""
    for number in range(3):
        write_picture(tmp_path / "in" / f"{number}.png", seed=number)
    rows = [{"uri": f"{number}.png", "id": 10 - number, "split": "train" if number else None} for number in range(3)]
    (tmp_path / "in" / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = label_arguments(tmp_path / "in" / "list.jsonl", tmp_path / "out", model_folder, "--keep-columns", "split")
    done = run_jobs(*command, "--images-per-shard", 2, "--workers", 1)
    assert done.returncode == 0, done.stderr
    images = pd.read_parquet(tmp_path / "out" / "images")
    assert images["source_id"].tolist() == ["10", "9", "8"]
    assert images["split"].isna().tolist() == [True, False, False]
    checked = run_jobs("verify", tmp_path / "out")
    assert checked.returncode == 0, checked.stdout
