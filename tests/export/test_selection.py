"""What every format leaves out, splits, turns and names: one place for all."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from drawn_masks import draw_box

from export.options import SelectionOptions
from export.selection import Report, choose_split, name_image, select_images
from labeler import rle
from labeler.errors import OptionsError
from labeler.options import MaskOptions
from labeler.runs import Run, read_run

HW = (20, 30)

box = partial(draw_box, HW)

# In the order of the table, predicted IoU from 1.02 down to 0.5, stability from 0.99 to 0.9.
MASKS = [
    box(0, 0, 20, 30),  # 0: all of the image
    box(2, 2, 12, 12),  # 1: a thing of 100 pixels
    box(2, 2, 12, 11),  # 2: nearly the same, IoU 0.9
    box(3, 3, 6, 6),  # 3: a part of it, 9 pixels
    box(14, 20, 18, 28),  # 4: another thing, 32 pixels
]


def select(run: Run, **options: Any) -> tuple[list[Any], Report]:
    report = Report()
    return list(select_images(run, options=SelectionOptions(**options), report=report)), report


@pytest.fixture
def run(make_run: Any) -> Run:
    return read_run(str(make_run([("a.jpg", HW, MASKS), ("broken.jpg", None, []), ("empty.jpg", HW, [])])))


def test_progress_counts_every_image_once(run: Run) -> None:
    """Those that failed, and those that are left out, too: it ends where the run does."""
    seen: list[int] = []
    report = Report()
    list(select_images(run, options=SelectionOptions(drop_empty=True), report=report, watch=lambda r: seen.append(r.num_seen)))
    assert seen == [1, 2, 3]
    assert (report.num_images, report.num_failed, report.num_empty) == (1, 1, 1)


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        ("min_predicted_iou", 0.7, [0, 1, 2]),
        ("min_stability_score", 0.945, [0, 1, 2]),
        ("min_area", 32, [0, 1, 2, 4]),
        ("max_area", 90, [2, 3, 4]),
        ("min_area_ratio", 100 / 600, [0, 1]),
        ("max_area_ratio", 0.95, [1, 2, 3, 4]),
        ("max_mask_iou", 0.89, [0, 1, 3, 4]),
        ("max_mask_iou", 0.91, [0, 1, 2, 3, 4]),
        ("max_containment", 0.95, [0]),
        ("max_masks_per_image", 2, [0, 1]),
    ],
)
def test_each_filter_leaves_out_what_it_says(run: Run, option: str, value: float, kept: list[int]) -> None:
    """The masks that stay keep their order and ids; the others are counted under the option's name."""
    images, report = select(run, **{option: value})
    assert [mask.mask_id for mask in images[0].masks] == kept
    assert +report.filtered == ({option: 5 - len(kept)} if len(kept) < 5 else {})
    assert (report.num_images, report.num_masks, report.num_failed) == (2, len(kept), 1)


def test_filters_work_together(run: Run) -> None:
    """A mask that is left out already hides no other: without the whole image, things contain their parts."""
    images, report = select(run, max_area_ratio=0.9, max_containment=0.95, max_masks_per_image=1)
    assert [mask.mask_id for mask in images[0].masks] == [1]
    assert report.filtered == {"max_area_ratio": 1, "max_containment": 2, "max_masks_per_image": 1}


def test_of_likes_the_better_one_stays(make_run: Any) -> None:
    """By predicted IoU, wherever the two stand; masks that only share a box are not alike."""
    ring = box(2, 2, 12, 12) & ~box(3, 3, 11, 11)
    run = read_run(str(make_run([("a.jpg", HW, [ring, box(2, 2, 12, 12), box(2, 2, 12, 12)])])))
    images, _ = select(run, max_mask_iou=0.8)
    assert [mask.mask_id for mask in images[0].masks] == [0, 1]


def test_empty_images_go_only_where_asked(run: Run) -> None:
    """Also those that a filter emptied."""
    assert [image.name for image in select(run)[0]] == ["a.jpg", "empty.jpg"]
    images, report = select(run, drop_empty=True)
    assert ([image.name for image in images], report.num_empty) == (["a.jpg"], 1)
    assert select(run, drop_empty=True, min_area=601)[0] == []


def test_the_split_is_stable() -> None:
    """About the fraction asked for; an image keeps its side whatever else there is, and with a larger fraction, too."""
    names = [f"photos/{i}.jpg" for i in range(5000)]
    tenth, fifth, other = (
        {name for name in names if choose_split(name, options=SelectionOptions(val_fraction=f, seed=s)) == "val"}
        for f, s in ((0.1, 0), (0.2, 0), (0.1, 1))
    )
    assert 430 < len(tenth) < 570
    assert tenth < fifth
    assert len(tenth & other) < 100
    assert sorted(names.index(n) for n in tenth)[:3] == [2, 3, 4]  # Pinned: other versions must draw the same.
    assert choose_split("a.jpg", options=SelectionOptions()) == "train"


@pytest.mark.parametrize(
    ("exif", "frame", "turned"),
    [
        ("apply", None, False),
        ("apply", "upright", False),
        ("apply", "stored", True),
        ("ignore", None, False),
        ("ignore", "stored", False),
        ("ignore", "upright", True),
    ],
)
def test_masks_come_in_the_frame_asked_for(make_run: Any, exif: Any, frame: Any, turned: bool) -> None:
    """A quarter turn swaps the sides; the mask, its box, point and crop turn; the images it matters for are counted."""
    options = MaskOptions(exif=exif)
    run = read_run(str(make_run([("a.jpg", HW, MASKS[3:])], orientation=6, options=options)))
    (image,), report = select(run, frame=frame)
    assert report.num_oriented == 1
    assert image.image_hw == (HW[::-1] if turned else HW)
    mask = image.masks[0]
    expected = np.rot90(MASKS[3], -1 if frame == "upright" else 1) if turned else MASKS[3]
    np.testing.assert_array_equal(rle.counts_to_mask(mask.counts, image_hw=image.image_hw), expected)
    assert mask.bbox == rle.measure_boxes_xywh([mask.counts], image_hw=image.image_hw)[0].tolist()
    assert mask.crop_box == [0, 0, image.image_hw[1], image.image_hw[0]]
    x, y = mask.point_coords[0]
    assert (x, y) == ((1.5, 28.5) if frame == "stored" else (18.5, 1.5)) if turned else (1.5, 1.5)


def test_unturned_photos_are_not_counted(run: Run) -> None:
    """Orientation 1 is none."""
    assert select(run, frame="stored")[1].num_oriented == 0


def test_names_can_begin_elsewhere(run: Run, tmp_path: Any) -> None:
    """By the picture's own place below a folder; a place that is not below it is exit 2 and named."""
    images, _ = select(run, relative_to=str(tmp_path))
    assert [image.name for image in images] == ["photos/0.png", "photos/2.png"]
    with pytest.raises(OptionsError, match=r"photos/0\.png does not lie below"):
        select(run, relative_to=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("uri", "root", "name"),
    [
        ("file:///data/50%25%20off.jpg", "/", "data/50% off.jpg"),
        ("s3://bucket/in/50%25 off.jpg", "s3://bucket/in", "50% off.jpg"),
        ("s3://bucket/in/a%23b.jpg", "s3://bucket/", "in/a#b.jpg"),
        ("https://host/in/50%25.jpg", "https://host/in", "50%25.jpg"),
        ("zip://50%25.jpg::s3://bucket/a.zip", "zip://", "50%25.jpg::s3://bucket/a.zip"),
    ],
)
def test_names_by_place_are_decoded(uri: str, root: str, name: str) -> None:
    """As the run's own names are; but addresses of the web and chained ones stand for themselves."""
    assert name_image({"uri": uri, "file_name": "x.jpg"}, options=SelectionOptions(relative_to=root)) == name


def test_contradictions_are_refused() -> None:
    """Ranges that nothing can be in."""
    with pytest.raises(ValueError, match="no mask can stay"):
        SelectionOptions(min_area=10, max_area=9)
    with pytest.raises(ValueError, match="min_area_ratio"):
        SelectionOptions(min_area_ratio=0.5, max_area_ratio=0.4)
