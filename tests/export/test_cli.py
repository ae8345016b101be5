"""``python -m export``: exit codes and words."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.cli import main


def test_coco_says_what_it_wrote(make_run: Any, random_masks: Any, tmp_path: Path, capsys: Any) -> None:
    """Counts of what is in the file and of what was left out."""
    output = make_run([("a.jpg", (30, 40), random_masks((30, 40), 3)), ("b.jpg", None, [])], orientation=6)
    assert main(["coco", str(output), str(tmp_path / "coco.json"), "--min-area", "1"]) == 0
    words = capsys.readouterr().out
    assert "3 masks of 1 images" in words
    assert "1 failed images" in words
    assert "1 images carry an EXIF orientation" in words


def test_it_says_what_was_left_out_and_lost(make_run: Any, random_masks: Any, tmp_path: Path, capsys: Any) -> None:
    """Every filter by its name, the split, the polygons' loss, the files."""
    images = [(f"{i}.jpg", (30, 40), random_masks((30, 40), 3, seed=i)) for i in range(6)]
    output = make_run([*images, ("empty.jpg", (30, 40), [])])
    filters = ["--min-predicted-iou", "0.6", "--min-area", "10", "--drop-empty", "--val-fraction", "0.4"]
    assert main(["coco", str(output), str(tmp_path / "c.json"), "--segmentation", "polygon", *filters]) == 0
    words = capsys.readouterr().out
    for said in ("images to train", "to validate", "6 masks by --min-predicted-iou", "by --min-area", "1 images without masks"):
        assert said in words
    assert "% of IoU (median;" in words
    assert "in 2 files: c_train.json ... c_val.json" in words


@pytest.mark.parametrize(
    ("command", "file"), [("yolo", "data.yaml"), ("sa1b", "a.json"), ("labelme", "a.json"), ("masks", "a.png")]
)
def test_every_format_is_a_command(
    make_run: Any, random_masks: Any, tmp_path: Path, capsys: Any, command: str, file: str
) -> None:
    """With the same filters; into a folder that holds something else it is exit 2."""
    output = make_run([("a.jpg", (30, 40), random_masks((30, 40), 3)), ("b.jpg", None, [])])
    assert main([command, str(output), str(tmp_path / "out"), "--max-masks-per-image", "2"]) == 0
    assert "2 masks of 1 images" in capsys.readouterr().out
    assert (tmp_path / "out" / file).exists()
    assert main([command, str(output), str(tmp_path / "out")]) == 2
    assert "give a new folder" in capsys.readouterr().err


def test_the_page_is_a_preview(make_run: Any, random_masks: Any, tmp_path: Path, capsys: Any) -> None:
    """``preview --html`` writes one file and says its size."""
    output = make_run([(f"{i}.jpg", (30, 40), random_masks((30, 40), 3)) for i in range(3)])
    assert main(["preview", str(output), str(tmp_path / "look"), "--html", "--limit", "2"]) == 0
    assert "2 images with 6 masks" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "look").iterdir()] == ["index.html"]


def test_an_unfinished_run_is_not_exported_by_accident(make_run: Any, tmp_path: Path, capsys: Any) -> None:
    """Exit 2 with the way out; with --partial the committed shards, and loud words; a preview needs no asking."""
    output = make_run([(f"{i}.jpg", (8, 8), []) for i in range(5)], missing=(1,))
    target = tmp_path / "coco.json"
    assert main(["coco", str(output), str(target)]) == 2
    words = capsys.readouterr().err
    assert "1 of its 3 shards are missing" in words
    assert "--partial" in words
    assert not target.exists()
    assert main(["coco", str(output), str(target), "--partial"]) == 0
    assert "PARTIAL" in capsys.readouterr().out
    assert [image["id"] for image in json.loads(target.read_text())["images"]] == [1, 2, 5]
    assert main(["preview", str(output), str(tmp_path / "look")]) == 0
    assert "not finished" in capsys.readouterr().out


def test_fiftyone_is_asked_for_by_name(make_run: Any, capsys: Any, monkeypatch: Any) -> None:
    """Where it is not installed that is exit 2 with the way out. (`make interop` runs it where it is.)"""
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    assert main(["fiftyone", str(make_run([("a.jpg", (8, 8), [])])), "photos"]) == 2
    assert "pip install fiftyone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ""),
        (["coco"], "OUTPUT"),
        (["coco", "RUN", "x.json", "--segmentation", "bitmap"], "--segmentation"),
        (["coco", "RUN", "x.json", "--max-polygon-loss", "1.5"], "--max-polygon-loss"),
        (["coco", "RUN", "x.json", "--val-fraction", "1"], "--val-fraction"),
        (["coco", "RUN", "x.json", "--images-per-file", "0"], "--images-per-file"),
        (["coco", "RUN", "x.json", "--min-area", "9", "--max-area", "8"], "no mask can stay"),
        (["coco", "RUN", "x.json", "--relative-to", "/nowhere"], "does not lie below"),
        (["yolo", "RUN", "x", "--images", "move"], "--images"),
        (["masks", "RUN", "x", "--max-masks-per-image", "0"], "--max-masks-per-image"),
        (["sa1b", "not/a/run", "x"], "not the output of a run"),
        (["labelme", "RUN"], "TARGET"),
        (["coco", "RUN", "x.json", "--min-predicted-iou", "nan"], "--min-predicted-iou"),
        (["coco", "RUN", "x.json", "--min-area", "-3"], "--min-area"),
        (["coco", "RUN", "x.json", "--frame", "sideways"], "--frame"),
        (["coco", "not/a/run", "x.json"], "not the output of a run"),
        (["preview", "RUN", "x", "--limit", "0"], "--limit"),
        (["polygons", "RUN", "x"], "polygons"),
    ],
)
def test_misuse_is_exit_2(
    arguments: list[str], words: str, make_run: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """The sentence names what is wrong, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    output = make_run([("a.jpg", (8, 8), [])])
    assert main([str(output) if a == "RUN" else a for a in arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
    assert not (tmp_path / "x").exists()


def test_a_target_that_cannot_be_written_is_exit_1(make_run: Any, tmp_path: Path, capsys: Any) -> None:
    """A file where a folder should be; the sentence names the target."""
    output = make_run([("a.jpg", (8, 8), [])])
    (tmp_path / "file").write_text("")
    assert main(["coco", str(output), str(tmp_path / "file" / "coco.json")]) == 1
    assert "coco.json" in capsys.readouterr().err


def test_the_module_runs() -> None:
    """``python -m export coco --help`` teaches with an example, in a process of its own that loads no engine and no Ray."""
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "export", "coco", "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m export coco labels photos.json" in answer.stdout
    loaded = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert not loaded & {"openvino", "ray", "torch", "numba"}
