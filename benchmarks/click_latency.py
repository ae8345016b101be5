"""How long a click on the page takes on the server, from the event to what is sent back. The first with the photo's encoding.

``python benchmarks/click_latency.py --model MODEL [--photo FILE] [--threads N]`` prints the median and the worst of 20 clicks.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

import labeler
from labeler.images import decode_image
from labeler.pages.scene import make_scene
from labeler.pages.session import Asked, Desk
from labeler.types import Image

NUM_CLICKS = 20


def main() -> None:
    """Measure one model on one photo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--photo", type=Path, help="by default noise of 1920 x 1280 pixels")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    folder = labeler.find_model(arguments.model)
    info = labeler.read_model_info(folder)
    desk = Desk(labeler.Predictor(labeler.Engine(folder, info, threads=arguments.threads), info))
    image = read_photo(arguments.photo)
    start = time.perf_counter()
    desk.warm_up()
    print(f"model {info.model_type}, input {info.image_size} px, {arguments.threads} threads; ", end="")
    print(f"photo {image.hw[1]} x {image.hw[0]}; compiled in {time.perf_counter() - start:.1f} s")
    points = np.random.default_rng(0).uniform((0, 0), image.hw[::-1], (NUM_CLICKS + 1, 2))
    first, *others = [click(desk, image, [(x, y)]) for x, y in points.tolist()]
    say("first click, with the photo's encoding", [first])
    say("a click on the encoded photo, three answers", others)
    say("a second click to add", [click(desk, image, [(x, y), (y, x)]) for x, y in points[:NUM_CLICKS].tolist()])


def read_photo(path: Path | None) -> Image:
    """The photo, or noise."""
    if path is not None:
        return decode_image(path.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (1280, 1920, 3), np.uint8)
    return Image(pixels=pixels, stored_hw=(1280, 1920))


def click(desk: Desk, image: Image, points: list[tuple[float, float]]) -> float:
    """Seconds from the last click's event to what is sent back: the model's answers, and the scene with the mask drawn."""
    height, width = image.hw
    asked = Asked()
    for x, y in points:
        asked = asked.add(asked.clicks.add_point((min(x, width), min(y, height)), is_inside=True))
        start = time.perf_counter()
        asked = desk.ask(asked, key="photo", image=image)
    masks = [] if asked.mask is None else [asked.mask.runs(0)]
    make_scene(image, photo_id="photo", has_photo=True, masks=masks, colors=[0], clicks=asked.clicks)
    return time.perf_counter() - start


def say(what: str, seconds: list[float]) -> None:
    """One line."""
    middle, worst = 1000 * statistics.median(seconds), 1000 * max(seconds)
    print(
        f"{what}: {middle:.0f} ms" + (f" in the median, {worst:.0f} ms at worst of {len(seconds)}" if len(seconds) > 1 else "")
    )


if __name__ == "__main__":
    main()
