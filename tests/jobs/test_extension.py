"""What is new in an input is added to a run, and nothing that stands is touched."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fakes import PATHS, ROOT, freeze, label_arguments, make_slow, read_masks, start_jobs, wait_until, write_picture

import jobs.cli
import jobs.ordering
import jobs.parts
import jobs.plan
from jobs.extension import find_new_images
from jobs.options import Selection
from jobs.ordering import sort_refs
from jobs.plan import RunRecord, extend_run, freeze_run, read_run, read_shard
from jobs.refs import ImageRef, Listing
from jobs.sources import list_images
from labeler import storage

RunJobs = Callable[..., subprocess.CompletedProcess[str]]

SPEC = tuple(jobs.plan.RunSpec.model_fields)


def list_names(names: list[str], *, begin: int = 0) -> Listing:
    refs = (ImageRef(uri=f"x:{number}", file_name=name) for number, name in enumerate(names, start=begin))
    source, num_images = sort_refs(refs)
    return Listing(num_images=num_images, skipped={}, num_not_selected=0, source=source)


def read_plan(output: str, record: RunRecord) -> list[tuple[int, int, str, str]]:
    shards = ((shard, read_shard(output, record, shard)) for shard in range(record.num_shards))
    return [(image.image_id, shard, image.ref.file_name, image.ref.uri) for shard, images in shards for image in images]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_new_is_what_a_counter_says(
    monkeypatch: pytest.MonkeyPatch, photos: Path, model_folder: Path, tmp_path: Path, seed: int
) -> None:
    """Names that come often, in blocks that cut them anywhere, through several extensions, some of nothing new.

    The oracle counts names in memory. What was planned keeps its id and shard; new images come sorted, after the others.
    """
    monkeypatch.setattr(jobs.ordering, "_IMAGES_PER_RUN", 31)
    monkeypatch.setattr(jobs.ordering, "_IMAGES_PER_BLOCK", 5)
    monkeypatch.setattr(jobs.parts, "_IMAGES_PER_PLAN_PART", 12)
    draw = random.Random(seed)
    words = ["a", "b/é", "same", "same", "same", *(f"w{number}" for number in range(30))]
    names = draw.choices(words, k=90)
    output = str(tmp_path / "run")
    spec = jobs.plan.RunSpec(**{name: getattr(freeze(photos, tmp_path / "other", model_folder), name) for name in SPEC})
    record = freeze_run(output, spec, images_per_shard=3, listing=list_names(names), model_folder=model_folder)
    known, plan = Counter(names), read_plan(output, record)
    for more in (7, 0, 60):
        names = draw.choices(words, k=20) + draw.choices([*words, "z", "0"], k=100 + more) if more else names
        new = find_new_images(list_names(names), output=output, record=record)
        found = [ref.file_name for ref in new.read_refs()]
        expected = sorted((Counter(names) - known).elements(), key=str.encode)
        assert (found, new.num_images, new.num_known) == (expected, len(expected), len(names) - len(expected))
        if not more:
            assert found == []
            continue
        record = extend_run(output, record, listing=new, check=lambda: None)
        assert read_run(output) == record
        known += Counter(found)
        before, plan = plan, read_plan(output, record)
        assert plan[: len(before)] == before
        assert [image_id for image_id, *_ in plan] == list(range(1, record.num_images + 1))
        assert [name for _, _, name, _ in plan[len(before) :]] == expected
        assert {count for shard, count in Counter(shard for _, shard, *_ in plan).items() if shard != plan[-1][1]} <= {1, 2, 3}


def test_the_later_ones_of_a_name_are_the_new_ones(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """A list that names an image once more gives one row more, the last one's."""
    listing = list_names(["a", "b"])
    spec = jobs.plan.RunSpec(**{name: getattr(freeze(photos, tmp_path / "other", model_folder), name) for name in SPEC})
    output = str(tmp_path / "run")
    record = freeze_run(output, spec, images_per_shard=2, listing=listing, model_folder=model_folder)
    new = find_new_images(list_names(["b", "a", "a", "a"], begin=10), output=output, record=record)
    assert [ref.uri for ref in new.read_refs()] == ["x:12", "x:13"]


def test_a_run_is_extended_from_end_to_end(
    cluster: object,
    run_jobs: RunJobs,
    photos: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Old files stay byte for byte; status, verify and an export read the whole; afterwards no --extend is needed.

    Nothing new is said and ends as the run did; whatever else was frozen stays frozen.
    """

    def run_here(*arguments: object) -> tuple[int, str]:
        code = jobs.cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    monkeypatch.setattr(jobs.cli, "ENGINE", "fake_engine:DiscEngine")
    out, options = tmp_path / "out", ("--workers", 1, "--images-per-shard", 4, "--max-error-rate", 0.5, "--exclude", "a/x*")
    common = label_arguments(photos, out, model_folder, *options)
    assert run_jobs(*common).returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("part-*")}

    code, said = run_here(*common, "--extend")
    assert (code, "nothing new to label; 12 are in the run already" in said) == (0, True)
    assert {path: path.read_bytes() for path in out.rglob("part-*")} == before

    for name in ("a/zz.png", "0.png", "a/x excluded.png"):
        write_picture(photos / name, seed=len(name))
    assert "12 of 12 images done" in run_here(*common)[1]
    assert "2 images, " in run_here(*common, "--extend", "--dry-run")[1]
    extended = run_jobs(*common, "--extend")
    assert extended.returncode == 0, extended.stderr
    assert "2 images to label; 12 are in the run already" in extended.stderr
    assert "14 of 14 images done" in extended.stdout
    assert before.items() <= {path: path.read_bytes() for path in out.rglob("part-*")}.items()
    images = pd.read_parquet(out / "images").sort_values("image_id")
    assert images["image_id"].tolist() == list(range(1, 15))
    assert images["file_name"].tolist()[12:] == ["0.png", "a/zz.png"]
    assert json.loads((out / "run.json").read_text())["extensions"][0]["num_images"] == 2

    assert run_here(*common)[0] == 0
    assert "14 of 14 images done in 4 of 4 shards" in run_here("status", out)[1]
    assert run_here("verify", out)[0] == 0
    export = [sys.executable, "-m", "export", "coco", str(out), str(tmp_path / "coco.json")]
    subprocess.run(export, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 12  # Two files are broken.

    code, said = run_here(*label_arguments(photos, out, model_folder, *options[:-1], "b/*", "--extend"))
    assert (code, "--exclude" in said) == (2, True)
    code, said = run_here(*common, "--extend", "--limit", 3)
    assert (code, "--extend" in said) == (2, True)


def test_a_stopped_run_is_extended_and_one_in_work_is_not(
    cluster: object, run_jobs: RunJobs, model_folder: Path, tmp_path: Path
) -> None:
    """While a driver holds the run --extend is refused with exit 1; once it was stopped, old and new images are labeled."""
    slow = make_slow(tmp_path / "slow")
    common = label_arguments(slow, tmp_path / "out", model_folder, "--workers", 1, "--images-per-shard", 2)
    first = start_jobs(*common, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "out" / "run.json").exists())
    write_picture(slow / "10.png", seed=10)
    refused = run_jobs(*common, "--extend")
    assert (refused.returncode, "another driver is at work" in refused.stderr) == (1, True)
    wait_until(lambda: list((tmp_path / "out" / "images").glob("part-*")))
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 143
    done = run_jobs(*common, "--extend")
    assert done.returncode == 0, done.stderr
    images = pd.read_parquet(tmp_path / "out" / "images")
    assert images["file_name"].tolist() == [*(f"{number}.png" for number in range(8)), "10.png"]
    assert run_jobs("verify", tmp_path / "out").returncode == 0


def test_killed_in_the_middle_of_extending(
    label_here: Callable[..., Path], photos: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL when all but run.json is written: the run is the old one, whole; the next extension may be a smaller one."""
    monkeypatch.setattr(jobs.cli, "ENGINE", "fake_engine:DiscEngine")
    output = label_here()
    before = read_masks(output)
    for number in range(20, 29):
        write_picture(photos / f"{number}.png", seed=number)
    kill = (
        "import os, signal, sys, jobs.cli, jobs.parts, jobs.plan\n"
        "jobs.parts._IMAGES_PER_PLAN_PART = 5\n"
        "jobs.plan._write_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "jobs.cli.main(sys.argv[1:])\n"
    )
    arguments = [str(argument) for argument in label_arguments(photos, output, model_folder, "--extend")]
    killed = subprocess.run([sys.executable, "-c", kill, *arguments], env={**os.environ, **PATHS}, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((output / "plan").glob("part-*"))) == 3
    (output / "lease.json").unlink()
    assert jobs.cli.main(["verify", str(output)]) == 0
    assert read_masks(output) == before

    for number in range(21, 29):
        (photos / f"{number}.png").unlink()
    record = read_run(str(output))
    assert record is not None
    assert record.num_images == 12
    listing = list_images(storage.path_to_uri(photos), selection=Selection())
    new = find_new_images(listing, output=str(output), record=record)
    record = extend_run(str(output), record, listing=new, check=lambda: None)
    assert [image.ref.file_name for image in read_shard(str(output), record, 3)] == ["20.png"]
    assert (record.num_images, record.num_shards) == (13, 4)
