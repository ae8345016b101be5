"""What people decided about a run's masks, and that every export heeds it."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_masks import draw_box, table_to_masks

import export.cli
from export.options import SelectionOptions
from export.page import export_page
from export.selection import Report, list_categories, name_categories, select_images
from labeler import rle, tables
from labeler.errors import OptionsError, StorageError
from labeler.pages.review_desk import ReviewDesk
from labeler.reviews import Decision, Reviews, new_drawn_id, read_reviews, write_decision
from labeler.runs import Run, iterate_images, read_run

HW = (40, 60)

box = partial(draw_box, HW)

MASKS = [box(0, 0, 40, 60), box(5, 5, 20, 20), box(25, 30, 35, 50)]
NEW = box(2, 30, 12, 55)


@pytest.fixture
def run(make_run: Any) -> Run:
    return read_run(str(make_run([("a.png", HW, MASKS), ("b.png", HW, MASKS[:1]), ("bad.png", None, []), ("c.png", HW, [])])))


def to_row(mask: np.ndarray) -> dict[str, Any]:
    """A mask as somebody drew it, in the columns of the masks table."""
    counts = rle.runs_to_counts(rle.mask_to_runs(mask), image_hw=HW)
    return {
        "segmentation": {"size": list(HW), "counts": counts},
        "bbox": rle.measure_boxes_xywh([counts], image_hw=HW)[0].tolist(),
        "area": int(mask.sum()),
        "predicted_iou": 0.75,
        "stability_score": 0.5,
        "point_coords": [[31.0, 3.0]],
        "crop_box": [0.0, 0.0, 60.0, 40.0],
    }


def decide(run: Run, image_id: int, mask: int | str, verdict: Any, pixels: np.ndarray | None = None, **more: Any) -> Reviews:
    name, row = {1: "a.png", 2: "b.png", 4: "c.png"}[image_id], None if pixels is None else to_row(pixels)
    decision = Decision(key=(image_id, mask), verdict=verdict, file_name=name, mask=row, **more)
    seen = read_reviews(run.output, about=run.about)
    return write_decision(run.output, decision, about=run.about, after=seen)


def read_masks(run: Run, *, ignore_review: bool = False) -> dict[int, dict[int, np.ndarray]]:
    """Pixels by image_id and mask_id."""
    again = read_run(run.output, ignore_review=ignore_review)
    images = iterate_images(again, columns=["image_id"], mask_columns=["image_id", "segmentation"])
    return {
        row["image_id"]: {m["mask_id"]: rle.counts_to_mask(m["segmentation"]["counts"], image_hw=HW) for m in masks}
        for row, masks in images
    }


def test_a_rejected_mask_is_left_out_and_may_be_taken_back(run: Run) -> None:
    """The others keep their ids; without the review, and after it was restored, all is as the run made it."""
    decide(run, 1, 1, "reject")
    assert [*read_masks(run)[1]] == [0, 2]
    assert [*read_masks(run, ignore_review=True)[1]] == [0, 1, 2]
    decide(run, 1, 1, "restore")
    assert [*read_masks(run)[1]] == [0, 1, 2]


def test_a_refined_mask_takes_the_place_of_the_other(run: Run) -> None:
    """It keeps mask_id and image, all else is the new mask's."""
    decide(run, 1, 2, "refine", NEW)
    assert (read_masks(run)[1][2] == NEW).all()
    assert (read_masks(run, ignore_review=True)[1][2] == MASKS[2]).all()
    rows = [
        masks for row, masks in iterate_images(read_run(run.output), columns=["image_id"], mask_columns=["image_id", "area"])
    ]
    assert [row["area"] for row in rows[0]] == [2400, 225, NEW.sum()]


def test_drawn_masks_come_after_the_runs_and_keep_their_numbers(run: Run) -> None:
    """On images without masks, too; one that is rejected leaves a gap, so the other's number stays."""
    first, second = new_drawn_id(), new_drawn_id()
    decide(run, 1, first, "draw", NEW)
    decide(run, 1, second, "draw", MASKS[1])
    decide(run, 4, new_drawn_id(), "draw", NEW)
    assert [*read_masks(run)[1]] == [0, 1, 2, 3, 4]
    assert [*read_masks(run)[4]] == [0]
    decide(run, 1, first, "reject", NEW)
    masks = read_masks(run)[1]
    assert [*masks] == [0, 1, 2, 4]
    assert (masks[4] == MASKS[1]).all()
    assert read_run(run.output).reviews.count() == {"rejected": 0, "refined": 0, "drawn": 2}


def test_the_latest_decision_holds_whatever_order_files_are_read_in(run: Run) -> None:
    """By time; of the same moment by the file's name."""
    decisions = [decide(run, 1, 0, verdict) for verdict in ("reject", "restore", "reject")][-1].by_file
    for by_file in (decisions, dict(reversed(decisions.items()))):
        assert Reviews(by_file).standing[1, 0].verdict == "reject"
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    same = {
        name: (Decision(key=(1, 0), verdict=verdict, file_name="a.png", decided_at=moment, name=name),)
        for name, verdict in (("b", "restore"), ("a", "reject"))
    }
    assert Reviews(same).standing[1, 0].verdict == "restore"


def test_a_decision_is_later_than_what_was_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is behind does not lose against one whose clock is ahead."""
    reviews = decide(run, 1, 0, "reject")
    ahead = replace(reviews.standing[1, 0], decided_at=datetime(2100, 1, 1, tzinfo=UTC))
    seen = Reviews({ahead.name: (ahead,)})
    own = Decision(key=(1, 0), verdict="restore", file_name="a.png")
    after = write_decision(run.output, own, about=run.about, after=seen)
    assert after.standing[1, 0].verdict == "restore"


def test_what_is_saved_last_holds_though_others_clocks_are_ahead(run: Run) -> None:
    """Their decisions are read before: saved or taken back, it is later than they are, and undo leads back to them."""
    ahead = Decision(key=(1, 0), verdict="restore", file_name="a.png", decided_at=datetime(2100, 1, 1, tzinfo=UTC), name="x")

    def reject_ahead() -> None:
        seen = read_run(run.output).reviews.by_file
        write_decision(run.output, replace(ahead, verdict="reject"), after=Reviews({**seen, "x": (ahead,)}), about=run.about)

    desk = ReviewDesk(run)
    rows = tables.read_part(run.output, table="masks", number=0, columns=tables.MASKS_SCHEMA.names)
    mask = table_to_masks(rows.slice(1, 1), image_hw=HW)
    reject_ahead()
    decision, before = desk.put(desk.images[0], mask, key=(1, 0))
    assert [m.verdict for m in desk.list_masks(desk.images[0])] == ["refine", None, None]
    assert before is not None
    assert before.verdict == "reject"
    reject_ahead()
    desk.take_back(decision, None)
    assert [m.verdict for m in desk.list_masks(desk.images[0])] == [None, None, None]


def _reject_many(output: str, image_id: int, about: dict[str, str]) -> None:
    for mask_id in range(40):
        decision = Decision(key=(image_id, mask_id), verdict="reject", file_name="a.png")
        write_decision(output, decision, about=about)


def test_writers_at_the_same_time_lose_nothing(run: Run) -> None:
    """Three processes, which know nothing of each other; a reader in between sees whole files only."""
    context = multiprocessing.get_context("spawn")
    arguments = [(run.output, i, dict(run.about)) for i in (1, 2, 3)]
    writers = [context.Process(target=_reject_many, args=a) for a in arguments]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        read_reviews(run.output, about=run.about)
    for writer in writers:
        writer.join()
    reviews = read_run(run.output).reviews
    assert sorted(reviews.standing) == [(i, m) for i in (1, 2, 3) for m in range(40)]


def test_known_files_are_not_read_again(run: Run) -> None:
    """Looking for news costs a listing: a file that was read may even be damaged since."""
    reviews = decide(run, 1, 0, "reject")
    folder = Path(run.output) / "review"
    (folder / next(iter(reviews.by_file))).write_bytes(b"damaged")
    decide_again = write_decision(
        run.output,
        Decision(key=(1, 1), verdict="reject", file_name="a.png"),
        about=run.about,
    )
    both = read_reviews(run.output, about=run.about, known=reviews)
    assert both.by_file.keys() == {*reviews.by_file, *decide_again.by_file}
    with pytest.raises(StorageError, match="damaged"):
        read_run(run.output)


def test_foreign_files_are_no_decisions_and_other_runs_are_refused(run: Run) -> None:
    """A note beside them changes nothing; decisions about another model's masks would hit the wrong ones."""
    decide(run, 1, 1, "reject")
    (Path(run.output) / "review" / "notes.txt").write_text("hello")
    (Path(run.output) / "review" / ".half.tmp").write_text("half a file")
    assert [*read_masks(run)[1]] == [0, 2]
    record = json.loads((Path(run.output) / "run.json").read_text())
    record["model"]["sha256"] = "1" * 64
    (Path(run.output) / "run.json").write_text(json.dumps(record))
    with pytest.raises(OptionsError, match="another model"):
        read_run(run.output)
    assert read_run(run.output, ignore_review=True).model_sha256 == "1" * 64


def test_a_review_of_other_images_is_refused(run: Run, make_run: Any, tmp_path: Path, capsys: Any) -> None:
    """Left in a folder that was labeled anew, with the same model and options, it would hit the wrong masks."""
    decide(run, 2, 0, "reject")
    shutil.move(Path(run.output) / "review", tmp_path / "kept")
    shutil.rmtree(run.output)
    make_run([("a.png", HW, MASKS), ("new.png", HW, MASKS[:1])])
    shutil.move(tmp_path / "kept", Path(run.output) / "review")
    assert export.cli.main(["coco", run.output, str(tmp_path / "x.json")]) == 2
    assert "about b.png where this run has new.png" in capsys.readouterr().err
    with pytest.raises(OptionsError, match=r"about b\.png"):
        ReviewDesk(read_run(run.output))
    assert export.cli.main(["coco", run.output, str(tmp_path / "x.json"), "--ignore-review"]) == 0


def test_the_runs_own_tables_are_never_touched(run: Run) -> None:
    """Deciding writes below review/ and nowhere else."""
    before = {path: path.read_bytes() for path in Path(run.output).rglob("*") if path.is_file()}
    decide(run, 1, 1, "reject")
    decide(run, 1, 2, "refine", NEW)
    after = {path: path.read_bytes() for path in Path(run.output).rglob("*") if path.is_file()}
    assert {path.relative_to(run.output).parts[0] for path in after.keys() - before.keys()} == {"review"}
    assert all(after[path] == data for path, data in before.items())


def _count_coco(target: Path) -> int:
    return len(json.loads(target.read_text())["annotations"])


def _count_lines(target: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in target.rglob("labels/**/*.txt"))


def _count_key(key: str) -> Callable[[Path], int]:
    def count(target: Path) -> int:
        files = [json.loads(path.read_text()) for path in target.rglob("*.json") if path.name != ".export.json"]
        return sum(len(file[key]) for file in files)

    return count


def _count_ids(target: Path) -> int:
    from PIL import Image as PillowImage

    ids = [np.asarray(PillowImage.open(path)) for path in target.rglob("*.png")]
    return sum(len(set(np.unique(picture)) - {0}) for picture in ids)


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("coco", _count_coco),
        ("yolo", _count_lines),
        ("sa1b", _count_key("annotations")),
        ("labelme", _count_key("shapes")),
        ("masks", _count_ids),
    ],
)
def test_every_export_heeds_it(command: str, count: Callable[[Path], int], run: Run, tmp_path: Path, capsys: Any) -> None:
    """One of four masks is rejected, two are drawn; --ignore-review has the four; what was applied is said."""
    decide(run, 1, 1, "reject")
    decide(run, 2, new_drawn_id(), "draw", NEW)
    decide(run, 4, new_drawn_id(), "draw", NEW)
    name = "x.json" if command == "coco" else "x"
    more = ["--images", "none"] if command in ("sa1b", "labelme") else []
    assert export.cli.main([command, run.output, str(tmp_path / "reviewed" / name), *more]) == 0
    assert "as reviewed: 1 rejected, 2 drawn" in capsys.readouterr().out
    assert export.cli.main([command, run.output, str(tmp_path / "raw" / name), *more, "--ignore-review"]) == 0
    assert "reviewed" not in capsys.readouterr().out
    assert (count(tmp_path / "reviewed" / name), count(tmp_path / "raw" / name)) == (5, 4)


def test_no_score_is_asked_of_masks_by_hand(run: Run) -> None:
    """Who refined or drew one knows better than the model: it stays, and comes before what the model is surest of."""
    decide(run, 1, 1, "refine", NEW)
    decide(run, 2, new_drawn_id(), "draw", NEW)

    def select(**options: Any) -> list[list[int]]:
        images = select_images(read_run(run.output), options=SelectionOptions(**options), report=Report())
        return [[mask.mask_id for mask in image.masks] for image in images]

    assert select(min_predicted_iou=0.9) == [[0, 1], [0, 1], []]
    assert select(min_stability_score=0.98) == [[0, 1], [0, 1], []]
    assert select(max_masks_per_image=1) == [[1], [1], []]


def test_the_page_and_the_pictures_heed_it(run: Run, tmp_path: Path, capsys: Any) -> None:
    """The page's masks and the preview's count are those after the review."""
    decide(run, 1, 1, "reject")
    assert export_page(read_run(run.output), str(tmp_path / "page")).num_masks == 3
    assert export_page(read_run(run.output, ignore_review=True), str(tmp_path / "raw")).num_masks == 4
    assert export.cli.main(["preview", run.output, str(tmp_path / "look")]) == 0
    assert "3 masks" in capsys.readouterr().out
    assert export.cli.main(["preview", run.output, str(tmp_path / "look"), "--ignore-review"]) == 0
    assert "4 masks" in capsys.readouterr().out


def test_a_folder_without_empty_images_is_no_other_reviews(run: Run, tmp_path: Path, capsys: Any) -> None:
    """With --drop-empty a review decides which files there are: writing over another would leave stale ones."""
    target = str(tmp_path / "sa1b")
    options = ["--images", "none"]
    assert export.cli.main(["sa1b", run.output, target, *options, "--drop-empty"]) == 0
    decide(run, 2, 0, "reject")
    assert export.cli.main(["sa1b", run.output, target, *options, "--drop-empty"]) == 2
    assert "review" in capsys.readouterr().err
    other = str(tmp_path / "other")
    for verdict in ("reject", "restore"):
        decide(run, 1, 0, verdict)
        assert export.cli.main(["sa1b", run.output, other, *options]) == 0


def test_drawn_masks_among_prompted_ones_get_ids_and_a_category_of_their_own(run: Run, tmp_path: Path) -> None:
    """The others keep their prompts' ids, which may be any; no id is there twice."""
    output = Path(run.output)
    record = json.loads((output / "run.json").read_text())
    record["prompts_plan"] = {
        "categories": [{"id": 1, "name": "cup"}, {"id": 3, "name": "cat"}],
        "num_without_category": 0,
        "has_image_ids": False,
    }
    (output / "run.json").write_text(json.dumps(record))
    for shard in run.shards:
        part = output / tables.part_name("masks", shard)
        rows = tables.decode_part(part.read_bytes(), name="masks").to_pylist()
        prompted = [row | {"prompt_id": 5 + 2 * row["mask_id"] + 100 * row["image_id"], "category_id": 3} for row in rows]
        schema = tables.make_schema("masks", prompted=True)
        _write_rows(part, prompted, schema, "masks")
        asked = [{"prompt_id": row["prompt_id"], "image_id": row["image_id"], "status": "ok"} for row in prompted]
        (output / "prompts").mkdir(exist_ok=True)
        _write_rows(output / tables.part_name("prompts", shard), asked, tables.PROMPTS_SCHEMA, "prompts")
    run = read_run(run.output)
    decide(run, 1, new_drawn_id(), "draw", NEW)
    assert export.cli.main(["coco", run.output, str(tmp_path / "x.json")]) == 0
    exported = json.loads((tmp_path / "x.json").read_text())
    by_id = {annotation["id"]: annotation for annotation in exported["annotations"]}
    assert sorted(by_id) == [105, 107, 109, 205, 206]
    assert [by_id[i]["category_id"] for i in (105, 206)] == [3, 2]
    assert {category["id"] for category in exported["categories"]} == {1, 2, 3}


def test_a_review_is_of_the_prompts_that_were_asked(run: Run) -> None:
    """Other boxes in the same photos are other masks: what was decided about those must not hit these."""
    output = Path(run.output)
    record = json.loads((output / "run.json").read_text())
    record["prompts_plan"] = {"categories": [{"id": 3, "name": "cat"}], "num_without_category": 0, "has_image_ids": False}
    (output / "run.json").write_text(json.dumps(record | {"fingerprint": "a"}))
    decide(run, 1, 0, "reject")  # As files were before they named the prompts.
    decide(read_run(run.output), 1, 1, "reject")
    assert read_run(run.output).reviews.standing.keys() == {(1, 0), (1, 1)}
    (output / "run.json").write_text(json.dumps(record | {"fingerprint": "b"}))
    with pytest.raises(OptionsError, match="other prompts than this run's"):
        read_run(run.output)


def test_masks_without_a_category_join_the_one_of_their_name(run: Run, tmp_path: Path) -> None:
    """Detectors of one class often call it "object": two classes of that name would be one too many."""
    output = Path(run.output)
    record = json.loads((output / "run.json").read_text())
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "object"}]
    record["prompts_plan"] = {"categories": categories, "num_without_category": 2, "has_image_ids": False}
    (output / "run.json").write_text(json.dumps(record))
    prompted = read_run(run.output)
    assert list_categories(prompted) == categories
    assert name_categories(prompted) == {3: "cat", 7: "object"}


def _write_rows(part: Path, rows: list[dict[str, Any]], schema: Any, table: Any) -> None:
    import pyarrow as pa

    part.write_bytes(tables.encode_part([pa.RecordBatch.from_pylist(rows, schema)], table=table, metadata={}, schema=schema))


def test_a_review_may_lie_in_a_bucket(run: Run, s3: Any) -> None:
    """Beside a run's tables, wherever those are; nothing but whole objects is ever there."""
    decision = Decision(key=(1, 1), verdict="reject", file_name="a.png")
    assert not read_reviews("s3://labels/run", about=run.about)
    written = write_decision("s3://labels/run", decision, about=run.about)
    (key,) = (item["Key"] for item in s3.list_objects_v2(Bucket="labels")["Contents"])
    assert key == f"run/review/{next(iter(written.by_file))}"
    read = read_reviews("s3://labels/run", about=run.about)
    assert read.standing[1, 1].verdict == "reject"
    assert [row["mask_id"] for row in read.apply([{"mask_id": 0}, {"mask_id": 1}], image_id=1)] == [0]
