"""The options as people meet them: their names are pinned, because each new one is a promise."""

from jobs.options import JobOptions, Selection
from labeler.options import MaskOptions


def test_the_set_of_options() -> None:
    """A new option, or one that is gone, is said in the documents before it passes here."""
    assert set(MaskOptions.model_fields) == {
        "points_per_side", "point_grids", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset",
        "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor",
        "min_mask_region_area", "max_mask_area_ratio", "precision", "exif", "max_pixels", "points",
    }  # fmt: skip
    assert set(Selection.model_fields) == {
        "include", "exclude", "limit", "sample", "seed", "images_root", "keep_columns", "image_column",
    }  # fmt: skip
    assert set(JobOptions.model_fields) == {
        "workers", "min_workers", "max_workers", "cpus_per_worker", "images_per_shard", "retries", "image_timeout",
        "max_error_rate", "points_per_batch", "storage_options",
    }  # fmt: skip


def test_no_option_has_two_homes() -> None:
    """What changes masks and what does not never share a name, so one flag never means two things."""
    names = [name for model in (MaskOptions, Selection, JobOptions) for name in model.model_fields]
    assert len(names) == len(set(names))


def test_every_option_explains_itself() -> None:
    """One sentence of help each: it is the flag's help text."""
    for model in (MaskOptions, Selection, JobOptions):
        for name, field in model.model_fields.items():
            assert (field.description or "").endswith("."), name
