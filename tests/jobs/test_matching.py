"""Which image of a run a prompt is for, and what is said of a file before days are spent on it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import write_picture
from prompt_fakes import write_prompts

from jobs.options import Selection
from jobs.prompts import describe_prompts, match_prompts
from jobs.refs import batch_to_refs
from jobs.sources import list_images
from labeler import storage
from labeler.options import PromptOptions

BOX = [1, 2, 10, 12]


def match(images: Path, prompts: Path, *, root: Path | None = None) -> tuple[dict[str, list[Any]], list[str | None], str]:
    """Prompts' own ids by image, all images' ids in their order, and what was said."""
    listing = list_images(
        storage.path_to_uri(images), selection=Selection(images_root=None if root is None else storage.path_to_uri(root))
    )
    said: list[str] = []
    asked = describe_prompts(str(prompts), options=PromptOptions(), frozen=None)
    with match_prompts(asked, listing=listing, say=said.append) as matched:
        assert matched is not None
        refs = [ref for batch in matched.name_images(listing).source for ref in batch_to_refs(batch)]
        found = {
            f"{number} {ref.file_name}": [prompt.source_id or prompt.prompt_id for prompt in matched.read_image(number)]
            for number, ref in enumerate(refs, start=1)
        }
    return found, [ref.source_id for ref in refs], said[0]


def write_coco(path: Path, names: dict[int, str], *, annotations: list[dict[str, Any]] | None = None) -> Path:
    """One box an image, of the image's id, unless told otherwise."""
    images = [{"id": number, "file_name": name, "width": 67, "height": 45} for number, name in names.items()]
    given = [{"id": number, "image_id": number, "category_id": 1, "bbox": BOX} for number in names]
    categories = [{"id": 1, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations or given, "categories": categories}))
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three pictures."""
    for seed, name in enumerate("abc"):
        write_picture(tmp_path / "photos" / f"{name}.png", seed=seed)
    return tmp_path / "photos"


def test_a_photo_that_is_listed_twice_keeps_each_ids_boxes(three: Path, tmp_path: Path) -> None:
    """Two files of annotations were put together: with it as --input too, each id is an image with its own prompts."""
    coco = write_coco(tmp_path / "both.json", {1: "a.png", 2: "a.png", 3: "./b.png"})
    found, ids, _ = match(coco, coco, root=three)
    assert found == {"1 ./b.png": ["3"], "2 a.png": ["1"], "3 a.png": ["2"]}
    assert ids == ["3", "1", "2"]


def test_ids_are_the_prompts_file_s_not_the_list_s(three: Path, tmp_path: Path) -> None:
    """Whoever joins the export with the annotations looks for theirs."""
    with (three / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["uri", "id"], ["a.png", "img_0"], ["b.png", "img_1"], ["c.png", "img_2"]])
    found, ids, said = match(three / "list.csv", write_coco(tmp_path / "boxes.json", {7: "a.png", 8: "b.png", 9: "c.png"}))
    assert ids == ["7", "8", "9"]
    assert list(found.values()) == [["7"], ["8"], ["9"]]
    assert "count them" not in said


def test_a_dot_before_a_name_says_nothing(three: Path, tmp_path: Path) -> None:
    """``find .`` writes it, on either side."""
    (three / "list.txt").write_text("./a.png\nb.png\n")
    prompts = write_prompts(tmp_path / "p.jsonl", [{"image": "a.png", "box_xyxy": BOX}, {"image": "./b.png", "box_xyxy": BOX}])
    assert list(match(three / "list.txt", prompts)[0].values()) == [[1], [2]]


def test_accents_may_be_written_in_either_way(tmp_path: Path) -> None:
    """Macs take letters and accents apart, tools that label put them together; where both are there, each is meant."""
    together, apart = "Caf\u00e9.png", "Cafe\u0301.png"
    for seed, names in enumerate(((apart,), (together,), (together, apart))):
        folder = tmp_path / str(seed)
        for name in names:
            write_picture(folder / name, seed=seed)
        lines = write_prompts(folder / "p.jsonl", [{"image": name, "box_xyxy": BOX} for name in (together, apart)])
        found, _, _ = match(folder, lines)
        expected = {(apart,): [[1, 2]], (together,): [[1, 2]], (together, apart): [[2], [1]]}[names]
        assert list(found.values()) == expected


def test_what_is_lost_is_said_before_anything_is_labeled(three: Path, tmp_path: Path) -> None:
    """Ids of images, categories, names."""
    coco = write_coco(tmp_path / "two.json", {1: "a.png", 2: "b.png"})
    assert (
        "does not list all images of the run, each under a whole number, so exports count them from 1" in match(three, coco)[2]
    )
    rows = [{"image": "a.png", "box_xyxy": BOX, "label": "cat"}, {"image": "x.png", "box_xyxy": BOX, "label": "cat"}]
    said = match(three, write_prompts(tmp_path / "p.jsonl", rows))[2]
    assert "1 have no category (or category_id); their masks are called object" in said
    assert "1 name no image of this run, an error row each, such as x.png" in said
    assert "WARNING" not in said
    assert "count them" not in said


def test_what_can_not_be_asked_makes_no_category(three: Path, tmp_path: Path) -> None:
    """A row whose category is none is an error row: no class of its own for masks that will not be."""
    rows = [{"image": "a.png", "box_xyxy": BOX, "category_id": 1}, {"image": "b.png", "box_xyxy": BOX, "category_id": "x"}]
    assert "object" not in match(three, write_prompts(tmp_path / "p.jsonl", rows))[2]


def test_a_job_whose_prompts_all_failed_is_no_success(
    run_jobs: Callable[..., Any], cluster: object, three: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Although each image has its row: exit 3, for what comes next in a pipeline."""
    prompts = write_prompts(tmp_path / "p.jsonl", [{"image": "train\\a.png", "box_xyxy": BOX}])
    answer = run_jobs("label", "--input", three, "--output", "out", "--model", model_folder, "--prompts", prompts)
    assert answer.returncode == 3, answer.stderr
    assert "none of the 1 prompts has a mask" in answer.stderr
