"""Files of prompts: what each kind says, and that one odd row is that row's error and nobody else's."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.prompt_files import PromptFile
from labeler import storage
from labeler.errors import OptionsError
from labeler.prompts import Prompt

ROWS = [
    {"image": "a.png", "box_xyxy": [1, 2, 3.5, 4], "id": "first", "category": "cat"},
    {"image": "b/c.png", "points_xy": [[5, 6], [7, 8]], "point_labels": [1, 0], "category": "dog", "width": 9, "height": 7},
    {"image": "a.png", "box_xyxy": [1, 2, 3, 4], "points_xy": [[2, 3]], "category": "cat"},
]


def open_file(path: Path) -> PromptFile:
    return PromptFile(storage.path_to_uri(path))


def read(path: Path) -> list[Prompt]:
    return list(open_file(path).read_prompts())


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def write_csv(path: Path, _rows: list[Any]) -> Path:
    path.write_text(
        "image,id,category,box_xyxy,points_xy,point_labels,width,height\n"
        'a.png,first,cat,"1, 2, 3.5, 4",,,,\n'
        'b/c.png,,dog,,"[[5, 6], [7, 8]]",1 0,9,7\n'
        'a.png,,cat,"[1, 2, 3, 4]","[[2, 3]]",,,\n'
    )
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    return path


@pytest.mark.parametrize(("ending", "write"), [("jsonl", write_jsonl), ("csv", write_csv), ("parquet", write_parquet)])
def test_tables_of_all_kinds_say_the_same(ending: str, write: Any, tmp_path: Path) -> None:
    """Boxes, points (inside, where no label says otherwise), sizes, ids and categories, which get numbers by name."""
    file = open_file(write(tmp_path / f"prompts.{ending}", ROWS))
    first, second, third = file.read_prompts()
    assert first == Prompt(prompt_id=1, source_id="first", image="a.png", category_id=1, box_xyxy=(1.0, 2.0, 3.5, 4.0))
    assert (second.points_xy, second.point_labels) == (((5.0, 6.0), (7.0, 8.0)), (1, 0))
    assert (second.image, second.frame_hw, second.category_id, second.source_id) == ("b/c.png", (7, 9), 2, None)
    assert (third.box_xyxy, third.points_xy, third.point_labels) == ((1.0, 2.0, 3.0, 4.0), ((2.0, 3.0),), (1,))
    assert [third.category_id, *file.categories] == [1, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_coco_annotations_are_prompts(tmp_path: Path) -> None:
    """Wherever its lists stand in the file; boxes as corners; crowds are errors; categories as they are."""
    content = {
        "annotations": [
            {"id": 71, "image_id": 5, "category_id": 3, "bbox": [10, 20, 5, 6], "segmentation": [[1, 2] * 500]},
            {"id": 72, "image_id": 5, "category_id": 9, "bbox": [10, 20, 5, 6], "iscrowd": 1},
            {"id": 73, "image_id": 6},
            None,
        ],
        "info": {"images": [1, 2]},
        "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}],
        "images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}, {"id": "x", "file_name": "b.png"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    file = open_file(tmp_path / "boxes.json")
    good, crowd, boxless, nothing = file.read_prompts()
    assert (good.source_id, good.image, good.category_id, good.box_xyxy) == ("71", "5", 3, (10.0, 20.0, 15.0, 26.0))
    assert [prompt.error and prompt.error.kind for prompt in (good, crowd, boxless, nothing)] == [
        None, "crowd", "malformed", "malformed",
    ]  # fmt: skip
    assert [(image.ref, image.name, image.frame_hw) for image in file.read_images()] == [
        ("5", "a.png", (30, 40)),
        ('"x"', "b.png", None),
    ]
    assert file.categories == [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 9, "name": "9"}]


def test_one_id_may_be_spelled_as_numbers_are(tmp_path: Path) -> None:
    """7, 7.0 and "7", of images and of categories; "07" is a name."""
    content = {
        "annotations": [{"id": n, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4]} for n, i in enumerate((7, 7.0, "7"))],
        "categories": [{"id": 1.0, "name": "cup"}],
        "images": [{"id": i, "file_name": "a.png"} for i in ("7", "07", 0)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    file = open_file(tmp_path / "boxes.json")
    assert [image.ref for image in file.read_images()] == ["7", '"07"', "0"]
    assert [(prompt.image, prompt.category_id) for prompt in file.read_prompts()] == [("7", 1)] * 3
    assert file.categories == [{"id": 1, "name": "cup"}]


def test_a_category_keeps_its_number_and_its_name(tmp_path: Path) -> None:
    """Where rows have both, either or none; a name without a number gets one that no later row uses."""
    given = [(None, "dog"), (3, None), (3, "cup"), (None, "cup"), (1, None), (3, "mug"), (None, "mug"), (None, None)]
    box = {"image": "a.png", "box_xyxy": [1, 2, 3, 4]}
    rows = [{**box, "category_id": number, "category": name} for number, name in given]
    for path in (write_jsonl(tmp_path / "p.jsonl", rows), write_parquet(tmp_path / "p.parquet", rows)):
        file = open_file(path)
        prompts = list(file.read_prompts())
        assert [prompt.category_id for prompt in prompts] == [4, 3, 3, 3, 1, None, 5, None]
        assert [bool(prompt.error) for prompt in prompts].index(True) == 5
        assert "category_id 3 is 'cup' elsewhere, but here 'mug'" in str(prompts[5].error)
        assert {category["id"]: category["name"] for category in file.categories} == {1: "1", 3: "cup", 4: "dog", 5: "mug"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"box_xyxy": [1, 2, 3]}, "is not 4 numbers"),
        ({"box_xyxy": "left"}, "is not 4 numbers"),
        ({"box_xyxy": 7}, "is no list"),
        ({"box_xywh": [1, 2, None, 4]}, "is not 4 numbers"),
        ({"points_xy": [[1, 2, 3]]}, "is not 2 numbers"),
        ({"points_xy": [[1, 2]], "point_labels": [0.5]}, "no whole number"),
        ({"box_xyxy": [1, 2, 3, 4], "category_id": "cat"}, "category_id 'cat' is no whole number"),
        ({"box_xyxy": "[1, 2"}, "is no list"),
    ],
)
def test_an_odd_row_is_its_own_error(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    """The one after it is read."""
    odd, good = read(write_jsonl(tmp_path / "p.jsonl", [{"image": "a.png", **row}, ROWS[0]]))
    assert odd.error is not None
    assert odd.error.kind == "malformed"
    assert words in odd.error.reason
    assert good.error is None


def test_halves_of_characters_are_harmless(tmp_path: Path) -> None:
    """JSON can escape them, no table or file can hold them."""
    (tmp_path / "p.jsonl").write_text(
        '{"image": "a\\udcff.png", "id": "\\ud800", "category": "\\udcff", "points_xy": "\\udcff"}'
    )
    (prompt,) = read(tmp_path / "p.jsonl")
    assert (prompt.image, prompt.source_id) == ("a\\udcff.png", "\\ud800")
    assert prompt.error is not None
    prompt.error.reason.encode()
    categories = [{"id": 1, "name": "\ud800"}]
    (tmp_path / "p.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    file = open_file(tmp_path / "p.json")
    assert list(file.read_prompts()) == []
    assert file.categories == [{"id": 1, "name": "\\ud800"}]


def test_nan_is_a_number_here(tmp_path: Path) -> None:
    """What is wrong with it is said where it is asked; other spellings of a box are the same box."""
    (tmp_path / "p.csv").write_text("image,x0,y0,x1,y1\na.png,1,nan,3,4\nb.png,,,,\n")
    first, second = read(tmp_path / "p.csv")
    assert first.box_xyxy is not None
    assert first.box_xyxy[1] != first.box_xyxy[1]
    assert second.box_xyxy is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "image,bbox\na.png,1 2 3 4\n", "call it box_xyxy or box_xywh"),
        ("p.csv", "picture,box_xyxy\na.png,1 2 3 4\n", "no column that names the image"),
        ("p.csv", "image,label\na.png,cat\n", "no column of boxes or points"),
        ("p.json", '{"images": []}', "no list of annotations"),
        ("p.json", "[1, 2]", "no COCO file"),
        ("p.jsonl", "{", "no JSON"),
        ("p.txt", "a.png", "neither a COCO .json nor a table"),
        ("p.parquet", "PAR1", "no Parquet file"),
    ],
)
def test_a_file_that_is_none_is_refused(name: str, content: str, words: str, tmp_path: Path) -> None:
    """With the words that mend it."""
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionsError, match=words):
        read(tmp_path / name)
