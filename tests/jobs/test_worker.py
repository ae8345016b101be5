"""One worker without Ray: a row for every image, whatever is in it; the store's faults are never an image's."""

import shutil
from pathlib import Path
from typing import Any

import fake_engine
import pandas as pd
import pytest
from fakes import freeze, load_worker, write_picture

from jobs.events import ImageDone, ImageStarted, ShardCommitted
from jobs.worker import MAX_INTERNAL_IN_A_ROW, ShardLabeler, WorkerStoppedError
from labeler import storage
from labeler.errors import ImageError, ModelError, StorageError
from labeler.retries import retried, use_retries


def read_errors(output: Path) -> dict[str, str]:
    frame = pd.read_parquet(output / "images")
    return {row.file_name: row.error_kind for row in frame.itertuples() if row.status == "error"}


@pytest.fixture
def output(photos: Path, model_folder: Path, tmp_path: Path) -> Path:
    """A frozen run of one shard."""
    freeze(photos, tmp_path / "run", model_folder, images_per_shard=64)
    return tmp_path / "run"


def test_every_image_leaves_one_row(output: Path) -> None:
    """Good ones their masks, broken ones their reason; both tables sorted and in agreement."""
    *_, committed = load_worker(output).label_shard(0)
    images, masks = pd.read_parquet(output / "images"), pd.read_parquet(output / "masks")
    assert isinstance(committed, ShardCommitted)
    assert images["image_id"].tolist() == list(range(1, 13))
    assert read_errors(output) == {"a/empty.jpg": "corrupt", "a/page.png": "corrupt"}
    assert (committed.tally.num_images, committed.tally.num_masks, committed.tally.num_failed) == (12, len(masks), 2)
    assert masks.groupby("image_id").size().reindex(images["image_id"], fill_value=0).tolist() == images["num_masks"].tolist()
    good = images[images["status"] == "ok"]
    assert (good["num_masks"] > 0).all()
    assert good["width"].notna().all()
    assert images.loc[images["status"] == "error", ["width", "stored_height", "seconds_encode"]].isna().all().all()


def test_an_image_is_announced_before_it_is_touched(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carefully: each is done before the next is announced. Else one ahead is announced and read."""
    touched: list[str] = []
    read_bytes = storage.read_bytes

    def watch(uri: str, **where: Any) -> bytes:
        touched.append(uri)
        return read_bytes(uri, **where)

    labeler = load_worker(output)
    monkeypatch.setattr(storage, "read_bytes", watch)
    events = [type(event) for event in labeler.label_shard(0, careful=True)]
    assert events == [ImageStarted, ImageDone] * 12 + [ShardCommitted]
    events = [type(event) for event in labeler.label_shard(0)]
    assert events == [ImageStarted, ImageStarted, ImageDone, *[ImageStarted, ImageDone] * 10, ImageDone, ShardCommitted]
    touched.clear()
    events_now = labeler.label_shard(0)
    next(events_now)
    assert not [uri for uri in touched if "photos" in uri]


def test_a_verdict_is_a_row_without_touching_the_image(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What killed three workers is not looked at a fourth time."""
    events = list(load_worker(output).label_shard(0, verdicts={2: ImageError("worker_died", "three")}))
    assert ImageStarted(2) not in events
    assert ImageDone(2, 0, "worker_died") in events
    assert pd.read_parquet(output / "images").set_index("image_id").loc[2, "error_message"] == "three"


def test_what_changed_since_the_plan_is_said(output: Path, photos: Path) -> None:
    """Gone, another size, or written again with the same size: nobody gets masks of another picture than planned."""
    names = sorted(path.name for path in (photos / "a").iterdir() if "%" in path.name)
    (photos / "a" / names[0]).unlink()
    with (photos / "a" / names[1]).open("ab") as file:
        file.write(b"more")
    (photos / "a" / names[2]).write_bytes((photos / "a" / names[2]).read_bytes())
    list(load_worker(output).label_shard(0))
    kinds = {Path(storage.decode_name(name)).name: kind for name, kind in read_errors(output).items()}
    assert [kinds.get(name) for name in names] == ["missing", "changed", "changed", None, None]


def test_a_forbidden_image_is_its_own_fault(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permission denied on one file is a row. (Simulated: tests may run as root, whom no file refuses.)"""
    labeler = load_worker(output)
    read_bytes = storage.read_bytes

    def refuse(uri: str, **where: Any) -> bytes:
        if "photos/a/1" in uri:
            raise PermissionError(13, "permission denied", uri)
        return read_bytes(uri, **where)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    list(labeler.label_shard(0))
    assert read_errors(output)["a/1 %25.png"] == "forbidden"


def test_an_input_that_is_gone_is_nobodys_missing_image(output: Path, photos: Path) -> None:
    """An unmounted folder stops the job; it does not make ten million 'missing' rows."""
    labeler = load_worker(output)
    shutil.move(photos, photos.with_name("elsewhere"))
    with pytest.raises(StorageError, match="is gone"):
        list(labeler.label_shard(0))
    assert not (output / "images").exists()


def test_a_mount_point_without_its_disk_is_nobodys_missing_image(output: Path, photos: Path) -> None:
    """It is there and empty: a worker that begins is left out, one at work stops. A folder inside may well be empty."""
    labeler = load_worker(output)
    shutil.rmtree(photos / "b")
    (photos / "b").mkdir()
    list(labeler.label_shard(0))
    assert list(read_errors(output).values()).count("missing") == 5
    shutil.rmtree(output / "images")
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(StorageError, match="is it mounted"):
        list(labeler.label_shard(0))
    with pytest.raises(StorageError, match="is it mounted"):
        load_worker(output)
    assert not (output / "images").exists()


def test_a_folder_called_like_a_pattern_is_a_folder_when_it_is_away(tmp_path: Path, model_folder: Path) -> None:
    """Where it was when the run was planned, its parent does not stand for it."""
    photos = tmp_path / "photos [2024]"
    write_picture(photos / "0.png", seed=0)
    freeze(photos, tmp_path / "run", model_folder, images_per_shard=2)
    shutil.move(photos, tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is it mounted"):
        load_worker(tmp_path / "run")


@pytest.mark.parametrize("is_absolute", [True, False])
def test_the_images_of_a_list_are_missed_only_where_their_folder_is(
    photos: Path, model_folder: Path, tmp_path: Path, is_absolute: bool
) -> None:
    """The list itself may lie elsewhere, on a disk that is always there."""
    names = sorted(photos.glob("*/**/*.png"))[:6]
    (tmp_path / "list.txt").write_text("\n".join(str(name if is_absolute else name.relative_to(tmp_path)) for name in names))
    freeze(tmp_path / "list.txt", tmp_path / "run", model_folder, images_per_shard=2)
    names[1].unlink()
    labeler = load_worker(tmp_path / "run")
    list(labeler.label_shard(0))
    assert list(read_errors(tmp_path / "run").values()) == ["missing"]
    shutil.rmtree(photos)
    with pytest.raises(StorageError, match="is it mounted"):
        list(labeler.label_shard(1))
    with pytest.raises(StorageError, match="is it mounted"):
        load_worker(tmp_path / "run")


def test_storage_that_answers_late_is_waited_for(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call fails once: with one retry the shard is done and no image blamed; without it, nothing counts."""
    labeler = load_worker(output)
    failed: set[str] = set()

    def fail_once(name: str) -> Any:
        original = getattr(storage, name)

        def call(uri: str, *args: Any, **where: Any) -> Any:
            if "photos/" in uri or "part-" in uri:
                key = f"{name} {uri}"
                if key not in failed:
                    failed.add(key)
                    raise StorageError("503")
                failed.discard(key)
            return original(uri, *args, **where)

        return call

    monkeypatch.setattr("labeler.retries._FIRST_PAUSE_S", 0.001)
    for name in ("read_bytes", "write_bytes"):
        monkeypatch.setattr(storage, name, retried(fail_once(name)))
    with pytest.raises(StorageError, match="503"):
        list(labeler.label_shard(0))
    assert not (output / "images").exists()
    failed.clear()
    use_retries(1)
    list(labeler.label_shard(0))
    assert set(read_errors(output).values()) == {"corrupt"}


def make_run(tmp_path: Path, model_folder: Path, *colours: tuple[int, int, int] | None) -> ShardLabeler:
    for number, colour in enumerate(colours):
        write_picture(tmp_path / "pictures" / f"{number:03d}.png", seed=number, colour=colour)
    freeze(tmp_path / "pictures", tmp_path / "out", model_folder, images_per_shard=64)
    return load_worker(tmp_path / "out")


def test_a_bug_costs_one_image(tmp_path: Path, model_folder: Path) -> None:
    """Its row is 'internal', its traceback goes to the log, the others have their masks."""
    labeler = make_run(tmp_path, model_folder, None, fake_engine.RAISES, None)
    done = [event for event in labeler.label_shard(0) if isinstance(event, ImageDone)]
    assert [event.error_kind for event in done] == [None, "internal", None]
    assert "does not like this picture" in (done[1].log or "")
    assert read_errors(tmp_path / "out") == {"001.png": "internal"}


def test_a_bug_in_every_image_stops_the_job(tmp_path: Path, model_folder: Path) -> None:
    """Twenty in a row, with the last traceback; a good one in between starts the count anew."""
    colours: list[Any] = [fake_engine.RAISES] * (MAX_INTERNAL_IN_A_ROW - 1)
    labeler = make_run(tmp_path, model_folder, *colours, None, *colours, fake_engine.RAISES)
    done: list[object] = []
    with pytest.raises(WorkerStoppedError, match="does not like this picture"):
        done.extend(event for event in labeler.label_shard(0) if isinstance(event, ImageDone))
    assert len(done) == 2 * MAX_INTERNAL_IN_A_ROW
    assert not (tmp_path / "out" / "images").exists()


def test_broken_files_never_stop_a_job(tmp_path: Path, model_folder: Path) -> None:
    """A folder of nothing but broken files is labeled to its end."""
    for number in range(2 * MAX_INTERNAL_IN_A_ROW):
        path = tmp_path / "pictures" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    freeze(tmp_path / "pictures", tmp_path / "out", model_folder, images_per_shard=64)
    *_, committed = load_worker(tmp_path / "out").label_shard(0)
    assert isinstance(committed, ShardCommitted)
    assert committed.tally.errors == {"corrupt": 2 * MAX_INTERNAL_IN_A_ROW}


def test_a_machine_that_lacks_something_says_so(output: Path, photos: Path, tmp_path: Path) -> None:
    """No run, no input, another model: before any image is touched."""
    with pytest.raises(StorageError, match=r"run\.json"):
        load_worker(tmp_path / "nowhere")
    (output / "model" / "encoder.bin").write_text("other")
    with pytest.raises(ModelError, match=r"encoder\.bin"):
        load_worker(output)
    shutil.rmtree(photos)
    with pytest.raises(StorageError, match="does not see the input"):
        load_worker(output)
