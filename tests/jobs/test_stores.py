"""Object stores over HTTP: real servers, files of other tools, and one job from bucket to bucket."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import stores
from fakes import QUICK, write_picture

from jobs.options import Selection
from jobs.reading import read_image
from jobs.sources import list_images
from labeler import storage
from labeler.errors import OptionsError, StorageError, StorageRefusedError
from labeler.retries import use_retries
from labeler.store_errors import sort_store_error
from labeler.stores import find_bucket, hide_secrets, parse_store_options, use_store_options

pytest.importorskip("s3fs", reason="needs the extra s3")

NO_GRPC = ("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # Or gcsfs asks by gRPC first, which no emulator speaks.
NAMES = [
    "plain.jpg",
    "50% off.jpg",
    "a%20b.jpg",
    "what#fragment?query.jpg",
    "sub/-rf 'quote\".jpg",
    "größe 日本.jpg",
    "sub//double.jpg",
    "x" * 200 + ".jpg",
]


def test_every_key_of_another_tool_is_listed_and_opens_again(s3: Any) -> None:
    """Percent signs, hashes, question marks and all; also what is written by us is found by the other tool."""
    for name in NAMES:
        s3.put_object(Bucket="photos", Key=f"in/{name}", Body=name.encode())
    s3.put_object(Bucket="photos", Key="in/folder/", Body=b"")  # As consoles mark folders.
    s3.put_object(Bucket="photos", Key="in-other/a.jpg", Body=b"")
    files = list(storage.list_files("s3://photos/in"))
    assert {file.path for file in files} == set(NAMES)
    for file in files:
        assert storage.read_bytes(file.uri).decode() == file.path
        assert storage.stat_file(file.uri).etag == file.etag
        assert storage.path_to_uri(file.uri) == file.uri
        storage.write_bytes(storage.join("s3://labels/copy", file.path), b"copy")
        assert s3.get_object(Bucket="labels", Key=f"copy/{file.path}")["Body"].read() == b"copy"
    assert storage.read_bytes("s3://photos/in/plain.jpg", offset=2, length=3) == b"ain"
    assert storage.read_bytes("s3://photos/in/50% off.jpg") == b"50% off.jpg"  # As a person types it.


def test_a_file_is_read_in_one_request(s3: Any, endpoint: str, tmp_path: Path) -> None:
    """Of any size: pieces could be of two versions, and requests cost money."""
    s3.put_object(Bucket="photos", Key="large.bin", Body=bytes(60 << 20))
    proxy = stores.Proxy(tmp_path, endpoint)
    proxy.start()
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": proxy.endpoint}})
    try:
        proxy.set_faults(match="HEAD|Range", status=403, code="AccessDenied")
        assert len(storage.read_bytes("s3://photos/large.bin")) == 60 << 20
        assert proxy.count_faults() == 0
        # A HEAD has no body that says why it is refused.
        proxy.set_faults(match="HEAD|GET", status=403, code="InvalidAccessKeyId")
        for ask in (storage.stat_file, storage.exists, storage.read_bytes):
            with pytest.raises(StorageRefusedError, match="InvalidAccessKeyId"):
                ask("s3://photos/large.bin")
    finally:
        proxy.stop()


def test_folders_of_a_bucket(s3: Any) -> None:
    """Where a key goes on below a name there is a folder; deleting twice is fine; what is not there is missing."""
    s3.put_object(Bucket="photos", Key="a/b/c.jpg", Body=b"x")
    assert storage.is_folder("s3://photos")
    assert storage.is_folder("s3://photos/a/b")
    assert not storage.is_folder("s3://photos/a/b/c.jpg")
    assert not storage.is_folder("s3://photos/a/no")
    assert storage.exists("s3://photos/a/b/c.jpg")
    assert storage.exists("s3://photos/a")
    assert not storage.exists("s3://photos/none")
    for _ in range(2):
        storage.delete("s3://photos/a/b/c.jpg")
    for read in (storage.read_bytes, storage.stat_file):
        with pytest.raises(FileNotFoundError):
            read("s3://photos/a/b/c.jpg")


def test_a_listing_longer_than_a_page(s3: Any, endpoint: str, tmp_path: Path) -> None:
    """A page of S3 has a thousand keys; the second that does not come at first loses none of the first."""
    for number in range(1005):
        s3.put_object(Bucket="photos", Key=f"many/{number}.jpg", Body=b"")
    proxy = stores.Proxy(tmp_path, endpoint)
    proxy.start()
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": proxy.endpoint, **stores.ONE_TRY}})
    use_retries(8)
    num_faults = stores.count_tries() + 1
    try:
        files = storage.list_files("s3://photos/many")
        names = {next(files).path}
        proxy.set_faults(match="continuation-token", times=num_faults)
        names |= {file.path for file in files}
        assert len(names) == 1005
        assert proxy.count_faults() == num_faults
    finally:
        proxy.stop()


def write_pieces(pieces: Iterable[bytes]) -> None:
    with storage.open_whole("s3://labels/a.bin") as file:
        for piece in pieces:
            file.write(piece)


def read_object(s3: Any) -> bytes:
    return bytes(s3.get_object(Bucket="labels", Key="a.bin")["Body"].read())


def count_uploads(s3: Any) -> int:
    return len(s3.list_multipart_uploads(Bucket="labels").get("Uploads", ()))


def test_an_upload_in_pieces_is_seen_whole_or_not_at_all(s3: Any) -> None:
    """In one request or in parts; a block that fails leaves the old object, and no upload that costs money."""

    def give(pieces: Sequence[bytes], *, num_uploads: int, fails: bool) -> Iterator[bytes]:
        yield from pieces
        assert (read_object(s3), count_uploads(s3)) == (b"old", num_uploads)
        if fails:
            raise ZeroDivisionError

    for pieces, num_uploads in (([b"one", b"two"], 0), ([bytes(3 << 20)] * 20, 1)):  # s3fs's parts have 50 MiB.
        s3.put_object(Bucket="labels", Key="a.bin", Body=b"old")
        with pytest.raises(ZeroDivisionError):
            write_pieces(give(pieces, num_uploads=num_uploads, fails=True))
        assert (read_object(s3), count_uploads(s3)) == (b"old", 0)
        write_pieces(give(pieces, num_uploads=num_uploads, fails=False))
        assert (read_object(s3), count_uploads(s3)) == (b"".join(pieces), 0)


@pytest.mark.parametrize(
    ("code", "status", "expected"), [("SlowDown", 503, StorageError), ("ExpiredToken", 400, StorageRefusedError)]
)
@pytest.mark.parametrize("step", ["POST .*uploads", "PUT .*partNumber=1", "PUT .*partNumber=2", "POST .*uploadId="])
def test_a_fault_in_an_upload_leaves_the_old_object(
    s3: Any, endpoint: str, tmp_path: Path, step: str, code: str, status: int, expected: type[Exception]
) -> None:
    """As it begins, in a part in the middle or the last one, or as it ends; no upload that costs money is left."""
    s3.put_object(Bucket="labels", Key="a.bin", Body=b"old")
    proxy = stores.Proxy(tmp_path, endpoint)
    proxy.start()
    small_parts = {"default_block_size": 5 << 20}
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": proxy.endpoint, **stores.ONE_TRY, **small_parts}})
    try:
        proxy.set_faults(match=step, status=status, code=code)
        with pytest.raises(StorageError, match=code) as fault:
            write_pieces([bytes(6 << 20), b"rest"])
        assert type(fault.value) is expected
        assert proxy.count_faults() == (stores.count_tries() if expected is StorageError else 1)
        assert (read_object(s3), count_uploads(s3)) == (b"old", 0)
    finally:
        proxy.stop()


def test_a_bucket_that_is_gone_is_refused_at_once(s3: Any) -> None:
    """Never an image's fault, and nothing makes it anew."""
    for call in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"x"), lambda uri: list(storage.list_files(uri))):
        with pytest.raises(StorageRefusedError, match="NoSuchBucket"):
            call("s3://never-made/a.jpg")
    assert "never-made" not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}


def test_a_store_that_does_not_answer_may_answer_later() -> None:
    """Nobody listens there: to be tried again. An option that the store does not know is a mistake of the person."""
    nobody = f"http://127.0.0.1:{stores.find_port()}"
    use_store_options({"": {**stores.S3_KEYS, "endpoint_url": nobody, **stores.ONE_TRY}})
    try:
        with pytest.raises(StorageError, match="EndpointConnectionError") as fault:
            storage.read_bytes("s3://photos/a.jpg")
        use_store_options({"": {"endpoint": "http://127.0.0.1:1", **stores.S3_KEYS}})
        with pytest.raises(OptionsError, match=r"--storage-options: .*'endpoint'"):
            storage.read_bytes("s3://photos/a.jpg")
    finally:
        use_store_options({})
    assert not isinstance(fault.value, StorageRefusedError)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchKey", 404, FileNotFoundError),
        ("404", 404, FileNotFoundError),
        ("AccessDenied", 403, PermissionError),
        ("403", 403, PermissionError),
        ("ExpiredToken", 400, StorageRefusedError),
        ("InvalidAccessKeyId", 403, StorageRefusedError),
        ("SignatureDoesNotMatch", 403, StorageRefusedError),
        ("KeyTooLongError", 400, FileNotFoundError),
        ("410", 410, FileNotFoundError),
        ("InvalidObjectState", 403, PermissionError),
        ("BlobArchived", 409, PermissionError),
        ("NoSuchBucket", 404, StorageRefusedError),
        ("InternalError", 500, StorageError),
        ("SlowDown", 503, StorageError),
        ("ServiceUnavailable", 503, StorageError),
        ("RequestTimeout", 400, StorageError),
    ],
)
def test_errors_are_sorted_by_what_the_store_said(code: str, status: int, expected: type[Exception]) -> None:
    """As s3fs passes them on: its own class outside, botocore's answer as the cause."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    response: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    for error in (ClientError(response, "GetObject"), translate_boto_error(ClientError(response, "GetObject"))):
        assert type(sort_store_error(error, uri="s3://b/k")) is expected


@pytest.mark.parametrize(("status", "expected"), [(403, PermissionError), (404, FileNotFoundError), (401, StorageRefusedError)])
def test_googles_errors_are_sorted_as_the_others(
    status: int, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gcsfs raises them; what it knows of a refusal is said."""
    monkeypatch.setenv(*NO_GRPC)
    retry = pytest.importorskip("gcsfs.retry", reason="needs the extra gcs")
    answer = {"error": {"code": status, "message": "a@b has no storage.objects.get"}}
    with pytest.raises((OSError, retry.HttpError)) as raised:
        retry.validate_response(status, json.dumps(answer), "https://storage.googleapis.com/photos/a.jpg")
    sorted_error = sort_store_error(raised.value, uri="gs://photos/a.jpg")
    assert type(sorted_error) is expected
    assert status != 403 or "a@b has no storage.objects.get" in str(sorted_error)


def test_options_reach_their_place_and_secrets_no_text() -> None:
    """For everywhere, a word or a URL; a bad one is refused without its value."""
    assert find_bucket("s3://in/list.csv") == find_bucket("s3://in") == "s3://in"
    texts = ["anon=true", "input.profile=work", "output.secret=hush-hush", 's3://b.client_kwargs={"region_name": "eu"}']
    options = parse_store_options(texts, places={"input": "s3://in", "output": "s3://out/x", "model": None})
    assert options == {
        "": {"anon": True},
        "s3://in": {"profile": "work"},
        "s3://out/x": {"secret": "hush-hush"},
        "s3://b": {"client_kwargs": {"region_name": "eu"}},
    }
    use_store_options(options)
    try:
        assert hide_secrets("key hush-hush of work") == "key *** of work"
    finally:
        use_store_options({})
    for text in ("hush-hush", "elsewhere.secret=hush-hush", "=hush-hush"):
        with pytest.raises(OptionsError) as refusal:
            parse_store_options([text], places={"input": None})
        assert "hush-hush" not in str(refusal.value)
    with pytest.raises(OptionsError, match="password") as refusal:
        storage.read_bytes("s3://key:hush-hush@bucket/a.jpg")
    assert "hush" not in str(refusal.value)


def test_an_input_in_a_bucket(s3: Any) -> None:
    """A prefix, a glob, and a list of URIs name the same images; each has the store's own ETag where it was listed."""
    for name in ("train/a.jpg", "train/b %.png", "val/a.jpg", "notes.txt"):
        s3.put_object(Bucket="photos", Key=f"set/{name}", Body=name.encode())
    whole = list_images("s3://photos/set", selection=Selection())
    assert [ref.file_name for ref in whole.read_refs()] == ["train/a.jpg", "train/b %25.png", "val/a.jpg"]
    assert all(ref.etag == storage.stat_file(ref.uri).etag for ref in whole.read_refs())
    glob = list_images("s3://photos/set/*/a.jpg", selection=Selection())
    assert [ref.file_name for ref in glob.read_refs()] == ["train/a.jpg", "val/a.jpg"]
    uris = [ref.uri for ref in whole.read_refs()]
    s3.put_object(Bucket="photos", Key="list.csv", Body=pd.DataFrame({"uri": uris}).to_csv().encode())
    listed = list_images("s3://photos/list.csv", selection=Selection())
    assert sorted(read_image(ref) for ref in listed.read_refs()) == sorted(read_image(ref) for ref in whole.read_refs())


def test_a_job_from_bucket_to_bucket(
    s3: Any, endpoint: str, model_folder: Path, tmp_path: Path, run_jobs: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Images that boto3 wrote, masks that pandas reads from s3://; the model from a bucket too; no secret anywhere."""
    for number in range(5):
        path = write_picture(tmp_path / f"{number}.png", seed=number)
        s3.upload_file(str(path), "photos", f"in/{'ab'[number % 2]}/50% {number}.png")
    stores.copy_folder(str(model_folder), target="s3://labels/model")
    config = tmp_path / "store.toml"
    secret = stores.S3_KEYS["secret"]
    config.write_text(f'storage-options = ["secret={secret}", "key={stores.S3_KEYS["key"]}"]\n')
    command = ["label", "--input", "s3://photos/in", "--output", "s3://labels/run", "--model", "s3://labels/model", *QUICK]
    more = ["--images-per-shard", 2, "--workers", 1, "--config", config, "--storage-options", f"endpoint_url={endpoint}"]
    # What is typed replaces what the file says, so the keys come by the environment here.
    keys = {
        "AWS_ACCESS_KEY_ID": stores.S3_KEYS["key"],
        "AWS_SECRET_ACCESS_KEY": secret,
        "SAM_LABELER_CACHE": str(tmp_path / "c"),
    }
    done = run_jobs(*command, *more, **keys)
    assert done.returncode == 0, done.stderr
    options = {**stores.S3_KEYS, "client_kwargs": {"endpoint_url": endpoint}}
    images = pd.read_parquet("s3://labels/run/images", storage_options=options)
    masks = pd.read_parquet("s3://labels/run/masks", storage_options=options)
    assert images["image_id"].tolist() == [1, 2, 3, 4, 5]
    assert (images["status"] == "ok").all()
    assert images["file_name"].tolist()[0] == "a/50%25 0.png"
    assert len(masks) == images["num_masks"].sum() > 0
    assert np.array_equal(np.unique(masks["image_id"]), images["image_id"])
    written = list(storage.list_files("s3://labels/run"))
    assert len(written) > 6
    for file in written:
        assert secret.encode() not in storage.read_bytes(file.uri)
    assert secret not in done.stdout + done.stderr
    assert "storage_options" not in json.loads(storage.read_bytes("s3://labels/run/run.json"))
    where = ["s3://labels/run", "--storage-options", f"endpoint_url={endpoint}"]
    for again in (run_jobs(*command, *more, **keys), run_jobs("status", *where, **keys), run_jobs("verify", *where, **keys)):
        assert again.returncode == 0, again.stdout + again.stderr


def test_azure_over_http(tmp_path: Path) -> None:
    """Another tool's blobs are listed, read and written; errors are sorted as S3's are."""
    program = stores.find_azurite()
    if program is None:
        pytest.skip("needs azurite (npm install azurite; its bin folder on the path or in AZURITE_BIN)")
    pytest.importorskip("adlfs", reason="needs the extra azure")
    blob = pytest.importorskip("azure.storage.blob")
    with stores.serve_azure(tmp_path, program) as url:
        parts = [f"AccountName={stores.AZURE_ACCOUNT}", f"AccountKey={stores.AZURE_KEY}", f"BlobEndpoint={url}"]
        connection = ";".join(["DefaultEndpointsProtocol=http", *parts])
        client = blob.BlobServiceClient.from_connection_string(connection).create_container("photos")
        for name in NAMES:
            client.upload_blob(f"in/{name}", name.encode())
        use_store_options({"az": {}, "": {"connection_string": connection}})
        try:
            files = list(storage.list_files("az://photos/in"))
            assert {file.path for file in files} == set(NAMES)
            for file in files:
                assert storage.read_bytes(file.uri).decode() == file.path
                assert (storage.stat_file(file.uri).etag or "").strip('"') == file.etag
            storage.write_bytes("az://photos/out/50%25.bin", b"data")
            assert client.download_blob("out/50%.bin").readall() == b"data"
            assert storage.is_folder("az://photos/in/sub")
            assert not storage.exists("az://photos/none")
            with pytest.raises(FileNotFoundError):
                storage.read_bytes("az://photos/none.jpg")
            with pytest.raises((StorageRefusedError, FileNotFoundError)):
                storage.read_bytes("az://never-made/none.jpg")
        finally:
            use_store_options({})
            client.close()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_gcs_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's own client's objects are listed, read and written; errors are sorted as S3's are."""
    monkeypatch.setenv(*NO_GRPC)
    pytest.importorskip("gcsfs", reason="needs the extra gcs")
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
    google = pytest.importorskip("google.cloud.storage")
    credentials = pytest.importorskip("google.auth.credentials").AnonymousCredentials()
    with stores.serve_gcs(tmp_path) as url:
        client = google.Client(project="p", credentials=credentials, client_options={"api_endpoint": url})
        bucket = client.create_bucket("photos")
        for name in NAMES:
            bucket.blob(f"in/{name}").upload_from_string(name.encode())
        use_store_options({"": {"endpoint_url": url, "token": "anon"}})
        try:
            files = list(storage.list_files("gs://photos/in"))
            assert {file.path for file in files} == set(NAMES)
            for file in files:
                assert storage.read_bytes(file.uri).decode() == file.path
                assert storage.stat_file(file.uri).etag == file.etag
            assert storage.read_bytes("gs://photos/in/plain.jpg", offset=2, length=3) == b"ain"
            storage.write_bytes("gs://photos/out/50%25.bin", b"data")
            assert bucket.blob("out/50%.bin").download_as_bytes() == b"data"
            with storage.open_whole("gs://photos/out/big.bin") as file:
                for _ in range(12):
                    file.write(bytes(1 << 20))
            assert len(bucket.blob("out/big.bin").download_as_bytes()) == 12 << 20
            assert storage.is_folder("gs://photos/in/sub")
            assert not storage.exists("gs://photos/none")
            for _ in range(2):
                storage.delete("gs://photos/out/50%25.bin")
            for place in ("gs://photos/none.jpg", "gs://never-made/none.jpg"):
                with pytest.raises(FileNotFoundError):
                    storage.read_bytes(place)
        finally:
            use_store_options({})
            client.close()


def test_the_door_needs_no_store_s_library() -> None:
    """Who works on local files installs none of them."""
    code = "import sys, labeler.storage, jobs.sources; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert not {"s3fs", "boto3", "botocore", "adlfs", "gcsfs"} & set(loaded.stdout.split())
