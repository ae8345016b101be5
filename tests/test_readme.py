"""What the documents show of Python runs as it stands there, on a run of the embedded model; links and names lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import labeler
from jobs.options import Selection
from jobs.plan import RunSpec, describe_model, freeze_run
from jobs.sources import list_images
from jobs.worker import ShardLabeler
from labeler import storage
from labeler.images import encode_png
from labeler.model_folder import read_model_info
from labeler.models import find_model
from labeler.options import resolve_mask_options

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(path for name in ("labeler", "jobs", "export", "benchmarks", "training") for path in (ROOT / name).rglob("*.md")),
]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``labels`` is a run: two pictures with a bright square each, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = np.full((300, 400, 3), (210, 205, 190), np.uint8)
        pixels[60:200, 50 + 100 * number : 190 + 100 * number] = (180, 40, 40)
        (folder / "photos" / f"{number}.png").write_bytes(encode_png(pixels))
    (folder / "photos" / "page.png").write_text("<html>not found</html>")
    model, output = find_model("tiny"), str(folder / "labels")
    info = read_model_info(model)
    spec = RunSpec(
        input=storage.path_to_uri(folder / "photos"),
        selection=Selection(),
        options=resolve_mask_options({"points_per_side": 8}, model_defaults=info.defaults),
        model=describe_model(info, name="tiny"),
    )
    listing = list_images(spec.input, selection=spec.selection)
    freeze_run(output, spec, images_per_shard=2, listing=listing, model_folder=model)
    worker = ShardLabeler(output, threads=1, retries=0, engine="labeler.engine:Engine")
    worker.load()
    for shard in range(2):
        for _event in worker.label_shard(shard):
            pass
    return folder


def run_block(needs: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the one block that imports this; gives the names it leaves."""
    (code,) = (block for block in BLOCKS if f"import {needs}" in block or f"from {needs} import" in block)
    monkeypatch.chdir(home)
    names: dict[str, Any] = {}
    exec(compile(code, "a page's block", "exec"), names)
    return names


def test_every_block_is_run_here() -> None:
    """By what it imports: a new one needs a test of its own."""
    assert [re.findall(r"^(?:import|from) ([\w.]+)", block, re.MULTILINE)[0] for block in BLOCKS] == [
        "pandas",
        "pyarrow.dataset",
        "datasets",
        "pathlib",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To files that are there, and to headings that stand in them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        place, _, heading = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], link


def test_a_run_is_read_with_pandas(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, images with their failures, and the pixels of a mask."""
    names = run_block("pandas", home, monkeypatch)
    images, large, pixels = names["images"], names["large"], names["pixels"]
    assert images["status"].value_counts().to_dict() == {"ok": 2, "error": 1}
    assert len(names["masks"]) == images["num_masks"].sum() >= len(large) > 0
    assert (pixels.shape, pixels.dtype, int(pixels.sum())) == ((300, 400), np.uint8, large["area"].iloc[0])


def test_a_run_is_read_with_pyarrow(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rows and columns that are asked for."""
    table = run_block("pyarrow.dataset", home, monkeypatch)["table"]
    assert table.column_names == ["file_name", "bbox", "area"]
    scores = pq.read_table(home / "labels" / "masks")["predicted_iou"].to_numpy()
    assert len(table) == (scores > 0.7).sum()


def test_one_image_is_labeled_from_python(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names of the door alone."""
    names = run_block("pathlib", home, monkeypatch)
    masks, info = names["masks"], names["info"]
    assert len(masks) > 0
    assert masks.image_hw == (300, 400)
    assert names["options"].pred_iou_thresh == info.defaults["pred_iou_thresh"]


def test_a_run_is_a_dataset_of_hugging_face(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where that package is installed."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    pytest.importorskip("datasets", reason="needs datasets")
    masks = run_block("datasets", home, monkeypatch)["masks"]
    assert len(masks) > 0


def test_every_name_of_the_door_is_there() -> None:
    """In a process that has imported nothing else, each by itself, and no other name."""
    assert labeler.__all__
    code = "import importlib, sys; print(getattr(importlib.import_module('labeler'), sys.argv[1]).__name__)"
    for name in labeler.__all__:
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, cwd=ROOT)
        assert (done.stdout, done.returncode) == (f"{name}\n", 0), done.stderr
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = labeler.nothing_of_the_kind
