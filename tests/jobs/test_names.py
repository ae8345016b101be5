"""Names that a file system or a bucket allows, from the listing through both Parquet tables back to an open file."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
from bucket_jobs import label
from fakes import freeze, write_picture
from stores import S3_KEYS

from labeler import storage

NAMES = [
    "a/same.png",
    "a/same.jpg",
    "b/same.png",
    "50% off.png",
    "%41.png",
    "-rf.png",
    "quo\"te's.png",
    "what#fragment?query&x=1.png",
    "größe 日本.png",
    "a:b;c|d[e].png",
    "x" * 200 + ".png",
]
LOCAL_NAMES = [*NAMES, os.fsdecode(b"caf\xe9 \xff.png"), "tab\tnew\nline.png", "back\\slash.png"]


def write_pictures(folder: Path, names: list[str]) -> dict[str, bytes]:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(folder / "plain.png", seed=seed).rename(folder / name)
    return {name: (folder / name).read_bytes() for name in names}


def check(images: pd.DataFrame, masks: pd.DataFrame, pictures: dict[str, bytes]) -> None:
    """Each picture has one row, whose uri opens it and whose name is its own, also beside its masks."""
    opened = {name: storage.read_bytes(uri) for name, uri in zip(images.file_name, images.uri, strict=True)}
    assert {storage.decode_name(name): data for name, data in opened.items()} == pictures
    assert images.file_name.tolist() == sorted(images.file_name, key=str.encode)
    assert (images.status == "ok").all()
    assert masks.groupby("image_id").file_name.unique().map(list).tolist() == [[name] for name in images.file_name]


def test_names_of_files(tmp_path: Path, model_folder: Path) -> None:
    """Bytes that are not UTF-8, and all that shells and URLs stumble over."""
    pictures = write_pictures(tmp_path / "in", LOCAL_NAMES)
    record = freeze(tmp_path / "in", tmp_path / "out", model_folder)
    label(str(tmp_path / "out"), range(record.num_shards))
    check(pd.read_parquet(tmp_path / "out" / "images"), pd.read_parquet(tmp_path / "out" / "masks"), pictures)


def test_names_of_objects(tmp_path: Path, model_folder: Path, s3: Any, endpoint: str) -> None:
    """Another tool's keys; and what changed or went since the run was planned is said so."""
    pictures = write_pictures(tmp_path / "in", NAMES)
    for name, data in pictures.items():
        s3.put_object(Bucket="photos", Key=f"in/{name}", Body=data)
    out = f"s3://labels/{tmp_path.name}"
    record = freeze("s3://photos/in", out, model_folder)  # type: ignore[arg-type]
    label(out, range(record.num_shards))
    options = {**S3_KEYS, "client_kwargs": {"endpoint_url": endpoint}, "use_listings_cache": False}
    check(*(pd.read_parquet(f"{out}/{table}", storage_options=options) for table in ("images", "masks")), pictures)

    changed = pictures["%41.png"]
    s3.put_object(Bucket="photos", Key="in/%41.png", Body=changed[:-1] + bytes([changed[-1] ^ 1]))
    s3.put_object(Bucket="photos", Key="in/-rf.png", Body=b"shorter")
    s3.delete_object(Bucket="photos", Key="in/50% off.png")
    kinds = [kind for shard in range(record.num_shards) for kind in label(out, range(shard, shard + 1))]
    rows = pd.read_parquet(f"{out}/images", storage_options=options)
    errors = dict(zip(rows.file_name, kinds, strict=True))
    assert {name: kind for name, kind in errors.items() if kind} == {
        "%2541.png": "changed",
        "-rf.png": "changed",
        "50%25 off.png": "missing",
    }
