"""Small runs as README describes them, written by hand: the exports must not need the job that makes real ones."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from labeler import rle, tables
from labeler.options import MaskOptions
from labeler.tables import ImageRow
from labeler.types import MaskSet, join_runs

MakeRun = Callable[..., Path]


def make_mask_set(masks: Sequence[np.ndarray], image_hw: tuple[int, int]) -> MaskSet:
    lengths, offsets = join_runs([rle.mask_to_runs(mask) for mask in masks])
    n = len(masks)
    return MaskSet(
        image_hw=image_hw,
        run_lengths=lengths,
        run_offsets=offsets,
        boxes_xyxy=np.zeros((n, 4), np.int64),
        areas=np.array([mask.sum() for mask in masks], np.int64),
        predicted_iou=np.linspace(1.02, 0.5, n, dtype=np.float32),
        stability_score=np.linspace(0.99, 0.9, n, dtype=np.float32),
        points_xy=np.full((n, 2), 1.5),
        crop_boxes_xyxy=np.tile(np.array([0, 0, image_hw[1], image_hw[0]]), (n, 1)),
    )


@pytest.fixture(scope="session")
def random_masks() -> Callable[..., list[np.ndarray]]:
    """``random_masks(image_hw, n, seed=0)``: rectangles, some of them full of holes, none empty."""

    def draw(image_hw: tuple[int, int], n: int, *, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        masks = []
        for _ in range(n):
            mask = np.zeros(image_hw, bool)
            y, x = rng.integers(0, image_hw[0]), rng.integers(0, image_hw[1])
            mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 40)] = True
            mask &= rng.random(image_hw) < rng.choice([0.5, 1.0])
            mask[y, x] = True
            masks.append(mask)
        return masks

    return draw


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run of some photos: ``make_run([(file_name, image_hw or None, masks), ...], per_shard=2, missing=(1,))``.

    The photos lie in ``photos/0.png`` ...; ``uris`` says that they were found elsewhere, ``more`` goes into ``run.json``.
    """

    def write(
        images: Sequence[tuple[str, tuple[int, int] | None, Sequence[np.ndarray]]],
        *,
        per_shard: int = 2,
        missing: Sequence[int] = (),
        orientation: int = 1,
        options: MaskOptions | None = None,
        uris: Sequence[str] | None = None,
        source_ids: Sequence[str | None] | None = None,
        sizes_bytes: Sequence[int | None] | None = None,
        **more: Any,
    ) -> Path:
        output, photos = tmp_path / "run", tmp_path / "photos"
        photos.mkdir(exist_ok=True)
        options = options or MaskOptions()
        metadata = tables.make_metadata(options, model_sha256="0" * 64)
        num_shards = -(-len(images) // per_shard)
        for table in ("masks", "images"):
            (output / table).mkdir(parents=True)
        for shard in set(range(num_shards)) - set(missing):
            rows, batches = [], []
            for number in range(shard * per_shard, min((shard + 1) * per_shard, len(images))):
                name, image_hw, masks = images[number]
                photo = photos / f"{number}.png"
                uri = photo.as_uri() if uris is None else uris[number]
                source_id = None if source_ids is None else source_ids[number]
                size_bytes = None if sizes_bytes is None else sizes_bytes[number]
                known = {"image_id": number + 1, "uri": uri, "file_name": name}
                known |= {"source_id": source_id, "size_bytes": size_bytes}
                if image_hw is None:
                    rows.append(ImageRow(**known, status="error", error_kind="truncated", error_message="ends too early"))
                    continue
                PillowImage.linear_gradient("L").resize(image_hw[::-1]).convert("RGB").save(photo)
                height, width = image_hw
                size = {"height": height, "width": width, "stored_height": height, "stored_width": width}
                rows.append(ImageRow(**known, **size, exif_orientation=orientation, num_masks=len(masks)))
                masks_batch = tables.masks_to_batch(make_mask_set(masks, image_hw), image_id=number + 1, file_name=name)
                batches.append(masks_batch)
            parts = {"masks": batches, "images": [tables.images_to_batch(rows)]}
            for table, rows_of_part in parts.items():
                part = output / tables.part_name(table, shard)
                part.write_bytes(tables.encode_part(rows_of_part, table=table, metadata=metadata))
        record = {
            "schema_version": 1,
            "num_images": len(images),
            "num_shards": num_shards,
            "options": options.model_dump(mode="json"),
            "model": {"name": "models/x", "model_type": "vit_b", "sha256": "0" * 64, "weights": "f16"},
            "something": "a newer version added",
            **more,
        }
        (output / "run.json").write_text(json.dumps(record))
        return output

    return write
