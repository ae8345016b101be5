"""The command line: what is refused, what is said, what is written nowhere. No Ray is needed to say no."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import ROOT, freeze, label_arguments, make_model

import export.cli
import jobs.cli
from jobs.options import JobOptions, Selection
from labeler.errors import StorageError
from labeler.options import MaskOptions

HUGE = 10**19  # More than 64 bits hold.


def test_a_submitted_job_writes_to_no_folder_of_rays(
    main: Callable[..., int], photos: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A relative --output would lie where Ray unpacked the checkout, and go with it; an absolute one is as good as ever."""
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    command = ["label", "--input", photos, "--model", model_folder, "--dry-run", "--output"]
    assert main(*command, "labels") == 2
    assert "--output labels: in a submitted job that is a folder of Ray's own" in capsys.readouterr().err
    assert main(*command, tmp_path / "labels") == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--points-per-side", "0"], "--points-per-side: input should be greater than or equal to 1"),
        (["--pred-iou-thresh", "nan"], "--pred-iou-thresh"),
        (["--workers", "0"], "--workers"),
        (["--workers", HUGE], "--workers: input should be less than or equal to 100000"),
        (["--min-workers", HUGE], "--min-workers: input should be less than or equal to 100000"),
        (["--max-workers", HUGE], "--max-workers: input should be less than or equal to 100000"),
        (["--cpus-per-worker", HUGE], "--cpus-per-worker: input should be less than or equal to 4096"),
        (["--images-per-shard", HUGE], "--images-per-shard: input should be less than or equal to 1000000"),
        (["--min-mask-region-area", HUGE], "--min-mask-region-area: input should be less than or equal to 1000000000"),
        (["--include", os.fsdecode(b"\xff*")], "--include: must be UTF-8"),
        (["--exclude", os.fsdecode(b"\xff*")], "--exclude: must be UTF-8"),
        (["--keep-columns", os.fsdecode(b"\xff")], "--keep-columns: must be UTF-8"),
        (["--max-error-rate", "1.5"], "--max-error-rate"),
        (["--pointz-per-side", "3"], "--pointz-per-side"),
        (["--preset", "sa2b"], "--preset"),
        (["--point-grids", "none.json"], "--point-grids: can't read none.json"),
        (["--config", "none.toml"], "can't read none.toml"),
        (["--config", "bad.toml"], "bad.toml is not TOML"),
        (["--config", "unknown.toml"], "points_per_sid"),
        (["--config", "tables.toml"], "not below [label]"),
        (["--include", "*.gif"], "the selection leaves none of its 12 images"),
        (["--include", "[z-a]*"], "the selection leaves none of its 12 images"),
    ],
)
def test_misuse_is_exit_2_and_writes_nothing(
    main: Callable[..., int], more: list[Any], words: str, photos: Path, model_folder: Path, capsys: Any
) -> None:
    """One sentence that names the option."""
    Path("bad.toml").write_text("workers = = 2")
    Path("unknown.toml").write_text("points_per_sid = 3")
    Path("tables.toml").write_text("[label]\nworkers = 2")
    command = ["label", "--input", photos, "--output", "out", "--model", model_folder]
    assert main(*command, *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not Path("out").exists()


_LABEL: dict[str, Any] = {"--input": "photos", "--output": "out", "--model": "tiny"}


@pytest.mark.parametrize("text", ["", " \t"])
@pytest.mark.parametrize(
    ("command", "options", "name"),
    [
        *((["label"], _LABEL | {name: ""}, name) for name in (*_LABEL, "--prompts", "--config", "--images-root", "--limit")),
        (["status", ""], {}, "OUTPUT"),
        (["status", "out"], {"--failures": ""}, "--failures"),
        (["verify", ""], {}, "OUTPUT"),
        (["bench"], {"--model": ""}, "--model"),
        (["bench"], {"--model": "tiny", "--images": ""}, "--images"),
        (["coco", "", "coco.json"], {}, "OUTPUT"),
        *(([export, "out", ""], {}, "TARGET") for export in ("coco", "yolo", "sa1b", "labelme", "masks", "preview")),
        (["fiftyone", "out", ""], {}, "NAME"),
    ],
)
def test_an_unset_variable_is_not_the_current_folder(
    main: Callable[..., int], command: list[str], options: dict[str, str], name: str, text: str, photos: Path, capsys: Any
) -> None:
    """Of every command and option, however the text is empty; nothing is written there."""
    before = sorted(Path().rglob("*"))
    tokens = [token or text for token in [*command, *(word for option in options.items() for word in option)]]
    is_job = command[0] in {"label", "status", "verify", "bench"}
    assert (main(*tokens) if is_job else export.cli.main(tokens)) == 2
    assert f"error: {name} is empty: is a variable unset?" in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_an_empty_text_in_a_config_file_is_one_too(main: Callable[..., int], capsys: Any) -> None:
    """It is not the shell's there, and means as little."""
    Path("job.toml").write_text('input = "photos"\noutput = ""\nmodel = "tiny"\n')
    assert main("label", "--config", "job.toml") == 2
    assert "--output is empty" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["[z-a]*.png", "{a,b}/[z-a].png", "[!].png"])
def test_what_is_no_pattern_is_exit_2(main: Callable[..., int], pattern: str, photos: Path, capsys: Any) -> None:
    """It is named, as is what is wrong with it."""
    assert main("label", "--input", photos / pattern, "--output", "out", "--model", "tiny") == 2
    assert f"error: --input: {pattern} is no pattern: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--sample", "--max-pixels", "--retries", "--points-per-batch"])
def test_more_than_there_is_means_all(
    main: Callable[..., int], option: str, photos: Path, model_folder: Path, capsys: Any
) -> None:
    """However many digits a number has."""
    assert main(*label_arguments(photos, Path("out"), model_folder, "--dry-run", option, HUGE)) == 0
    assert "12 images" in capsys.readouterr().out


def test_a_model_whose_name_is_no_text(
    main: Callable[..., int], photos: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has its bytes as tables have those of images: JSON could not hold them."""
    folder = shutil.copytree(model_folder, os.fsdecode(b"100%\xff"))

    def stop(*_: object, **_how: object) -> None:
        raise StorageError("nothing is labeled here")

    monkeypatch.setattr(jobs.cli, "complete_run", stop)
    for _ in ("frozen", "resumed"):
        assert main(*label_arguments(photos, Path("out"), Path(folder))) == 1
        assert json.loads(Path("out/run.json").read_text())["model"]["name"] == "100%25%FF"


def test_what_is_not_there_is_said(main: Callable[..., int], photos: Path, capsys: Any) -> None:
    """No input, no run and no such model are exit 2; no command is the help and 2."""
    assert main("label", "--input", "none", "--output", "out", "--model", "m") == 2
    assert main("label", "--input", photos, "--output", "out", "--model", "no/model") == 2
    assert "no/model" in capsys.readouterr().err
    assert main("status", "out") == 2
    assert main("verify", "out") == 2
    assert "holds no run" in capsys.readouterr().err
    assert main() == 2


def test_a_resume_that_does_not_fit_is_exit_2(
    main: Callable[..., int], label_here: Callable[..., Path], photos: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """Other options, another model or selection: each difference old -> new. Options that change no mask may change."""
    output = label_here()
    assert main(*label_arguments(photos, output, model_folder, "--points-per-side", 3)) == 2  # Given twice.
    common = ["label", "--input", photos, "--output", output, "--stability-score-thresh", 0.5]
    other = make_model(tmp_path / "other", content="other")
    capsys.readouterr()
    assert main(*common, "--model", other, "--points-per-side", 4, "--limit", 3) == 2
    error = capsys.readouterr().err
    for line in ("--points-per-side: 3 -> 4", "--limit: not set -> 3", "--model: "):
        assert line in error
    assert "new --output" in error
    fits = ["--model", model_folder, "--points-per-side", 3, "--workers", 7, "--images-per-shard", 2, "--max-error-rate", 1]
    assert main(*common, *fits) == 0
    assert "--images-per-shard stays 5" in capsys.readouterr().err


def test_a_run_goes_on_where_its_model_folder_is_gone(
    main: Callable[..., int], photos: Path, tmp_path: Path, capsys: Any
) -> None:
    """It holds a copy: a new head of the cluster needs no other. A model of another name is not taken for it."""
    command = ["label", "--input", photos, "--output", "out", "--points-per-side", 3, "--stability-score-thresh", 0.5]
    model = make_model(tmp_path / "model 50%", content="discs")
    assert main(*command, "--model", model, "--dry-run") == 0
    freeze(photos, Path("out"), model)
    shutil.rmtree(model)
    capsys.readouterr()
    assert main(*command, "--model", model, "--dry-run") == 0
    assert "the run's own copy is used" in capsys.readouterr().err
    assert main(*command, "--model", tmp_path / "another", "--dry-run") == 2


def test_a_run_of_another_schema_is_refused(main: Callable[..., int], label_here: Callable[..., Path], capsys: Any) -> None:
    """Though its record looks like one of this version."""
    output = label_here()
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**record, "schema_version": record["schema_version"] + 1}))
    for command in ("status", "verify"):
        assert main(command, output) == 2
        assert "schema version" in capsys.readouterr().err


def test_a_config_file_sets_what_is_not_typed(main: Callable[..., int], photos: Path, model_folder: Path, capsys: Any) -> None:
    """Mask options, selection and job options alike; what is typed wins."""
    Path("job.toml").write_text('points-per-side = 3\nlimit = 5\nworkers = 2\nimages-per-shard = 1\ninclude = ["*.png"]\n')
    command = ["label", "--input", photos, "--output", "out", "--model", model_folder, "--dry-run", "--config", "job.toml"]
    assert main(*command, "--limit", "4") == 0
    answer = capsys.readouterr()
    assert "4 images" in answer.out
    assert "with 2 workers" in answer.out


def test_a_dry_run_says_how_long_and_writes_nothing(
    main: Callable[..., int], photos: Path, model_folder: Path, capsys: Any
) -> None:
    """Images, seconds an image, hours on these workers, of which no more count than there are shards."""
    dry = (*label_arguments(photos, Path("out"), model_folder), "--dry-run", "--images-per-shard", 3)
    assert main(*dry, "--workers", 3) == 0
    out = capsys.readouterr().out
    assert "12 images" in out
    assert "hours with 3 workers; nothing was written" in out
    assert not Path("out").exists()
    assert main(*dry, "--max-workers", 500) == 0
    assert "hours with 4 workers" in capsys.readouterr().out


def test_a_dry_run_counts_the_failed_images_that_would_be_labeled_again(
    main: Callable[..., int], label_here: Callable[..., Path], photos: Path, model_folder: Path, capsys: Any
) -> None:
    """Of these kinds alone, and beside what is left anyway."""
    output = label_here()
    dry = label_arguments(photos, output, model_folder, "--dry-run", "--retry-failed")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert main(*dry, "corrupt,timeout") == 0
    out = capsys.readouterr().out
    assert "2 failed images would be labeled again" in out
    assert "nothing else is left to do; nothing was written" in out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert main(*dry, "timeout") == 0
    assert capsys.readouterr().out == "nothing is left to do\n"
    (output / "images" / "part-0000002.parquet").unlink()
    assert main(*dry) == 0
    out = capsys.readouterr().out
    assert "2 failed images would be labeled again" in out
    assert "\n2 images, " in out


def test_a_model_that_is_called_wrong_is_a_wrong_option(main: Callable[..., int], photos: Path, capsys: Any) -> None:
    """Exit 2, so that nobody starts machines for it again; it says which names there are."""
    assert main(*label_arguments(photos, Path("out"), Path("vit_p"))) == 2
    assert "--model vit_p: neither one of tiny, vit_b, vit_l, vit_h, vit_t" in capsys.readouterr().err
    assert main(*label_arguments(photos, Path("out"), Path("x" * 300))) == 2
    assert "error: --model xxx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "expected", "words"),
    [
        ("ray://127.0.0.1:10001", 2, "a job does not run through Ray's client; submit it"),
        ("nobody", 1, "error: the Ray cluster at RAY_ADDRESS=nobody can't be joined: "),
    ],
)
def test_a_cluster_that_can_not_be_joined_is_named(
    main: Callable[..., int],
    photos: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    address: str,
    expected: int,
    words: str,
) -> None:
    """Ray's client is no way (exit 2, and how to go about it), nor is a cluster that is not there (exit 1): a sentence each."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(*label_arguments(photos, Path("out"), model_folder)) == expected
    assert words in capsys.readouterr().err


def test_help_teaches() -> None:
    """Every option is there, under the group that says whether it changes masks; no Ray or OpenVINO is loaded for it."""
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobs", "label", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    changing, _, others = answer.stdout.partition("Options that do not change masks")
    for model, text in ((MaskOptions, changing), (Selection, changing), (JobOptions, others)):
        for name in model.model_fields:
            assert f"--{name.replace('_', '-')}"[:24] in text, name
    assert "python -m jobs label --input photos --output labels --model vit_b" in " ".join(answer.stdout.split())
    loaded = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert not loaded & {"ray", "openvino", "torch"}
