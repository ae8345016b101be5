"""A box dataset becomes an instance-segmentation dataset: ids, categories and boxes are those that were given."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from prompt_fakes import label_prompts
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import export.cli

CATEGORIES = [{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "cup"}]
PHOTO_HW = (48, 64)


def make_dataset(folder: Path) -> dict[str, Any]:
    """Three photos, one of them turned by EXIF, and rectangles with their masks, as people would have drawn them."""
    (folder / "photos").mkdir()
    images, annotations = [], []
    for image_id, name in ((40, "z.png"), (10, "a.png"), (30, "turned.jpg")):
        exif = PillowImage.Exif()
        exif[0x0112] = 6 if image_id == 30 else 1
        PillowImage.fromarray(np.full((*PHOTO_HW, 3), image_id, np.uint8)).save(folder / "photos" / name, exif=exif)
        height, width = PHOTO_HW[::-1] if image_id == 30 else PHOTO_HW
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for number, (x, y, w, h) in enumerate([(4, 6, 20, 30), (10, 20, 30, 18)]):
            mask = np.zeros((height, width), np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            rle = coco_mask.encode(mask)
            annotations.append(
                {
                    "id": 1000 - image_id - number,
                    "image_id": image_id,
                    "category_id": CATEGORIES[number]["id"],
                    "bbox": [x, y, w, h],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def export_run(output: Path, target: Path) -> dict[str, Any]:
    assert export.cli.main(["coco", str(output), str(target)]) == 0
    content: dict[str, Any] = json.loads(target.read_text())
    return content


def test_boxes_in_masks_out(model_folder: Path, tmp_path: Path) -> None:
    """With an engine that fills boxes every mask is the one that was drawn, under its own ids, and COCOeval says so."""
    truth = make_dataset(tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps(truth))
    label_prompts(tmp_path / "photos", tmp_path / "boxes.json", tmp_path / "out", model_folder, engine="prompt_fakes:BoxEngine")
    made = export_run(tmp_path / "out", tmp_path / "coco.json")
    key = {a["id"]: a for a in truth["annotations"]}
    assert {a["id"]: (a["image_id"], a["category_id"]) for a in made["annotations"]} == {
        number: (a["image_id"], a["category_id"]) for number, a in key.items()
    }
    assert {image["id"]: image["file_name"] for image in made["images"]} == {10: "a.png", 30: "turned.jpg", 40: "z.png"}
    assert sorted(made["categories"], key=lambda c: -c["id"]) == CATEGORIES
    for annotation in made["annotations"]:
        other = key[annotation["id"]]
        assert annotation["bbox"] == pytest.approx(other["bbox"], abs=1)
        assert coco_mask.iou([annotation["segmentation"]], [other["segmentation"]], [0])[0, 0] > 0.9
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(tmp_path / "boxes.json"))
        names = ("image_id", "category_id", "segmentation")
        results = [{**{n: a[n] for n in names}, "score": a["predicted_iou"]} for a in made["annotations"]]
        judge = COCOeval(reference, reference.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert judge.stats[1] == 1.0


def test_ids_from_0_are_kept(model_folder: Path, tmp_path: Path) -> None:
    """Of images, annotations and categories alike: 0 is a number as any other."""
    truth = make_dataset(tmp_path)
    images, categories = [{**image, "id": n} for n, image in enumerate(truth["images"])], [{"id": 0, "name": "cup"}]
    annotations = [{"id": n, "image_id": n, "category_id": 0, "bbox": [4, 6, 20, 30]} for n in range(3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    label_prompts(tmp_path / "photos", tmp_path / "boxes.json", tmp_path / "out", model_folder, engine="prompt_fakes:BoxEngine")
    made = export_run(tmp_path / "out", tmp_path / "coco.json")
    assert {image["id"]: image["file_name"] for image in made["images"]} == {0: "z.png", 1: "a.png", 2: "turned.jpg"}
    assert sorted((a["id"], a["image_id"], a["category_id"]) for a in made["annotations"]) == [(0, 0, 0), (1, 1, 0), (2, 2, 0)]
    assert made["categories"] == categories


def test_every_format_with_classes_keeps_the_categories(model_folder: Path, tmp_path: Path) -> None:
    """YOLO counts them from 0 in the order of their ids and lists their names; labelme's labels are the names."""
    make_dataset(tmp_path)
    asked = [(7, "no"), (3, 'a "cup" é'), (None, None), (7, None)]
    boxes = [[4, 6, 24, 36], [10, 20, 40, 38], [0, 0, 10, 10], [40, 4, 60, 30]]
    rows = [
        {"image": "a.png", "box_xyxy": box, "category_id": number, "category": name}
        for box, (number, name) in zip(boxes, asked, strict=True)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    label_prompts(tmp_path / "photos", tmp_path / "p.jsonl", tmp_path / "out", model_folder, engine="prompt_fakes:BoxEngine")
    for command in ("yolo", "labelme"):
        assert export.cli.main([command, str(tmp_path / "out"), str(tmp_path / command), "--images", "none"]) == 0
    about = (tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8")
    assert about.endswith('names:\n  0: "a \\"cup\\" é"\n  1: "no"\n  2: "object"\n')
    lines = (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().splitlines()
    for line, kind, (x0, y0, x1, y1) in zip(lines, "1021", boxes, strict=True):
        number, *corners = line.split()
        assert number == kind
        xs, ys = [64 * float(x) for x in corners[::2]], [48 * float(y) for y in corners[1::2]]
        assert [min(xs), min(ys), max(xs), max(ys)] == pytest.approx([x0, y0, x1, y1], abs=1)
    shapes = json.loads((tmp_path / "labelme" / "a.json").read_text())["shapes"]
    assert [shape["label"] for shape in shapes] == ["no", 'a "cup" é', "object", "no"]


def test_masks_without_a_category_have_one_of_their_own(model_folder: Path, tmp_path: Path) -> None:
    """Whose number is nobody else's; photos that the prompts' file does not list have the run's ids."""
    make_dataset(tmp_path)
    rows = [
        {"image": "a.png", "box_xyxy": [4, 6, 24, 36], "category_id": 1},
        {"image": "z.png", "box_xyxy": [4, 6, 24, 36]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    label_prompts(tmp_path / "photos", tmp_path / "p.jsonl", tmp_path / "out", model_folder, engine="prompt_fakes:BoxEngine")
    made = export_run(tmp_path / "out", tmp_path / "coco.json")
    assert [(a["id"], a["image_id"], a["category_id"]) for a in made["annotations"]] == [(1, 1, 1), (2, 3, 2)]
    assert [(c["id"], c["name"]) for c in made["categories"]] == [(1, "1"), (2, "object")]
    assert [image["id"] for image in made["images"]] == [1, 2, 3]
