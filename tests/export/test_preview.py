"""Pictures of a run; whether they please is judged by eye."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from export.preview import PreviewOptions, export_preview
from labeler.errors import OptionsError
from labeler.runs import read_run

HW = (60, 80)


def test_each_photo_gets_its_overlay_and_the_sheet_shows_all(
    make_run: Any, random_masks: Callable[..., Any], tmp_path: Path
) -> None:
    """Overlays have the photo's size and differ from it only where masks are; failed images have a tile, but no overlay."""
    masks = random_masks(HW, 4)
    output = make_run([("a b%25.jpg", HW, masks), ("broken.jpg", None, []), ("sub/empty.png", HW, [])])
    report = export_preview(read_run(str(output)), str(tmp_path / "look"), options=PreviewOptions(columns=2))
    names = sorted(p.name for p in (tmp_path / "look" / "overlays").iterdir())
    assert names == ["0000001_a_b_25.jpg.jpg", "0000003_sub_empty.png.jpg"]
    assert (report.num_overlays, report.num_masks, report.num_failed, report.num_unreadable) == (2, 4, 1, 0)
    overlay = np.asarray(PillowImage.open(tmp_path / "look" / "overlays" / names[0]), int)
    photo = np.asarray(PillowImage.open(tmp_path / "photos" / "0.png"), int)
    assert overlay.shape == photo.shape
    difference, painted = np.abs(overlay - photo).mean(axis=2), np.any(masks, axis=0)
    assert difference[painted].mean() > 2 * difference[~painted].mean()  # What differs elsewhere is JPEG's.
    with PillowImage.open(tmp_path / "look" / "contact_sheet.jpg") as sheet:
        assert sheet.width < sheet.height < 2.5 * sheet.width  # Two columns, two rows, captions.


def test_a_sample_is_spread_over_the_run(make_run: Any, tmp_path: Path) -> None:
    """Of ten images in four shards, --limit 3 shows three from its beginning, middle and end, always the same."""
    output = make_run([(f"{i}.png", (8, 8), []) for i in range(10)], per_shard=3)
    for folder in ("one", "two"):
        export_preview(read_run(str(output)), str(tmp_path / folder), options=PreviewOptions(limit=3))
        names = sorted(p.name for p in (tmp_path / folder / "overlays").iterdir())
        assert len(names) == 3
        assert (names[0], names[-1] > "0000007") == ("0000001_0.png.jpg", True)
    sheets = [(tmp_path / folder / "contact_sheet.jpg").read_bytes() for folder in ("one", "two")]
    assert sheets[0] == sheets[1]


def test_a_photo_that_is_gone_or_changed_is_said(make_run: Any, random_masks: Callable[..., Any], tmp_path: Path) -> None:
    """The sheet is made all the same; masks are never painted over another picture than they were found in."""
    output = make_run([(f"{i}.png", HW, random_masks(HW, 2)) for i in range(3)])
    (tmp_path / "photos" / "0.png").unlink()
    PillowImage.new("RGB", (33, 22)).save(tmp_path / "photos" / "1.png")
    report = export_preview(read_run(str(output)), str(tmp_path / "look"), options=PreviewOptions())
    assert (report.num_overlays, report.num_unreadable) == (1, 2)
    assert [p.name for p in (tmp_path / "look" / "overlays").iterdir()] == ["0000003_2.png.jpg"]


def test_a_sheet_too_large_for_a_jpeg_is_refused(make_run: Any, tmp_path: Path) -> None:
    """Before any picture is made."""
    output = make_run([(f"{i}.png", None, []) for i in range(200)], per_shard=100)
    with pytest.raises(OptionsError, match="--columns"):
        export_preview(read_run(str(output)), str(tmp_path / "look"), options=PreviewOptions(limit=200, columns=1))
    assert not (tmp_path / "look").exists()


def test_a_run_with_nothing_committed_has_nothing_to_show(make_run: Any, tmp_path: Path) -> None:
    """An empty sheet would look like a result."""
    output = make_run([("a.png", (8, 8), [])], missing=(0,))
    with pytest.raises(OptionsError, match="no committed images"):
        export_preview(read_run(str(output)), str(tmp_path / "look"), options=PreviewOptions())
