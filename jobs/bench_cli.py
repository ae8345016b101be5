"""``python -m jobs bench``: its options and words. Must not know how anything is measured."""

import sys
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from labeler.flags import EXIT_DONE, MaskFlags, PresetFlag, given_options
from labeler.model_folder import read_model_info
from labeler.models import find_model
from labeler.options import check_given_options, resolve_mask_options
from labeler.stores import parse_store_options, use_store_options

_MASKS = Group("Options that change masks, and with them the time", sort_key=2)


def bench(
    *,
    model: str,
    images: str | None = None,
    price: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    seconds: Annotated[float, Parameter(validator=Number(gt=0))] = 180,
    cpus: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    storage_options: tuple[str, ...] = (),
    preset: Annotated[PresetFlag, Parameter(group=_MASKS)] = None,
    mask_flags: Annotated[MaskFlags | None, Parameter(name="*", group=_MASKS)] = None,
) -> int:
    """Measure on this machine how many workers of how many threads label most images a second, and what they cost.

    Fills the CPUs with one wide worker, with two of half its width, and so on to one a CPU; each split labels photos for
    a while with all its workers at once. Run it where the job will run, with nothing else running, on eight of the job's own
    photos and with its options: the time depends on their size and on how many masks are kept.

    ```
    python -m jobs bench --model vit_b --images photos --price 0.04
    python -m jobs bench --model vit_b --images photos --precision bf16 --seconds 600
    ```

    Reading the table: *images/s* of the whole machine decides. *s/image* is one worker's time for one image, by stage.
    *memory/worker* is the most one worker held: as many must fit. *of product speed* is the share of what OpenVINO reaches
    in plain matrix products with as many workers at once; the rest is overhead.

    Args:
        model: A folder made by `labeler convert`, its URI, vit_b, vit_l, vit_h, vit_t (MobileSAM), or `tiny`.
        images: A folder of photos, or its URI; up to 8 of them are used. Not given: drawn pictures, which keep fewer masks.
        price: Price of one CPU hour, in any currency: the cost of 1000 images is told in it. Not given: core-hours.
        seconds: About how long to measure. Each worker labels one photo at least, so a large model may take longer.
        cpus: Use only so many CPUs. Default: all this process may use.
        storage_options: KEY=VALUE for fsspec, as `label` takes them.
    """
    from jobs.bench import describe_bench, run_bench

    given = given_options(mask_flags)
    check_given_options(given, preset=preset)
    use_store_options(parse_store_options(storage_options, places={"images": images, "model": model}))
    folder = find_model(model)
    info = read_model_info(folder)
    options = resolve_mask_options(given, preset=preset, model_defaults=info.defaults)
    if images is None:
        _say("no --images: measuring on drawn pictures; your own photos, with more masks, may take longer")
    figures = run_bench(folder, options=options, images=images, seconds=seconds, say=_say, num_cpus=cpus)
    print(f"{info.model_type}, {options.precision}, {figures.num_cpus} CPUs")
    print(describe_bench(figures, price=price))
    return EXIT_DONE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
