"""A run -> a dataset in FiftyOne's own database, to look through in its app. The fiftyone seam.

Must not know files of labels: FiftyOne keeps masks in its database, and pictures by their local paths. What lies in a
store or inside of another file is copied into a folder, which holds nothing else (``export.folders``). A dataset has its
name only when it is whole.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from export.folders import Folder, open_folder
from export.options import SelectionOptions
from export.selection import ExportImage, ExportMask, Report, Watch, name_categories, select_images
from labeler import rle, storage
from labeler.errors import OptionsError, StorageError
from labeler.pictures import find_picture_file
from labeler.runs import Run
from labeler.types import Size

FIELD = "masks"


class FiftyoneOptions(SelectionOptions):
    """What goes into the dataset."""

    pictures: str | None = None
    """A new folder for copies of the pictures that are no local files, for FiftyOne opens only such. Not needed for others."""

    overwrite: bool = False
    """Replace a dataset of that name."""


def export_fiftyone(run: Run, name: str, *, options: FiftyoneOptions, watch: Watch | None = None) -> Report:
    """Make a FiftyOne dataset of the committed shards of a run.

    Each sample has ``image_id``, ``file_name``, its side of the split as a tag, and the masks as detections whose
    confidence is the predicted IoU and whose label is the name of their category.

    Raises:
        OptionsError: fiftyone is not installed, there is a dataset of that name, or pictures need a folder; that folder
            holds something else, or a name does not fit into it.
        StorageError: a part can't be read, or FiftyOne's database does not start or refuses.
    """
    report = Report()
    fiftyone = _import_fiftyone()
    with _make_dataset(fiftyone, name, overwrite=options.overwrite) as dataset, _open_pictures(run, options) as folder:
        images = select_images(run, options=options, report=report, watch=watch)
        labels = name_categories(run)
        samples = (_to_sample(fiftyone, image, _find_picture(image, folder, report), labels) for image in images)
        dataset.add_samples(samples, progress=False)
    return report


def _import_fiftyone() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise OptionsError(f"fiftyone can't be imported ({error}); pip install fiftyone") from error
    return fiftyone


@contextlib.contextmanager
def _make_dataset(fiftyone: Any, name: str, *, overwrite: bool) -> Iterator[Any]:
    """A nameless dataset that gets its name when the block ends well, and is gone otherwise."""
    try:
        if fiftyone.dataset_exists(name) and not overwrite:
            raise OptionsError(f"FiftyOne has a dataset {name} already; give another name, or --overwrite")
        dataset = fiftyone.Dataset()
    except (OptionsError, KeyboardInterrupt):
        raise
    except Exception as error:  # Its database is a program of its own, and each way it fails has another class.
        raise StorageError(f"FiftyOne's database can't be used: {type(error).__name__}: {error}") from error
    try:
        yield dataset
    except BaseException:
        dataset.delete()
        raise
    if fiftyone.dataset_exists(name):
        fiftyone.delete_dataset(name)
    dataset.name = name
    dataset.persistent = True


@contextlib.contextmanager
def _open_pictures(run: Run, options: FiftyoneOptions) -> Iterator[Folder | None]:
    if options.pictures is None:
        yield None
        return
    uri = storage.path_to_uri(options.pictures)
    if storage.uri_to_path(uri) is None:
        raise OptionsError(f"--pictures {options.pictures} is not a local folder, but FiftyOne opens only local files")
    named = SelectionOptions(relative_to=options.relative_to)  # Pictures are the same, whatever masks are asked for.
    with open_folder(run, uri, kind="fiftyone", options=named) as folder:
        yield folder


def _find_picture(image: ExportImage, folder: Folder | None, report: Report) -> str:
    """The local path of an image, copied there if need be."""
    path = find_picture_file(image.uri)
    if path is not None:
        report.num_pictures_missing += not path.is_file()
        return str(path)
    if folder is None:
        raise OptionsError(f"{image.uri} is no local file, but FiftyOne opens only such; give a folder for copies: --pictures")
    place = storage.join(folder.uri, folder.place_picture(image, image.name, how="copy", report=report))
    return str(storage.uri_to_path(place))


def _to_sample(fiftyone: Any, image: ExportImage, path: str, labels: Mapping[int, str]) -> Any:
    height, width = image.image_hw
    named = [(mask, labels[mask.category_id]) for mask in image.masks]
    detections = [_to_detection(fiftyone, mask, label, image.image_hw) for mask, label in named]
    return fiftyone.Sample(
        filepath=path,
        tags=[image.split],
        metadata=fiftyone.ImageMetadata(width=width, height=height, num_channels=3),
        image_id=image.image_id,
        file_name=image.name,
        **{FIELD: fiftyone.Detections(detections=detections)},
    )


def _to_detection(fiftyone: Any, mask: ExportMask, label: str, image_hw: Size) -> Any:
    """Its box in fractions of the sides, and the mask within it."""
    (height, width), (x, y, w, h) = image_hw, (int(side) for side in mask.bbox)
    return fiftyone.Detection(
        label=label,
        bounding_box=[x / width, y / height, w / width, h / height],
        mask=rle.runs_to_crop(rle.counts_to_runs(mask.counts), image_hw=image_hw, box_xywh=(x, y, w, h)),
        confidence=mask.predicted_iou,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        mask_id=mask.mask_id,
        prompt_id=mask.prompt_id,
        area=mask.area,
    )
