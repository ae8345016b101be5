"""``python -m export``: the command line. Knows options and words; must not know formats or tables."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import App, Parameter

from export.coco import CocoOptions, export_coco
from export.fiftyone import FiftyoneOptions, export_fiftyone
from export.folders import FolderOptions
from export.labelme import LabelmeOptions, export_labelme
from export.masks import export_masks
from export.options import SelectionOptions
from export.page import MAX_IMAGES, PAGE, export_page
from export.preview import CONTACT_SHEET, PreviewOptions, export_preview
from export.progress import show_progress
from export.sa1b import export_sa1b
from export.selection import Report, Watch
from export.yolo import YoloOptions, export_yolo
from labeler import storage
from labeler.errors import OptionsError
from labeler.flags import EXIT_CODES_HELP, EXIT_DONE, refuse_empty_arguments, run_command, tell_default
from labeler.retries import RETRIES_OF_A_MINUTE, use_retries
from labeler.runs import Run, describe_missing, iterate_rows, read_run
from labeler.stores import parse_store_options, use_store_options

app = App(
    name="python -m export",
    help="Turn the output of `python -m jobs label` into what people train on and look at.",
    help_epilogue=EXIT_CODES_HELP,
    version_flags=(),
    suppress_keyboard_interrupt=False,
    config=refuse_empty_arguments,
    default_parameter=Parameter(show_default=tell_default),
)


_Run = Annotated[str, Parameter(help="The folder that `jobs label` wrote into.")]
_FOLDER_HELP = "The folder to write: new, empty, or one with the same export of the same run, which is renewed."
_Folder = Annotated[str, Parameter(help=_FOLDER_HELP)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a run is opened."""

    ignore_review: Annotated[bool, Parameter(negative=())] = False
    """Take the masks as the run made them, whatever people decided with `labeler serve --run`."""

    storage_options: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    """KEY=VALUE for fsspec, such as anon=true or target.endpoint_url=http://minio:9000, everywhere (the pictures, too) or
    for output, target or a URL. May be repeated; never written down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningPart(Opening):
    """The same, of a run that may not be finished."""

    partial: Annotated[bool, Parameter(negative=())] = False
    """Export the committed part of an unfinished run; else that is exit 2."""


@app.command
def coco(
    output: _Run,
    target: str,
    /,
    *,
    options: Annotated[CocoOptions | None, Parameter(name="*", negative=())] = None,
    opening: Annotated[OpeningPart, Parameter(name="*")] = OpeningPart(),
) -> int:
    """Write COCO JSON of all masks: instances of one category, "object", or of the categories of the run's prompts.

    Annotation ids count from 1, or are the prompts' own. Image ids are the run's, or those of a COCO file: of the input, or
    of the prompts where that lists all images. File names are the run's. `iscrowd` is 0, bbox and area are pycocotools' own
    of the mask; predicted_iou and stability_score are kept as extra keys. Images without masks stay, failed images are left
    out. Exporting the same run again gives the same bytes.

    ```
    python -m export coco labels photos.json --min-predicted-iou 0.9
    python -m export coco labels photos.json --segmentation polygon
    ```

    Args:
        target: The file to write.
    """
    names: list[str] = []

    def write(run: Run, place: str, *, options: CocoOptions, watch: Watch) -> Report:
        report, written = export_coco(run, place, options=options, watch=watch)
        names.extend(written)
        return report

    code = _export(write, output, target, options=options or CocoOptions(), opening=opening)
    if len(names) > 1:
        print(f"in {len(names)} files: {names[0].rpartition('/')[2]} ... {names[-1].rpartition('/')[2]}")
    return code


@app.command
def yolo(
    output: _Run,
    target: _Folder,
    /,
    *,
    options: Annotated[YoloOptions | None, Parameter(name="*", negative=())] = None,
    opening: Annotated[OpeningPart, Parameter(name="*")] = OpeningPart(),
) -> int:
    """Write an Ultralytics YOLO segmentation dataset: data.yaml, images/ and labels/.

    It has one class, "object", or those of the run's prompts: their categories in the order of their ids, counted from 0.

    ```
    python -m export yolo labels yolo/ --val-fraction 0.1 --max-area-ratio 0.95
    ```
    """
    return _export(export_yolo, output, target, options=options or YoloOptions(), opening=opening)


@app.command
def sa1b(
    output: _Run,
    target: _Folder,
    /,
    *,
    options: Annotated[FolderOptions | None, Parameter(name="*", negative=())] = None,
    opening: Annotated[OpeningPart, Parameter(name="*")] = OpeningPart(),
) -> int:
    """Write SA-1B's layout: one JSON beside each picture, with exactly that dataset's fields, which know no categories.

    ```
    python -m export sa1b labels sa1b/ --images copy
    ```
    """
    return _export(export_sa1b, output, target, options=options or FolderOptions(), opening=opening)


@app.command
def labelme(
    output: _Run,
    target: _Folder,
    /,
    *,
    options: Annotated[LabelmeOptions | None, Parameter(name="*", negative=())] = None,
    opening: Annotated[OpeningPart, Parameter(name="*")] = OpeningPart(),
) -> int:
    """Write a folder that labelme opens, to correct masks by hand: polygons, one JSON beside each picture.

    A label is the category's name, of a run without prompts "object".

    ```
    python -m export labelme labels to_correct/ --max-masks-per-image 50
    ```
    """
    return _export(export_labelme, output, target, options=options or LabelmeOptions(), opening=opening)


@app.command
def masks(
    output: _Run,
    target: _Folder,
    /,
    *,
    options: Annotated[SelectionOptions | None, Parameter(name="*", negative=())] = None,
    opening: Annotated[OpeningPart, Parameter(name="*")] = OpeningPart(),
) -> int:
    """Write one 16-bit PNG of instance ids an image: 0 is background, else mask_id + 1; small masks lie on large ones.

    ```
    python -m export masks labels ids/ --max-mask-iou 0.8
    ```
    """
    return _export(export_masks, output, target, options=options or SelectionOptions(), opening=opening)


@app.command
def fiftyone(
    output: _Run,
    name: str,
    /,
    *,
    options: Annotated[FiftyoneOptions | None, Parameter(name="*", negative=())] = None,
    opening: Annotated[OpeningPart, Parameter(name="*")] = OpeningPart(),
) -> int:
    """Make a dataset of the package fiftyone, where that is installed: `fiftyone app launch NAME` opens it.

    ```
    pip install fiftyone
    python -m export fiftyone labels photos
    ```

    Args:
        name: What the dataset is called in FiftyOne's database.
    """

    def write(run: Run, _place: str, *, options: FiftyoneOptions, watch: Watch) -> Report:
        return export_fiftyone(run, name, options=options, watch=watch)

    return _export(write, output, name, options=options or FiftyoneOptions(), opening=opening)


@app.command
def preview(
    output: _Run,
    target: str,
    /,
    *,
    options: Annotated[PreviewOptions | None, Parameter(name="*", negative=())] = None,
    html: Annotated[bool, Parameter(negative=())] = False,
    opening: Annotated[Opening, Parameter(name="*")] = Opening(),
) -> int:
    """Paint masks over their photos: `contact_sheet.jpg` of all, and one larger picture each in `overlays/`.

    Failed images are gray tiles that say why. The photos are read from where they were labeled. Of a run that is not
    finished, the committed part is shown.

    ```
    python -m export preview labels look/ --limit 100 --columns 10
    python -m export preview labels look/ --html
    ```

    Args:
        target: The folder to write the pictures into.
        html: Write `index.html` instead: one page that needs no network, with the run's report, sliders that hide masks
            by their scores, and every mask's figures under the pointer.
    """
    run = _read_run(output, target, opening)
    if run.num_missing_shards:
        print(f"{describe_missing(run)}; showing what is committed")
    folder, name = storage.path_to_uri(target), target.rstrip("/")
    _say_review(run)
    if html:
        page = export_page(run, folder, limit=(options or PreviewOptions()).limit or MAX_IMAGES)
        what = f"{page.num_images} images with {page.num_masks} masks ({page.num_bytes / 1e6:.1f} MB)"
        print(f"wrote {name}/{PAGE}: {what}" + (f"; a sample of {run.num_images}" if page.is_sample else ""))
        return EXIT_DONE
    report = export_preview(run, folder, options=options or PreviewOptions())
    print(f"wrote {name}/{CONTACT_SHEET}: {report.num_overlays} photos with {report.num_masks} masks", end="")
    print(f", {report.num_failed} failed images" if report.num_failed else "", end="")
    print(f", {report.num_unreadable} photos that can't be read any more" if report.num_unreadable else "")
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    return run_command(app, arguments)


def _export(
    write: Callable[..., Report],
    output: str,
    target: str,
    *,
    options: SelectionOptions,
    opening: OpeningPart,
) -> int:
    """Read the run, write it with progress, say what was written."""
    run = _read_run(output, target, opening)
    _check_finished(run, partial=opening.partial)
    start_s = time.perf_counter()
    with show_progress(run.num_images) as watch:
        report = write(run, storage.path_to_uri(target), options=options, watch=watch)
    _say(report, target, run, options, seconds=time.perf_counter() - start_s)
    return EXIT_DONE


def _read_run(output: str, target: str, opening: Opening) -> Run:
    places = {"output": storage.path_to_uri(output), "target": storage.path_to_uri(target)}
    use_store_options(parse_store_options(opening.storage_options, places=places))
    use_retries(RETRIES_OF_A_MINUTE)
    return read_run(places["output"], ignore_review=opening.ignore_review)


def _check_finished(run: Run, *, partial: bool) -> None:
    """Half a run must not pass for a whole one: a person says that it is wanted, and is told how much is missing."""
    if not run.num_missing_shards:
        return
    if not partial:
        raise OptionsError(f"{describe_missing(run)}; finish it with `jobs label`, or export what is there with --partial")
    print(f"PARTIAL: {describe_missing(run)}; only committed shards are exported")


def _say(report: Report, target: str, run: Run, options: SelectionOptions, *, seconds: float) -> None:
    print(f"wrote {target}: {report.num_masks} masks of {report.num_images} images", end=" ")
    print(f"in {seconds:.1f} s ({report.num_masks / max(seconds, 1e-9):.0f} masks/s)")
    if options.val_fraction:
        print(f"{report.num_images - report.num_val} images to train, {report.num_val} to validate")
    _say_review(run)
    left_out = [f"{report.num_failed} failed images"] if report.num_failed else []
    left_out += [f"{report.num_empty} images without masks"] if report.num_empty else []
    for option, count in report.filtered.items():
        left_out += [f"{count} masks by --{option.replace('_', '-')}"] if count else []
    if left_out:
        print(f"left out: {', '.join(left_out)}")
    if report.polygon_losses:
        median, worst = 100 * report.median_polygon_loss, 100 * report.worst_polygon_loss
        print(f"as polygons masks lose {median:.2f} % of IoU (median; {worst:.2f} % at worst)")
    if report.num_rle:
        print(f"{report.num_rle} masks stay run lengths, for no polygon carries them within --max-polygon-loss")
    if report.num_hidden:
        print(f"{report.num_hidden} masks can't be seen: smaller ones lie over all of their pixels")
    if report.num_stale_files:
        print(f"WARNING: {report.num_stale_files} files of an earlier, larger export stand beside these: delete them")
    if report.num_bare:
        print(f"{report.num_bare} images have no mask, which teaches that nothing is on them; --drop-empty leaves them out")
    if run.prompts:
        _say_unanswered(run)
    _say_pictures(report)
    if report.num_oriented:
        _say_frame(report.num_oriented, options.frame or ("upright" if run.options.exif == "apply" else "stored"))


def _say_review(run: Run) -> None:
    decided = [f"{count} {what}" for what, count in run.reviews.count().items() if count]
    if decided:
        print(f"as reviewed: {', '.join(decided)} (--ignore-review takes the run's own masks)")


def _say_pictures(report: Report) -> None:
    if report.unread_suffixes.total():
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted((+report.unread_suffixes).items()))
        print(f"WARNING: Ultralytics passes by pictures that end so: {kinds}; convert them, then label and export again")
    if report.num_labels_kept:
        print(
            f"{report.num_labels_kept} labels there are not these (corrected by hand, or of before a review) and stay; "
            "--overwrite writes them anew"
        )
    if report.num_pictures_changed:
        print(f"WARNING: {report.num_pictures_changed} pictures have another size than when they were labeled: do masks fit?")
    if report.num_pictures_missing:
        print(f"{report.num_pictures_missing} pictures are not there any more; their labels are written all the same")


def _say_unanswered(run: Run) -> None:
    errors = Counter(row["error_kind"] for row in iterate_rows(run, table="prompts", columns=["error_kind"]))
    del errors[None]
    if errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()))
        print(f"{errors.total()} prompts have no mask ({kinds}), though their images are exported; the table prompts says why")


def _say_frame(num_oriented: int, frame: str) -> None:
    fits, load = ("the photo turned upright", "with") if frame == "upright" else ("the pixels as stored", "without")
    other = "stored" if frame == "upright" else "upright"
    print(f"{num_oriented} images carry an EXIF orientation: their masks fit {fits}, so load it {load} EXIF applied", end=" ")
    print(f"(or export with --frame {other})")
