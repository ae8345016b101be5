"""Boxes of a COCO file in, masks out, compared with the masks that people drew: how good a model is with boxes.

    python benchmarks/prompt_round_trip.py INSTANCES.json IMAGES --model MODEL [--output FOLDER]

Runs the two commands of the README (label --prompts, export coco) and `jobs verify`, then says the mean IoU with the
file's own masks, annotation by annotation (ids are kept), and what pycocotools' COCOeval makes of the exported file.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instances", help="a COCO file with boxes and masks")
    parser.add_argument("images", help="the folder of its images")
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", help="a folder to keep; else one that is deleted")
    parser.add_argument(
        "--option", action="append", default=[], help="further words for `jobs label`, such as --option=--workers=1"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.output or temporary)
        where = ("--input", given.images, "--prompts", given.instances, "--output", folder / "labels", "--model", given.model)
        truth = read_truth(Path(given.instances))
        wanted = {annotation["id"]: truth.annToRLE(annotation) for annotation in truth.dataset["annotations"]}
        begin = time.perf_counter()
        run("jobs", "label", *where, *given.option)
        seconds = time.perf_counter() - begin
        run("jobs", "verify", folder / "labels")
        run("export", "coco", folder / "labels", folder / "coco.json")
        made = json.loads((folder / "coco.json").read_text())
        print(f"{len(made['annotations'])} masks of {len(wanted)} boxes in {seconds:.1f} s, start of Ray included")
        compare(truth, made, wanted=wanted)
        evaluate(truth, made)


def run(*words: Any) -> None:
    """A command of this project, which must end well."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, cwd=Path(__file__).parent.parent)


def read_truth(path: Path) -> COCO:
    """A COCO file, whose segmentations may be polygons or run lengths."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def compare(truth: COCO, made: dict[str, Any], *, wanted: Mapping[int, Any]) -> None:
    """IoU of each annotation with the one of the same id; one that has no mask counts as 0."""
    answers = {annotation["id"]: annotation for annotation in made["annotations"]}
    ious = []
    for annotation in truth.dataset["annotations"]:
        answer = answers.get(annotation["id"])
        if answer is None:
            ious.append(0.0)
            continue
        assert answer["image_id"] == annotation["image_id"], "the export keeps the images' ids"
        assert answer["category_id"] == annotation["category_id"], "the export keeps categories"
        ious.append(float(coco_mask.iou([answer["segmentation"]], [wanted[annotation["id"]]], [0])[0, 0]))
    low, middle, high = np.percentile(ious, [10, 50, 90])
    print(f"IoU with the human masks: mean {np.mean(ious):.3f}, median {middle:.3f}, 10% below {low:.3f}, 10% above {high:.3f}")
    print(f"{np.mean(np.array(ious) >= 0.5):.1%} of the masks have an IoU of 0.5 and more")


def evaluate(truth: COCO, made: dict[str, Any]) -> None:
    """COCOeval, with the predicted IoU as the score."""
    with contextlib.redirect_stdout(io.StringIO()):
        names = ("image_id", "category_id", "segmentation")
        results = [{**{n: a[n] for n in names}, "score": a["predicted_iou"]} for a in made["annotations"]]
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    print(f"COCOeval (segm): AP {judge.stats[0]:.3f}, AP50 {judge.stats[1]:.3f}, AR100 {judge.stats[8]:.3f}")


if __name__ == "__main__":
    main()
