"""Runs with prompts: every prompt one row, whatever is wrong with it, its image or a worker; the same bytes in any case."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_engine
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fakes import Cluster, find_workers, load_worker, make_slow, start_jobs, wait_until, write_picture
from PIL import Image as PillowImage
from prompt_fakes import label_prompts, write_prompts

from jobs.events import ImageDone
from jobs.options import Selection
from jobs.plan import read_run
from jobs.prompts import describe_prompts, match_prompts
from jobs.sources import list_images
from jobs.verify import find_faults
from labeler import storage
from labeler.errors import OptionsError
from labeler.prompts import Prompt

RunJobs = Callable[..., subprocess.CompletedProcess[str]]


def list_faults(output: Path) -> list[str]:
    record = read_run(str(output))
    assert record is not None
    return [str(fault) for fault in find_faults(str(output), record)]


def read_parts(output: Path) -> dict[str, bytes]:
    """Files of masks and prompts, without the hidden one that a killed worker may leave half written."""
    parts = [path for name in ("masks", "prompts") for path in (output / name).glob("part-*")]
    return {f"{part.parent.name}/{part.name}": part.read_bytes() for part in parts}


ROWS: list[dict[str, Any]] = [
    {"image": "b/c/4 %.png", "points_xy": [[20, 20], [30, 30]], "point_labels": [1, 0]},
    {"image": "a/1 %.png", "box_xyxy": [5, 5, 30, 30], "id": "mine", "category": "cat"},
    {"image": "a/1 %.png", "box_xyxy": [5, 5, float("nan"), 30]},
    {"image": "a/1 %.png", "box_xyxy": [30, 30, 5, 5]},
    {"image": "a/1 %.png", "box_xyxy": [5, 5, 5, 30]},
    {"image": "a/1 %.png", "box_xyxy": [500, 5, 600, 30]},
    {"image": "a/1 %.png", "box_xyxy": [5, 5, 30]},
    {"image": "a/1 %.png", "box_xyxy": [5, 5, 30, 30], "width": 5, "height": 5},
    {"image": "a/empty.jpg", "box_xyxy": [5, 5, 30, 30]},
    {"image": "gone.png", "box_xyxy": [5, 5, 30, 30]},
    {"image": "a/1 %25.png", "points_xy": [[20, 20]]},
    {"box_xyxy": [5, 5, 30, 30]},
]


def test_every_prompt_leaves_one_row(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """Good ones with their mask; the others with a kind of the closed list; images without prompts are ok, without masks."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", ROWS)
    record = label_prompts(photos, prompts, tmp_path / "out", model_folder)
    rows = pd.read_parquet(tmp_path / "out" / "prompts").sort_values("prompt_id")
    assert rows["prompt_id"].tolist() == list(range(1, len(ROWS) + 1))
    assert rows["error_kind"].fillna("").tolist() == [
        "", "", "malformed", "reversed", "empty", "outside", "malformed", "size", "corrupt", "missing", "", "missing",
    ]  # fmt: skip
    assert rows["mask_id"].notna().tolist() == (rows["status"] == "ok").tolist()
    assert rows.loc[rows["status"] == "error", "error_message"].str.len().min() > 10
    masks, images = pd.read_parquet(tmp_path / "out" / "masks"), pd.read_parquet(tmp_path / "out" / "images")
    both = masks.merge(rows, on=["image_id", "mask_id", "prompt_id"])
    assert sorted(both["prompt_id"]) == [1, 2, 11]
    assert masks.set_index("prompt_id")["category_id"].dropna().to_dict() == {2: 1}
    assert set(images.loc[~images["image_id"].isin(masks["image_id"]) & (images["status"] == "ok"), "num_masks"]) == {0}
    assert images["status"].tolist().count("ok") == 10
    plan = record.prompts_plan
    assert plan is not None
    assert (plan.num_prompts, plan.num_without_image, plan.num_images_without) == (12, 2, 9)
    assert list_faults(tmp_path / "out") == []


def test_images_are_found_by_name_else_by_uri(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """As typed, as the run writes it, as a path, as a URI."""
    photo = photos / "a" / "1 %.png"
    names = ["a/1 %.png", "./a/1 %.png", "a/1 %25.png", str(photo), storage.path_to_uri(photo), "1 %.png"]
    rows = [{"image": name, "points_xy": [[20, 20]]} for name in names]
    label_prompts(photos, write_prompts(tmp_path / "p.jsonl", rows), tmp_path / "out", model_folder)
    found = pd.read_parquet(tmp_path / "out" / "prompts").sort_values("prompt_id")
    assert found["image"].tolist() == names
    assert found["image_id"].fillna(0).tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("ids", "expected", "words"),
    [
        ([70, 6], [6, 70], ""),
        ([1, 0], [0, 1], ""),
        ([-1, 5], [-1, 5], ""),
        ([7, 7], [1, 2], "prompt_id is a prompt's place in the file"),
        (["x", 2], [1, 2], "prompt_id is a prompt's place in the file"),
        ([None], [1], ""),
    ],
)
def test_whole_numbers_of_their_own_are_the_prompts_ids(
    ids: list[Any], expected: list[int], words: str, photos: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """If all have one, also from 0; else their places in the file, from 1, which is said where there are ids."""
    rows = [{"image": "a/1 %.png", "points_xy": [[20, 20]], "id": number} for number in ids]
    label_prompts(photos, write_prompts(tmp_path / "p.jsonl", rows), tmp_path / "out", model_folder)
    assert pd.read_parquet(tmp_path / "out" / "masks")["prompt_id"].tolist() == expected
    assert list_faults(tmp_path / "out") == []
    said = capsys.readouterr().out
    assert words in said if words else "prompt_id" not in said


def test_prompts_are_those_that_were_hashed(photos: Path, tmp_path: Path) -> None:
    """A file that changes, or goes, after its hash was taken is refused: a run says which prompts it has."""
    prompts = write_prompts(tmp_path / "p.jsonl", ROWS)
    asked = describe_prompts(str(prompts), options=None, frozen=None)
    listing = list_images(storage.path_to_uri(photos), selection=Selection())
    with match_prompts(asked, listing=listing) as matched:
        assert matched is not None
    for change in (lambda: write_prompts(prompts, ROWS[:-1]), prompts.unlink):
        change()
        with pytest.raises(OptionsError, match=r"p\.jsonl changed while it was read"), match_prompts(asked, listing=listing):
            pass


def test_one_image_id_is_one_image(photos: Path, tmp_path: Path) -> None:
    """Files that were put together without new ids are refused; one image listed twice is harmless."""
    names = ["a/1 %.png", "a/1 %.png", "b/c/4 %.png"]
    boxes = [{"id": 1, "image_id": 5, "bbox": [5, 5, 20, 20]}]
    listing = list_images(storage.path_to_uri(photos), selection=Selection())
    for count in (2, 3):
        images = [{"id": 5, "file_name": name} for name in names[:count]]
        (tmp_path / "p.json").write_text(json.dumps({"images": images, "annotations": boxes}))
        asked = describe_prompts(str(tmp_path / "p.json"), options=None, frozen=None)
        expected = pytest.raises(OptionsError, match=r"image id 5 is that of a/1 %[.]png and of b/c/4 %[.]png")
        with expected if count == 3 else nullcontext(), match_prompts(asked, listing=listing) as matched:
            assert matched is not None


def test_prompts_without_an_image_are_dealt_to_all_shards(
    photos: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that no shard holds a million of them; the order is the file's. Where all of them are lost, names are compared."""
    rows = [{"image": f"gone/{number}.png", "points_xy": [[1, 1]]} for number in range(10)]
    label_prompts(photos, write_prompts(tmp_path / "p.jsonl", rows), tmp_path / "out", model_folder)
    assert (
        "such as gone/0.png. WARNING: none of them is in it; its images are called as a/1 %25.png is" in capsys.readouterr().out
    )
    parts = [pq.read_table(path)["prompt_id"].to_pylist() for path in sorted((tmp_path / "out" / "prompts").iterdir())]
    assert [len(part) for part in parts] == [2, 3, 2, 3]
    assert [number for part in parts for number in part] == list(range(1, 11))


def write_turned(path: Path, *, orientation: int) -> None:
    """A photo of 60 x 40 stored pixels with an EXIF orientation."""
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    PillowImage.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(path, exif=exif)


def test_a_frame_that_can_not_be_told_is_an_error_that_names_the_option(model_folder: Path, tmp_path: Path) -> None:
    """With --prompts-frame, or a width and height that tell, the same prompts have masks."""
    write_turned(tmp_path / "photos" / "turned.jpg", orientation=6)
    row = {"image": "turned.jpg", "points_xy": [[50, 10]]}
    rows = [row, {**row, "width": 60, "height": 40}]
    prompts = write_prompts(tmp_path / "p.jsonl", rows)
    label_prompts(tmp_path / "photos", prompts, tmp_path / "one", model_folder)
    unclear, clear = pd.read_parquet(tmp_path / "one" / "prompts").to_dict("records")
    assert (unclear["error_kind"], unclear["mask_id"] != unclear["mask_id"]) == ("frame", True)
    assert "--prompts-frame" in unclear["error_message"]
    assert [list(point) for point in clear["points_xy"]] == [[30, 50]]  # In the frame of the masks: upright.
    label_prompts(tmp_path / "photos", prompts, tmp_path / "two", model_folder, prompts_frame="stored")
    assert pd.read_parquet(tmp_path / "two" / "prompts")["status"].tolist() == ["ok", "ok"]


def test_what_is_kept_of_a_shard_is_written_again_byte_for_byte(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """Only images of the asked kinds are labeled again; prompts of the others stay as they are."""
    prompts = write_prompts(tmp_path / "p.jsonl", ROWS)
    record = label_prompts(photos, prompts, tmp_path / "out", model_folder, images_per_shard=12)
    before = read_parts(tmp_path / "out")
    events = list(load_worker(tmp_path / "out").label_shard(0, again={"corrupt"}))
    assert [event.error_kind for event in events if isinstance(event, ImageDone)] == ["corrupt", "corrupt"]
    assert read_parts(tmp_path / "out") == before
    assert record.num_shards == 1


def test_verify_finds_what_is_wrong_with_prompts(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """A row too few, another mask's id, a changed plan; and which parts to make anew."""
    output = tmp_path / "out"
    record = label_prompts(photos, write_prompts(tmp_path / "p.jsonl", ROWS), output, model_folder)
    part = output / "prompts" / "part-0000000.parquet"
    whole, table = part.read_bytes(), pq.read_table(part)
    pq.write_table(table.slice(1), part)
    assert any("rows are not the" in fault for fault in list_faults(output))
    assert any("not the one that images/part-0000000.parquet was written for" in fault for fault in list_faults(output))
    faults = list(find_faults(str(output), record))
    assert set(faults[0].parts) == {f"{name}/{part.name}" for name in ("images", "masks", "prompts")}
    rows = table.to_pylist()
    rows[0]["mask_id"] = 7
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), part)
    assert any("are not those that" in fault for fault in list_faults(output))
    part.write_bytes(whole)
    assert list_faults(output) == []
    plan = output / "prompts_plan" / "part-0000000.parquet"
    plan.with_name("part-0000001.parquet").write_bytes(b"of a start that was killed")  # As in plan/: nobody reads it.
    assert list_faults(output) == []
    plan.write_bytes(plan.read_bytes() + b" ")
    assert any("prompts_plan" in fault for fault in list_faults(output))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--points-per-side", 3], "--points-per-side: without effect with --prompts"),
        (["--preset", "sa1b"], "--preset: without effect"),
        (["--extend"], "--extend: a run with --prompts"),
        (["--prompt-masks", "two"], "--prompt-masks"),
    ],
)
def test_options_that_do_nothing_with_prompts_are_refused(
    main: Callable[..., int], more: list[Any], words: str, photos: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """And nothing is written."""
    prompts = write_prompts(tmp_path / "p.jsonl", ROWS)
    assert main("label", "--input", photos, "--output", "out", "--model", model_folder, "--prompts", prompts, *more) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "holds no prompt"), ("{", "is no JSON"), (None, "does not exist")],
)
def test_a_file_without_prompts_is_exit_2(
    main: Callable[..., int], content: str | None, words: str, photos: Path, model_folder: Path, capsys: Any
) -> None:
    """Before anything is written. Options of prompts without prompts are refused as well."""
    if content is not None:
        Path("p.jsonl").write_text(content)
    common = ["label", "--input", photos, "--output", "out", "--model", model_folder]
    assert main(*common, "--prompts", "p.jsonl") == 2
    assert words in capsys.readouterr().err
    assert main(*common, "--prompts-frame", "stored") == 2
    assert "give --prompts FILE too" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_resume_repeats_its_prompts(
    main: Callable[..., int], photos: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """Other prompts, other options of theirs or none at all are exit 2; the file itself may be gone by then."""
    prompts = write_prompts(tmp_path / "p.jsonl", ROWS)
    label_prompts(photos, prompts, tmp_path / "out", model_folder)
    common = ["label", "--input", photos, "--output", "out", "--model", model_folder, "--max-error-rate", 1]
    assert main(*common, "--prompts", prompts) == 0
    out = capsys.readouterr().out
    assert "3 of 12 prompts have their mask; not: 1 corrupt, 1 empty, 2 malformed, 2 missing" in out
    assert main("status", "out") == 0
    assert "3 of 12 prompts have their mask" in capsys.readouterr().out
    other = write_prompts(tmp_path / "other.jsonl", ROWS[:-1])
    for more, words in (
        (["--prompts", other], "--prompts: "),
        ([], "-> not set"),
        (["--prompts", prompts, "--prompt-masks", "best"], "--prompt-masks: one -> best"),
    ):
        assert main(*common, *more) == 2
        assert words in capsys.readouterr().err
    prompts.unlink()
    assert main(*common, "--prompts", prompts) == 0


def test_a_dry_run_times_the_prompts(
    main: Callable[..., int], photos: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """What is said is about them, and nothing is written."""
    prompts = write_prompts(tmp_path / "p.jsonl", ROWS)
    assert main("label", "--input", photos, "--output", "out", "--model", model_folder, "--prompts", prompts, "--dry-run") == 0
    answer = capsys.readouterr()
    assert "12 prompts for 3 images; 2 name no image of this run" in answer.err
    assert "12 images" in answer.out
    assert not Path("out").exists()


def test_workers_and_deaths_change_no_byte(
    cluster: Cluster, run_jobs: RunJobs, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker without Ray, undisturbed; two, of which one is killed and the job stopped and started again: equal parts."""
    photos = make_slow(tmp_path / "slow", count=8)
    rows = [
        {"image": f"{number}.png", "box_xyxy": [number, 5, 30 + extra, 35], "category_id": extra}
        for extra in range(3)
        for number in range(8)
    ]
    prompts = write_prompts(tmp_path / "p.jsonl", [*rows, {"image": "gone.png", "points_xy": [[1, 1]]}])
    command = ["label", "--input", photos, "--prompts", prompts, "--model", model_folder, "--images-per-shard", 2]
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_ENGINE_SLOW_S", "0")
        label_prompts(photos, prompts, tmp_path / "alone", model_folder, images_per_shard=2)

    driver = start_jobs(*command, "--output", tmp_path / "out", "--workers", 2, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out" / "images").exists() and list((tmp_path / "out" / "images").glob("part-*")))
    os.kill(wait_until(lambda: find_workers(cluster.process.pid))[0], signal.SIGKILL)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    again = run_jobs(*command, "--output", tmp_path / "out", "--workers", 2)
    assert again.returncode == 0, again.stderr
    assert "24 of 25 prompts have their mask; not: 1 missing" in again.stdout
    assert read_parts(tmp_path / "out") == read_parts(tmp_path / "alone")
    assert run_jobs("verify", tmp_path / "out").returncode == 0


def test_prompts_of_an_image_that_kills_its_workers_have_their_rows(
    cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path
) -> None:
    """Set aside with the image; those of others are answered."""
    for number, colour in enumerate([None, fake_engine.EXITS, None]):
        write_picture(tmp_path / "photos" / f"{number}.png", seed=number, colour=colour)
    rows = [{"image": f"{number}.png", "points_xy": [[20, 20]]} for number in range(3)]
    prompts = write_prompts(tmp_path / "p.jsonl", rows)
    where = ("--input", tmp_path / "photos", "--prompts", prompts, "--output", tmp_path / "out", "--model", model_folder)
    answer = run_jobs("label", *where, "--workers", 1, "--max-error-rate", 1)
    assert answer.returncode == 0, answer.stderr
    assert pd.read_parquet(tmp_path / "out" / "prompts")["error_kind"].fillna("").tolist() == ["", "worker_died", ""]
    assert run_jobs("verify", tmp_path / "out").returncode == 0


def test_a_prompt_survives_its_tables() -> None:
    """What is planned is what is read: also NaN, which is unlike itself."""
    from labeler.prompt_rows import plan_to_batch, values_to_prompt

    prompt = Prompt(prompt_id=3, image="a", box_xyxy=(1.0, 2.0, 3.0, 4.0), points_xy=((1.0, 2.0),), point_labels=(0,))
    (values,) = plan_to_batch([prompt], shard=0).to_pylist()
    assert values_to_prompt(values) == prompt
