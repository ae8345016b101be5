"""What is frozen, and which resume fits it."""

import json
from pathlib import Path

import pytest
from fakes import freeze

from jobs.lease import LeaseLostError
from jobs.plan import RunRecord, RunSpec, check_resume, freeze_run, read_run, read_shard
from jobs.sources import list_images
from labeler import storage
from labeler.errors import OptionsError
from labeler.model_folder import check_model


@pytest.fixture
def frozen(photos: Path, model_folder: Path, tmp_path: Path) -> tuple[str, RunRecord]:
    """Twelve images in shards of five."""
    return str(tmp_path / "run"), freeze(photos, tmp_path / "run", model_folder)


def test_ids_count_from_1_in_the_order_of_the_list(frozen: tuple[str, RunRecord], photos: Path) -> None:
    """Shard after shard, every image once, each with what is needed to open it again."""
    output, record = frozen
    shards = [read_shard(output, record, number) for number in range(record.num_shards)]
    assert [len(shard) for shard in shards] == [5, 5, 2]
    images = [image for shard in shards for image in shard]
    assert [image.image_id for image in images] == list(range(1, 13))
    names = [image.ref.file_name for image in images]
    assert names == sorted(names, key=str.encode)
    for image in images:
        assert len(storage.read_bytes(image.ref.uri)) == image.ref.size_bytes


def test_a_run_is_its_folder(frozen: tuple[str, RunRecord], model_folder: Path) -> None:
    """run.json reads back as it was, the model stands beside it, whole."""
    output, record = frozen
    assert read_run(output) == record
    assert (record.num_images, record.num_shards, record.skipped) == (12, 3, {".txt": 1, "dotfile": 1})
    assert check_model(Path(output) / "model") == check_model(model_folder)


def test_no_run_is_none_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    """A run.json of another version is not guessed at."""
    assert read_run(str(tmp_path)) is None
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(OptionsError, match=r"run\.json"):
        read_run(str(tmp_path))


def test_the_same_again_fits(frozen: tuple[str, RunRecord]) -> None:
    """And so does the same model under another name."""
    _, record = frozen
    spec = RunSpec(**{name: getattr(record, name) for name in RunSpec.model_fields})
    check_resume(record, spec, output="run")
    check_resume(record, spec.model_copy(update={"model": spec.model.model_copy(update={"name": "./model"})}), output="run")


def test_only_a_published_model_may_have_been_converted_again(frozen: tuple[str, RunRecord]) -> None:
    """By its name it is its checkpoint and weights. A folder is its hash: at the same path may lie another precision."""
    _, record = frozen

    def resume(name: str, **changed: str) -> None:
        old = record.model_copy(update={"model": record.model.model_copy(update={"name": name})})
        spec = RunSpec(**{field: getattr(old, field) for field in RunSpec.model_fields})
        spec = spec.model_copy(update={"model": old.model.model_copy(update={"sha256": "f" * 64, **changed})})
        check_resume(old, spec, output="run")

    resume("vit_b")
    for name, changed in (("models/vit_b", {}), ("vit_b", {"weights": "int8"}), ("vit_b", {"checkpoint_sha256": "0" * 64})):
        with pytest.raises(OptionsError, match="--model"):
            resume(name, **changed)


def test_every_difference_is_shown(frozen: tuple[str, RunRecord]) -> None:
    """One line each, old -> new, and what to do."""
    _, record = frozen
    spec = RunSpec(
        input="file:///other",
        selection=record.selection.model_copy(update={"limit": 3}),
        options=record.options.model_copy(update={"points_per_side": 16, "precision": "bf16"}),
        model=record.model.model_copy(update={"name": "other", "sha256": "f" * 64, "checkpoint_sha256": "0" * 64}),
    )
    with pytest.raises(OptionsError) as refusal:
        check_resume(record, spec, output="labels")
    lines = str(refusal.value).splitlines()
    assert f"  --input: {record.input} -> file:///other" in lines
    assert "  --limit: not set -> 3" in lines
    assert "  --points-per-side: 3 -> 16" in lines
    assert "  --precision: f32 -> bf16" in lines
    assert any(line.startswith("  --model: ") and line.endswith("-> other (ffffffffffff)") for line in lines)
    assert len(lines) == 7
    assert "new --output" in lines[-1]


def test_parts_of_nobody_are_not_taken_over(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    """A folder with parts and no run.json could be anything: it is refused and left as it is."""
    storage.write_bytes(str(tmp_path / "run" / "images" / "part-0000000.parquet"), b"someone's")
    with pytest.raises(OptionsError, match=r"no run\.json"):
        freeze(photos, tmp_path / "run", model_folder)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_driver_that_lost_the_folder_freezes_nothing(
    frozen: tuple[str, RunRecord], model_folder: Path, tmp_path: Path
) -> None:
    """It asks once more before run.json, which makes the plan count."""
    _, record = frozen
    spec = RunSpec(**{name: getattr(record, name) for name in RunSpec.model_fields})
    listing = list_images(spec.input, selection=spec.selection)

    def check() -> None:
        raise LeaseLostError("another has it")

    with pytest.raises(LeaseLostError):
        freeze_run(str(tmp_path / "late"), spec, images_per_shard=5, listing=listing, model_folder=model_folder, check=check)
    assert read_run(str(tmp_path / "late")) is None
