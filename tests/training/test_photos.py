"""Regions of photographs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from training.coco import collect_regions
from training.photos import MEASURING, Photo, lay_over, list_cutouts, load_drawn_photos, load_photos, weigh_photos
from training.scenes import PhotoBank


def test_walls_of_one_colour_are_found_at_every_level(bank: PhotoBank) -> None:
    """Regions that every setting of the segmentation agrees on are kept, one id a wall."""
    levels = bank.photos[0].levels
    assert levels.shape == (3, 96, 120)
    corners = levels[:, [10, 10, 85, 85], [10, 110, 10, 110]]
    assert (corners > 0).all()
    assert all(len(set(level)) == 4 for level in corners)


def test_cutouts_lie_in_their_box_and_are_no_backgrounds() -> None:
    """A cut-out is compact and covers no large part of its photograph."""
    levels = np.ones((3, 100, 100), dtype=np.uint16)
    levels[:, 10:50, 20:70] = 2
    photo = Photo(name="card", sha256="", pixels=np.zeros((100, 100, 3), np.uint8), levels=levels)
    cutouts = list_cutouts([photo])
    assert {cutout.region for cutout in cutouts} == {2}
    assert {cutout.box_xyxy for cutout in cutouts} == {(20, 10, 70, 50)}


def test_regions_that_people_drew_stand_above_found_ones() -> None:
    """People's alone at the finer levels, with a coarse segmentation around them at the last; the smaller lies above."""
    found = np.stack([np.full((40, 60), level + 1, dtype=np.uint16) for level in range(3)])
    large, small = np.zeros((80, 120), np.uint8), np.zeros((80, 120), np.uint8)
    large[20:60, 20:100], small[30:40, 30:50] = 1, 1
    fine, drawn, coarse = lay_over(found, [small, large])
    assert (fine == drawn).all()
    assert (drawn[10:30, 10:50] > 0).all()
    assert (np.delete(drawn, np.s_[10:30], axis=0) == 0).all()
    assert drawn[17, 20] != drawn[12, 12]
    assert drawn[12, 12] == drawn[29, 49]
    assert (coarse[drawn > 0] == drawn[drawn > 0]).all()
    assert (coarse[drawn == 0] == 3).all()


def test_coco_annotations_become_a_photograph_with_drawn_regions(tmp_path: Path) -> None:
    """Polygons, crowds and photographs that are not there, through the command's folder into the levels of training."""
    images = tmp_path / "all"
    images.mkdir()
    Image.fromarray(np.full((60, 80, 3), 120, np.uint8)).save(images / "000000000001.png")
    square = [[10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]]
    crowd = {"size": [60, 80], "counts": [0, 4800]}
    described = {
        "images": [
            {"id": 1, "file_name": "000000000001.png", "height": 60, "width": 80},
            {"id": 2, "file_name": "000000000002.png", "height": 60, "width": 80},
        ],
        "annotations": [
            {"id": 7, "image_id": 1, "segmentation": square, "iscrowd": 0},
            {"id": 8, "image_id": 1, "segmentation": crowd, "iscrowd": 1},
            {"id": 9, "image_id": 2, "segmentation": square, "iscrowd": 0},
        ],
    }
    (tmp_path / "instances_some.json").write_text(json.dumps(described))
    collected = collect_regions(images, [tmp_path / "instances_some.json"])
    assert [image["id"] for image in collected["images"]] == [1]
    (only,) = collected["annotations"]
    assert coco_masks.area(only["segmentation"]) == 600
    regions = tmp_path / "regions"
    regions.mkdir()
    images.rename(regions / "images")
    (regions / "instances.json").write_text(json.dumps(collected))
    (photo,) = load_drawn_photos(regions)
    assert set(np.unique(photo.levels[1][12:28, 12:38])) == {photo.levels[1].max()}
    assert (photo.levels[1] > 0).sum() == 600


def test_stuff_of_panoptic_annotations_falls_into_pieces(tmp_path: Path) -> None:
    """Two far parts of one sky are two regions, two of one person one; specks of stuff are left out."""
    images, pngs = tmp_path / "images", tmp_path / "panoptic_some"
    images.mkdir()
    pngs.mkdir()
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(images / "1.png")
    colours = np.zeros((60, 80, 3), np.uint8)
    colours[:20, :30] = colours[:20, 50:] = colours[58:, 78:] = (5, 0, 0)
    colours[30:50, :10] = colours[30:50, 20:30] = (0, 1, 0)
    Image.fromarray(colours).save(pngs / "1.png")
    segments = [{"id": 5, "category_id": 3, "iscrowd": 0}, {"id": 256, "category_id": 1, "iscrowd": 0}]
    described = {
        "images": [{"id": 1, "file_name": "1.png", "height": 60, "width": 80}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": [{"id": 3, "isthing": 0}, {"id": 1, "isthing": 1}],
    }
    (tmp_path / "panoptic_some.json").write_text(json.dumps(described))
    collected = collect_regions(images, [tmp_path / "panoptic_some.json"])
    assert sorted(int(coco_masks.area(row["segmentation"])) for row in collected["annotations"]) == [400, 600, 600]


def test_scenes_to_measure_with_are_drawn_of_the_same_photographs_as_ever(tmp_path: Path) -> None:
    """Whatever else lies in the folder; one without any of them is said, not measured with."""
    for name in ("kodak_01.png", "skimage_cat.png", "wall.png"):
        Image.new("RGB", (60, 40), (90, 120, 30)).save(tmp_path / name)
    assert [photo.name for photo in load_photos(tmp_path, begins=MEASURING)] == ["kodak_01.png", "skimage_cat.png"]
    assert len(load_photos(tmp_path)) == 3
    (tmp_path / "others").mkdir()
    (tmp_path / "wall.png").rename(tmp_path / "others" / "wall.png")
    with pytest.raises(FileNotFoundError, match="none called kodak_ or skimage_"):
        load_photos(tmp_path / "others", begins=MEASURING)


def test_photos_with_many_regions_are_taken_more_often(bank: PhotoBank) -> None:
    """Those that people drew in count twice against the others, in the mean, and share that by their regions."""
    photos = [replace(bank.photos[0], num_drawn=number) for number in (0, 0, 1, 3)]
    assert weigh_photos(photos) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert weigh_photos(photos[:2]).tolist() == [0.5, 0.5]


def test_a_whole_photograph_is_as_much_of_it_as_fits(bank: PhotoBank) -> None:
    """With the chance of 1 each crop shows the photograph from edge to edge on one side."""
    height, width = bank.photos[0].pixels.shape[:2]
    place = np.arange(1, height * width + 1, dtype=np.uint16).reshape(height, width)
    marked = replace(bank.photos[0], levels=np.stack([place] * 3))
    whole = PhotoBank(photos=[marked], cutouts=(), whole_chance=1.0)
    for seed in range(5):
        _, levels = whole.crop(np.random.default_rng(seed), size_hw=(height, width))
        assert sorted(np.unique(levels)) == sorted(np.unique(place))
