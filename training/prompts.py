"""Scenes to examples: the padded picture, its prompts and what each prompt may mean.

Must not know models or losses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from training.scenes import PhotoBank, Scene, draw_scene
from training.shapes import Rng

MAX_AREA_RATIO = 0.95  # of the picture
BOX_SHAKE = 0.04
EXACT_BOXES_CHANCE = 0.5  # In training; where it is measured, and of most detectors, boxes are exact.


@dataclass(frozen=True)
class Asking:
    """Which regions are asked for.

    min_area_ratio: of the input, 66 pixels of 256x256; area_power: a region's chance goes with this power of its area.
    """

    min_area_ratio: float = 0.001
    area_power: float = 0.4


MEASURED = Asking()  # decided before any training: the validation scenes hang on it
TRAINED = Asking(min_area_ratio=0.0003, area_power=0.25)  # photographs are full of small things


@dataclass(frozen=True)
class Example:
    """One scene with P prompts, in the frame of the padded input (S x S).

    pixels (S, S, 3) uint8 and size_hw (2,) of the picture in it; levels (3, S, S) int16, 0 in the padding; points_xy (P, 2, 2)
    float32 and labels (P, 2) int64: a click and SAM's padding point, or the corners of a box; ids (P, 3) int64: what the prompt
    may mean at each level, 0 where nothing or the same as a finer level; pick (P,) int64: the level this prompt was drawn for;
    found (P,) bool: that region was found in a photograph, not drawn.
    """

    pixels: NDArray[np.uint8]
    size_hw: NDArray[np.int64]
    levels: NDArray[np.int16]
    points_xy: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    pick: NDArray[np.int64]
    found: NDArray[np.bool_]


def make_example(
    scene: Scene, rng: Rng, *, size: int, num_clicks: int, num_boxes: int, asking: Asking, box_shake: float = BOX_SHAKE
) -> Example:
    """Prompts for a scene, drawn anew each time; boxes are off by about ``box_shake`` of their sides.

    Raises:
        ValueError: nothing in this scene can be asked for.
    """
    height, width = scene.pixels.shape[:2]
    areas = [np.bincount(level.ravel()) for level in scene.levels]
    least, most = asking.min_area_ratio * size * size, MAX_AREA_RATIO * height * width
    askable = [np.nonzero((area >= least) & (area <= most))[0] for area in areas]
    askable = [ids[ids > 0] for ids in askable]
    if not sum(len(ids) for ids in askable):
        raise ValueError("nothing in this scene is large enough to ask for")
    pixels, levels = _pad(scene, size)
    prompts = [
        _draw_prompt(
            scene, rng, areas=areas, askable=askable, power=asking.area_power, box_shake=None if i < num_clicks else box_shake
        )
        for i in range(num_clicks + num_boxes)
    ]
    points, labels, ids, pick = (np.stack(column) for column in zip(*prompts, strict=True))
    return Example(
        pixels=pixels,
        size_hw=np.array([height, width]),
        levels=levels,
        points_xy=points.astype(np.float32),
        labels=labels,
        ids=ids,
        pick=pick,
        found=ids[np.arange(len(ids)), pick] <= scene.last_found,
    )


def _pad(scene: Scene, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    height, width = scene.pixels.shape[:2]
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:height, :width] = scene.pixels
    levels = np.zeros((3, size, size), dtype=np.int16)
    levels[:, :height, :width] = scene.levels
    return pixels, levels


def _draw_prompt(
    scene: Scene,
    rng: Rng,
    *,
    areas: list[NDArray[np.int64]],
    askable: list[NDArray[np.int64]],
    power: float,
    box_shake: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(points (2, 2), labels (2,), ids (3,), pick ()) of one prompt; large regions are asked for more often than small ones.

    A click, or a box where ``box_shake`` is given.
    """
    level = int(rng.choice([i for i in range(3) if len(askable[i])]))
    weights = areas[level][askable[level]] ** power
    region = int(rng.choice(askable[level], p=weights / weights.sum()))
    ys, xs = np.nonzero(scene.levels[level] == region)
    if box_shake is not None:
        box = np.array([[xs.min(), ys.min()], [xs.max(), ys.max()]], dtype=np.float64)
        shake = np.clip(rng.normal(0.0, box_shake, (2, 2)), -0.1, 0.1) * (box[1] - box[0])
        ids = np.zeros(3, dtype=np.int64)
        ids[level] = region
        limit = np.array(scene.pixels.shape[1::-1]) - 1.0
        return np.clip(box + shake, 0.0, limit), np.array([2, 3]), ids, np.array(level)
    at = int(rng.integers(len(xs)))
    y, x = ys[at], xs[at]
    ids, seen = np.zeros(3, dtype=np.int64), set()
    for other in (level, 0, 1, 2):
        here = int(scene.levels[other][y, x])
        if here in askable[other] and areas[other][here] not in seen:
            ids[other] = here
            seen.add(areas[other][here])
    return np.array([[x, y], [0.0, 0.0]], dtype=np.float64), np.array([1, -1]), ids, np.array(level)


class ExampleStream(IterableDataset[dict[str, Any]]):
    """Examples without end; each worker draws its own scenes.

    Args:
        reuse: how often a scene is asked on average; where drawing is dearer than learning, more than 1.
    """

    def __init__(
        self,
        bank: PhotoBank,
        *,
        size: int,
        num_clicks: int,
        num_boxes: int,
        seed: int,
        reuse: int = 1,
        kept: int = 400,
    ) -> None:
        self.bank, self.size, self.seed, self.reuse, self.kept = bank, size, seed, reuse, kept
        self.num_clicks, self.num_boxes = num_clicks, num_boxes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Fields of ``Example`` by name."""
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, self.size, worker.id if worker else 0])
        scenes: list[Scene] = []
        while True:
            if len(scenes) < 8 or rng.random() < 1.0 / self.reuse:
                scene = draw_scene(rng, size=self.size, bank=self.bank)
                scenes = [*scenes[-self.kept + 1 :], scene]
            else:
                scene = _mirror(scenes[int(rng.integers(len(scenes)))], rng)
            try:
                example = make_example(
                    scene,
                    rng,
                    size=self.size,
                    num_clicks=self.num_clicks,
                    num_boxes=self.num_boxes,
                    asking=TRAINED,
                    box_shake=0.0 if rng.random() < EXACT_BOXES_CHANCE else BOX_SHAKE,
                )
            except ValueError:
                continue
            yield vars(example)


def _mirror(scene: Scene, rng: Rng) -> Scene:
    """The scene mirrored, turned by quarters and with its colour channels changed about."""
    quarter, flip = int(rng.integers(4)), slice(None, None, -1 if rng.random() < 0.5 else 1)
    pixels = np.rot90(scene.pixels, quarter)[:, flip][:, :, rng.permutation(3)]
    levels = np.rot90(scene.levels, quarter, axes=(1, 2))[:, :, flip]
    return Scene(pixels=pixels, levels=levels, last_found=scene.last_found)
