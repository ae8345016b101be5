"""Files of prompts: what each kind says, and that one odd row is that row's error and nobody else's."""

import itertools
import json
import math
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


def test_sizes_and_ids_may_be_written_as_pandas_does(tmp_path: Path) -> None:
    """A column of whole numbers with a gap is one of 640.0 and NaN: a size all the same, and an id."""
    path = tmp_path / "p.csv"
    path.write_text("image,box_xyxy,width,height\na.png,1 2 3 4,640.0,480.0\nb.png,1 2 3 4,,\nc.png,1 2 3 4,inf,nan\n")
    assert [prompt.frame_hw for prompt in read(path)] == [(480, 640), None, None]
    coco = {"images": [], "annotations": [{"id": 17.0, "image_id": 1, "bbox": [1, 2, 3, 4]}], "categories": []}
    (tmp_path / "p.json").write_text(json.dumps(coco))
    assert [prompt.source_id for prompt in read(tmp_path / "p.json")] == ["17"]


def test_nan_in_a_row_is_what_is_not_there(tmp_path: Path) -> None:
    """As ``json.dumps`` writes a row of pandas. A corner that is not there is still an error."""
    gaps = dict.fromkeys(("id", "category", "category_id", "points_xy", "point_labels", "width", "height"), math.nan)
    rows = [{"image": "a.png", "box_xyxy": [1, 2, 3, 4], **gaps}, {"file_name": "b.png", "x0": 1.0, "y0": math.nan}]
    jsonl = write_jsonl(tmp_path / "p.jsonl", [rows[0], {"image": math.nan, **rows[1]}])
    for path in (jsonl, write_parquet(tmp_path / "p.parquet", rows)):
        file = open_file(path)
        whole, broken = file.read_prompts()
        assert whole == Prompt(prompt_id=1, image="a.png", box_xyxy=(1.0, 2.0, 3.0, 4.0))
        assert (broken.image, broken.error and broken.error.kind) == ("b.png", "malformed")
        assert file.categories == []


def test_names_have_their_numbers_in_whatever_order_rows_come(tmp_path: Path) -> None:
    """By the alphabet, after those that rows give: so a training and a validation file agree."""
    rows = [{"image": "a.png", "box_xyxy": [1, 2, 3, 4], "category": name} for name in ("dog", "ant", "cat")]
    expected = [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
    for number, order in enumerate(itertools.permutations(rows)):
        file = open_file(write_jsonl(tmp_path / f"{number}.jsonl", list(order)))
        assert {prompt.category_id for prompt in file.read_prompts()} == {1, 2, 3}
        assert file.categories == expected


def test_odd_values_of_coco_files(tmp_path: Path) -> None:
    """A category without a name is called by its number; 0 as text means that it is no crowd."""
    annotations = [
        {"id": n, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], "iscrowd": c} for n, c in ((1, "0"), (2, "1"))
    ]
    coco = {"images": [], "annotations": annotations, "categories": [{"id": 5, "name": None}, {"id": 6, "name": ""}]}
    (tmp_path / "p.json").write_text(json.dumps(coco))
    file = open_file(tmp_path / "p.json")
    assert [prompt.error and prompt.error.kind for prompt in file.read_prompts()] == [None, "crowd"]
    assert [category["name"] for category in file.categories] == ["5", "6"]


def test_long_cells_of_a_csv(tmp_path: Path) -> None:
    """A column of masks beside the boxes is no fault of theirs."""
    (tmp_path / "p.csv").write_text(f"image,box_xyxy,rle\na.png,1 2 3 4,{'x' * 200_000}\n")
    assert read(tmp_path / "p.csv")[0].box_xyxy == (1.0, 2.0, 3.0, 4.0)
