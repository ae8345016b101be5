"""``python -m jobs bench``: real workers, measured at the same time, and what the table says of them."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.bench import BenchFigures, Split, SplitFigures, describe_bench, plan_splits
from jobs.cli import main
from labeler.images import encode_png
from labeler.speed import count_flops, measure_product_speed


def make_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_split_is_measured_and_the_best_is_named(prototype_folder: Path, tmp_path: Path) -> None:
    """One wide worker, then two narrow ones; each line has rate, memory and cost, and the flags are those of the faster."""
    photos = make_photos(tmp_path / "photos", 2)
    command = [sys.executable, "-m", "jobs", "bench", "--model", str(prototype_folder), "--images", str(photos)]
    command += ["--cpus", "2", "--seconds", "1", "--price", "0.05", "--points-per-side", "4"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    rows = re.findall(r"^ +(\d) x (\d) +([\d.e+-]+) .* (\d+) MiB +(\d+)% +([\d.e+-]+)$", answer.stdout, re.MULTILINE)
    assert [(int(row[0]), int(row[1])) for row in rows] == [(1, 2), (2, 1)]
    for _workers, _threads, rate, memory_mib, share, cost in rows:
        assert 100 < int(memory_mib) < 2000
        assert int(share) > 0
        assert float(cost) == pytest.approx(2 * 0.05 * 1000 / float(rate) / 3600, rel=0.01)
    best = max(rows, key=lambda row: float(row[2]))
    assert f"--cpus-per-worker {best[1]}, with room for {best[0]} worker" in answer.stdout
    assert "1 x 2: labeling" in answer.stderr


def test_what_can_not_be_measured_is_said(prototype_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such folder, one without images, an option out of range, no such model: exit 2 and a sentence."""
    (tmp_path / "empty").mkdir()
    bench = ["bench", "--model", str(prototype_folder)]
    for flags, message in [
        (["--images", str(tmp_path / "nowhere")], "there is no folder"),
        (["--images", str(tmp_path / "empty")], "none of the 0 files"),
        (["--points-per-side", "0"], "points-per-side"),
        (["--seconds", "0"], "seconds"),
    ]:
        assert main([*bench, *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["bench", "--model", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_cpus", "expected"),
    [(1, [(1, 1)]), (2, [(1, 2), (2, 1)]), (6, [(1, 6), (3, 2), (6, 1)]), (7, [(1, 7), (3, 2), (7, 1)])],
)
def test_splits_fill_the_cpus(num_cpus: int, expected: list[tuple[int, int]]) -> None:
    """From one wide worker to one a CPU, by halves; never more threads than CPUs."""
    assert plan_splits(num_cpus) == [Split(*pair) for pair in expected]


def test_cost_and_best_come_from_the_rate() -> None:
    """At 0.1 images a second, two cores of 0.36 an hour label 1000 images for 2; without a price in 5.556 hours of a core."""
    row = SplitFigures(Split(2, 1), 0.1, 4, 8, (0.1, 5.0, 10.0, 1.0), 2**30, 0.5)
    slower = SplitFigures(Split(1, 2), 0.09, 2, 4, (0.1, 3.0, 7.0, 1.0), 2**30, 0.4)
    figures = BenchFigures(2, 3.0, 1.5, (slower, row))
    assert figures.best is row
    text = describe_bench(figures, price=0.36)
    assert re.search(r"2 x 1 .* 2$", text, re.MULTILINE)
    assert "2 masks an image" in text
    assert re.search(r"core-hours for 1000 images\n.* 6\.173\n.* 5\.556$", describe_bench(figures, price=None), re.MULTILINE)


def test_arithmetic_is_counted_from_the_graphs(prototype_folder: Path) -> None:
    """The encoder's products, counted by hand from its architecture, and a prompt's, which are far fewer."""
    tokens, width, depth = 256, 240, 6
    linear = 2 * tokens * width * width * (4 + 2 * 3) * depth  # query, key, value, output; an MLP of 3 times the width
    encoder = count_flops(prototype_folder, graph="encoder")
    assert linear < encoder < 1.6 * linear
    prompt = count_flops(prototype_folder, graph="prompts")
    assert 0.001 * encoder < prompt < 0.1 * encoder


def test_matrix_products_have_a_speed() -> None:
    """However short it is measured."""
    assert 0 < measure_product_speed(threads=1, seconds=0.01) < math.inf
