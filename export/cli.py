"""``python -m export``: the command line. Knows options and words; must not know formats or tables."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from export.coco import CocoOptions, CocoReport, export_coco
from export.preview import CONTACT_SHEET, PreviewOptions, export_preview
from export.runs import Run, describe_missing, read_run
from labeler import storage
from labeler.errors import OptionsError
from labeler.flags import EXIT_CODES_HELP, EXIT_DONE, run_command

app = App(
    name="python -m export",
    help="Turn the output of `python -m jobs label` into what people train on and look at.",
    help_epilogue=EXIT_CODES_HELP,
    version_flags=(),
    suppress_keyboard_interrupt=False,
)


@app.command
def coco(
    output: str,
    target: str,
    /,
    *,
    options: Annotated[CocoOptions | None, Parameter(name="*")] = None,
    partial: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write one COCO JSON file of all masks: instances of one category, "object", exact, `iscrowd` 0.

    Image ids and file names are the run's, annotation ids count from 1, bbox and area are pycocotools' own of the mask;
    predicted_iou and stability_score are kept as extra keys. Images without masks stay, failed images are left out.
    Exporting the same run again gives the same bytes.

    ```
    python -m export coco runs/photos photos.json --min-predicted-iou 0.9 --min-area 100
    ```

    Args:
        output: The folder that `jobs label` wrote into.
        target: The file to write.
        partial: Export the committed part of a run that is not finished. Without this, such a run is exit 2.
    """
    run = read_run(storage.path_to_uri(output))
    _check_finished(run, partial=partial)
    path = storage.uri_to_path(target)
    if path is None:
        raise OptionsError(f"{target}: this export streams into a local file; write one and copy it there")
    start = time.perf_counter()
    report = export_coco(run, path, options=options or CocoOptions())
    _say_coco(report, path, seconds=time.perf_counter() - start)
    return EXIT_DONE


@app.command
def preview(
    output: str,
    target: str,
    /,
    *,
    options: Annotated[PreviewOptions | None, Parameter(name="*")] = None,
) -> int:
    """Paint masks over their photos: `contact_sheet.jpg` of all, and one larger picture each in `overlays/`.

    Failed images are gray tiles that say why. The photos are read from where they were labeled. Of a run that is not
    finished, the committed part is shown.

    ```
    python -m export preview runs/photos look/ --limit 100 --columns 10
    ```

    Args:
        output: The folder that `jobs label` wrote into.
        target: The folder to write the pictures into.
    """
    run = read_run(storage.path_to_uri(output))
    if run.num_missing_shards:
        print(f"{describe_missing(run)}; showing what is committed")
    report = export_preview(run, storage.path_to_uri(target), options=options or PreviewOptions())
    print(f"wrote {target.rstrip('/')}/{CONTACT_SHEET}: {report.num_overlays} photos with {report.num_masks} masks", end="")
    print(f", {report.num_failed} failed images" if report.num_failed else "", end="")
    print(f", {report.num_unreadable} photos that can't be read any more" if report.num_unreadable else "")
    return EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    return run_command(app, arguments)


def _check_finished(run: Run, *, partial: bool) -> None:
    """Half a run must not pass for a whole one: a person says that it is wanted, and is told how much is missing."""
    if not run.num_missing_shards:
        return
    if not partial:
        raise OptionsError(f"{describe_missing(run)}; finish it with `jobs label`, or export what is there with --partial")
    print(f"PARTIAL: {describe_missing(run)}; only committed shards are exported")


def _say_coco(report: CocoReport, target: Path, *, seconds: float) -> None:
    print(f"wrote {target}: {report.num_masks} masks of {report.num_images} images", end=" ")
    print(f"in {seconds:.1f} s ({report.num_masks / max(seconds, 1e-9):.0f} masks/s)")
    if report.num_failed or report.num_filtered:
        print(f"left out: {report.num_failed} failed images, {report.num_filtered} masks below the thresholds")
    if report.num_turned:
        print(
            f"{report.num_turned} images carry an EXIF orientation: their masks fit the photo turned upright, "
            "so load it with EXIF applied"
        )
