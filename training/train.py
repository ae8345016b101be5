"""Train a small SAM from scratch on scenes that code draws: ``python -m training.train --output FOLDER --minutes 100``.

Must not know how a trained model is measured or converted. Stops and starts again where it was; the same code runs on a GPU.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import openvino as ov
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.utils.data import DataLoader

from training.losses import CELL, INSIDE_IT, UNSURE, AimHint, BorderHint, Hint, Verdict, draw_sample, judge, target_masks
from training.model import ARCHITECTURE, build_model, decode, embed_points, encode, set_input_size
from training.muon import Muon, is_matrix
from training.objects import load_objects
from training.photos import load_drawn_photos, load_photos, weigh_photos
from training.prompts import ExampleStream
from training.scenes import PHOTO_CHANCE, PhotoBank

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth"
WARMUP_STEPS = 200
REFINED_A_SCENE = 4
CELLS_SHARE = 0.25  # of a mask's cells that a step compares
AIM_WEIGHT = 0.1
LEAST_RATE = 0.01
WEIGHT_DECAY = 0.02
LONGEST_STEP_S = 10.0  # a run that was stopped for a while has not trained meanwhile
SAVE_EVERY_S = 180.0
TELL_EVERY_STEPS = 50


@dataclass(frozen=True)
class Recipe:
    """How one training run goes. Progress is time trained over ``minutes``: a slow machine ends with a finished model too."""

    minutes: float
    first_size: int
    """The input's side in pixels at the beginning, a multiple of 32: smaller is faster, and much of it holds at full size."""
    full_size_from: float
    """The progress at which training goes from there to the architecture's size."""
    scenes_a_step: int
    clicks_a_scene: int
    boxes_a_scene: int
    refine_chance: float
    """How often a step has a second round: a correcting point and the mask of the first."""
    learning_rate: float
    reuse: int
    workers: int
    device: str
    seed: int


@dataclass
class Run:
    """What a training run keeps from step to step, all of it in the checkpoint."""

    sam: Sam
    hint: Hint
    border_hint: BorderHint
    aim_hint: AimHint
    optimizers: Sequence[torch.optim.Optimizer]
    step: int = 0
    trained_s: float = 0.0
    means: dict[str, float] = field(default_factory=dict)

    def save(self, folder: Path, architecture: dict[str, Any]) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "architecture": architecture,
            "sam": self.sam.state_dict(),
            "hint": self.hint.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "trained_s": self.trained_s,
            "means": self.means,
        }
        torch.save(state, folder / (CHECKPOINT + ".part"))
        (folder / (CHECKPOINT + ".part")).replace(folder / CHECKPOINT)

    def load(self, folder: Path, device: str) -> None:
        """Go on from a checkpoint."""
        state = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
        self.sam.load_state_dict(state["sam"])
        self.hint.load_state_dict(state["hint"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        self.step, self.trained_s, self.means = state["step"], state["trained_s"], state["means"]


def train(recipe: Recipe, *, architecture: dict[str, Any], bank: PhotoBank, folder: Path, start: Path | None = None) -> Sam:
    """Train until the time is used up, from the folder's checkpoint if there is one, else from the weights of ``start``."""
    torch.manual_seed(recipe.seed)
    sam = build_model(architecture)
    if start is not None:
        fresh = sam.load_state_dict(torch.load(start, map_location="cpu", weights_only=True), strict=False)
        logger.info("started from %s; these are new: %s; these are dropped: %s", start, *fresh)
    sam = sam.to(recipe.device, memory_format=torch.channels_last)
    hint = Hint(architecture["prompt_embed_dim"]).to(recipe.device)
    run = Run(
        sam=sam,
        hint=hint,
        border_hint=BorderHint(sam.image_encoder),
        aim_hint=AimHint(sam),
        optimizers=_make_optimizers(sam, hint, recipe),
    )
    if (folder / CHECKPOINT).exists():
        run.load(folder, recipe.device)
        logger.info("going on from step %d, %.0f s trained", run.step, run.trained_s)
    full = int(architecture["image_size"])
    end_s = 60.0 * recipe.minutes
    for size, until_s in ((recipe.first_size, end_s * recipe.full_size_from), (full, end_s)):
        if run.trained_s < until_s:
            set_input_size(sam, size)
            _train_stage(run, recipe, size=size, until_s=until_s, bank=bank, folder=folder, architecture=architecture)
    set_input_size(sam, full)
    return sam


def _make_optimizers(sam: Sam, hint: Hint, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels, AdamW for the rest."""
    parameters = [p for module in (sam, hint) for p in module.parameters()]
    matrices = [p for p in parameters if is_matrix(p)]
    muon = Muon(matrices, lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY, dtype=_choose_dtype(recipe.device))
    rest = [p for p in parameters if not is_matrix(p)]
    return [muon, torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)]


def _train_stage(
    run: Run, recipe: Recipe, *, size: int, until_s: float, bank: PhotoBank, folder: Path, architecture: dict[str, Any]
) -> None:
    batches = _stream_batches(recipe, size=size, bank=bank, seed=recipe.seed + run.step)
    clock = saved = time.monotonic()
    while run.trained_s < until_s:
        progress = run.trained_s / (60.0 * recipe.minutes)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _rate(run.step, progress)
        batch = {name: value.to(recipe.device, non_blocking=True) for name, value in next(batches).items()}
        told = _take_step(run, recipe, batch, progress=progress)
        now = time.monotonic()
        run.step, run.trained_s, clock = run.step + 1, run.trained_s + min(now - clock, LONGEST_STEP_S), now
        _tell(run, told, size=size)
        if now - saved > SAVE_EVERY_S:
            run.save(folder, architecture)
            saved = now
    run.save(folder, architecture)


def _rate(step: int, progress: float) -> float:
    """Warm up, then fall along a cosine."""
    cosine = LEAST_RATE + (1.0 - LEAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * cosine


def _stream_batches(recipe: Recipe, *, size: int, bank: PhotoBank, seed: int) -> Iterator[dict[str, Tensor]]:
    stream = ExampleStream(
        bank,
        size=size,
        num_clicks=recipe.clicks_a_scene,
        num_boxes=recipe.boxes_a_scene,
        seed=seed,
        reuse=recipe.reuse,
    )
    return iter(
        DataLoader(
            stream,
            batch_size=recipe.scenes_a_step,
            num_workers=recipe.workers,
            prefetch_factor=4 if recipe.workers else None,
            worker_init_fn=_keep_to_one_thread,
            pin_memory=recipe.device != "cpu",
        )
    )


def _keep_to_one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _choose_dtype(device: str) -> torch.dtype:
    """What products are computed in: bfloat16, but float32 on a CPU that has to emulate it (a step took 7 times as long)."""
    is_slow = device == "cpu" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return torch.float32 if is_slow else torch.bfloat16


def _autocast(device: str) -> AbstractContextManager[None]:
    dtype = _choose_dtype(device)
    return torch.autocast(device.split(":")[0], dtype, enabled=dtype == torch.bfloat16)


def _take_step(run: Run, recipe: Recipe, batch: dict[str, Tensor], *, progress: float) -> dict[str, Tensor]:
    """One step of the optimiser; what to tell of it, by name."""
    sam = run.sam
    targets = target_masks(batch["levels"], batch["ids"])
    known, is_click = batch["ids"] > 0, batch["labels"][..., 0] == 1
    sample = draw_sample(targets, known, num_cells=_count_cells(targets))
    with _autocast(recipe.device):
        features = encode(sam, batch["pixels"], batch["size_hw"])
        tokens = embed_points(sam, batch["points_xy"], batch["labels"])
        logits, predicted = decode(sam, features, tokens, cells=sample.index)
    verdict = judge(logits, predicted, sample, known=known, pick=batch["pick"], is_click=is_click)
    hint = run.hint(features, batch["levels"], batch["points_xy"][:, :, 0])
    borders = run.border_hint(batch["levels"])
    aim = run.aim_hint(batch["points_xy"], batch["labels"])
    loss = (verdict.masks + verdict.iou).mean() + (1.0 - progress) * (0.5 * hint + borders + AIM_WEIGHT * aim)
    told = {"masks": verdict.masks.mean(), "iou": verdict.iou.mean(), "hint": hint, "borders": borders, "aim": aim}
    told |= _split_ious(verdict, is_click, batch["found"])
    if torch.rand(()) < recipe.refine_chance:
        refined = _refine(sam, recipe, batch, features=features, targets=targets)
        loss = loss + 0.5 * (refined.masks + refined.iou).mean()
        told["refined"] = refined.single_iou.mean()
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
    return {"loss": loss, **told}


def _count_cells(targets: Tensor) -> int:
    return int(CELLS_SHARE * targets.shape[-1] * targets.shape[-2] / CELL**2)


def _split_ious(verdict: Verdict, is_click: Tensor, found: Tensor) -> dict[str, Tensor]:
    drawn = is_click & ~found
    return {
        "drawn_best": verdict.best_iou[drawn].mean(),
        "drawn_chosen": verdict.chosen_iou[drawn].mean(),
        "found_best": verdict.best_iou[is_click & found].mean(),
        "box": verdict.single_iou[~is_click].mean(),
    }


def _refine(sam: Sam, recipe: Recipe, batch: dict[str, Tensor], *, features: Tensor, targets: Tensor) -> Verdict:
    """A second round for the first clicks of each scene: a point where the best mask is wrong, and that mask."""
    some = slice(REFINED_A_SCENE)
    points_xy, labels, pick, targets = (
        batch["points_xy"][:, some],
        batch["labels"][:, some],
        batch["pick"][:, some],
        targets[:, some],
    )
    target = _take(targets, pick)  # (B, p, h, w)
    wanted, unsure = target == INSIDE_IT, target == UNSURE
    with torch.no_grad(), _autocast(recipe.device):
        masks = decode(sam, features, embed_points(sam, points_xy, labels))[0][:, :, 1:]
    overlap = ((masks > 0) & wanted[:, :, None]).flatten(-2).sum(-1)
    union = ((masks > 0) | wanted[:, :, None]).flatten(-2).sum(-1)
    earlier = _take(masks, (overlap / union.clamp(min=1)).argmax(dim=2)).float()
    point_xy, label = draw_correction((earlier > 0) & ~unsure, wanted)
    points_xy = torch.cat([points_xy[:, :, :1], point_xy[:, :, None], points_xy[:, :, 1:]], dim=2)
    labels = torch.cat([labels[:, :, :1], label[..., None], labels[:, :, 1:]], dim=2)
    known = torch.nn.functional.one_hot(pick, 3).bool()
    sample = draw_sample(targets, known, num_cells=_count_cells(targets))
    with _autocast(recipe.device):
        tokens = embed_points(sam, points_xy, labels)
        logits, predicted = decode(sam, features, tokens, earlier.clamp(-32.0, 32.0), cells=sample.index)
    return judge(logits, predicted, sample, known=known, pick=pick, is_click=torch.zeros_like(pick, dtype=torch.bool))


def _take(masks: Tensor, index: Tensor) -> Tensor:
    """Of masks (B, p, K, h, w) the one that index (B, p) names: (B, p, h, w)."""
    return masks.gather(2, index[..., None, None, None].expand(-1, -1, 1, *masks.shape[-2:]))[:, :, 0]


def draw_correction(masks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """A point (B, p, 2) in the input frame where masks (B, p, h, w) are wrong, with label 1 where more is wanted, 0 where less.

    Where nothing is wrong it is any point, with the label that is right there.
    """
    chance = (masks ^ wanted).flatten(-2).float() + 1e-6
    at = torch.multinomial(chance.flatten(0, 1), 1).view(masks.shape[:2])
    label = wanted.flatten(-2).gather(2, at[..., None])[..., 0].long()
    x, y = at % masks.shape[-1], at // masks.shape[-1]
    return torch.stack([x, y], dim=-1).float() * 2.0 + 0.5, label


def _tell(run: Run, told: dict[str, Tensor], *, size: int) -> None:
    """Keep running means, and log them now and then."""
    if run.step % 5 == 0:
        for name, value in told.items():
            number = float(value.detach())
            if math.isfinite(number):
                run.means[name] = 0.9 * run.means.get(name, number) + 0.1 * number
    if run.step % TELL_EVERY_STEPS == 0:
        line = " ".join(f"{name} {value:.3f}" for name, value in run.means.items())
        logger.info("step %d size %d %.0f s: %s", run.step, size, run.trained_s, line)


def main() -> None:
    """Read the flags, train, and leave ``state.pth`` (f16) and ``arch.json`` in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it scikit-image's")
    parser.add_argument("--regions", type=Path, help="a folder of photographs with instances.json: regions that people drew")
    parser.add_argument("--objects", type=Path, help="a folder of pictures of single things, with an alpha channel")
    parser.add_argument("--architecture", type=Path, help="a JSON file; without it the embedded model's")
    parser.add_argument("--start", type=Path, help="weights to start from, as release writes them; without it they are random")
    parser.add_argument("--minutes", type=float, default=100.0)
    parser.add_argument(
        "--first-size",
        type=int,
        help="side of the input at the beginning, a multiple of 32; by default half the architecture's",
    )
    parser.add_argument("--full-size-from", type=float, default=0.5, help="share of the time after which it is all of that")
    parser.add_argument("--scenes-a-step", type=int, default=8)
    parser.add_argument("--clicks-a-scene", type=int, default=12)
    parser.add_argument("--boxes-a-scene", type=int, default=4)
    parser.add_argument("--refine-chance", type=float, default=0.25)
    parser.add_argument(
        "--photo-chance", type=float, default=PHOTO_CHANCE, help="share of scenes on a photograph, its regions asked for"
    )
    parser.add_argument("--whole-chance", type=float, default=0.5, help="share of these on as much of it as fits, not a piece")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--reuse", type=int, default=3, help="times a scene is used; 1 where many workers draw")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1_000_000)
    flags = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder, photos, described = flags.pop("output"), flags.pop("photos"), flags.pop("architecture")
    start, objects, regions = flags.pop("start"), flags.pop("objects"), flags.pop("regions")
    folder.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    architecture = json.loads(described.read_text()) if described else ARCHITECTURE
    flags["first_size"] = flags["first_size"] or int(architecture["image_size"]) // 2
    cache = folder / "regions"
    loaded = load_photos(photos, cache=cache) + (load_drawn_photos(regions, cache=cache) if regions else [])
    bank = PhotoBank.of(
        loaded,
        load_objects(objects),
        photo_chance=flags.pop("photo_chance"),
        whole_chance=flags.pop("whole_chance"),
        chances=weigh_photos(loaded),
    )
    sam = train(Recipe(**flags), architecture=architecture, bank=bank, folder=folder, start=start)
    state = {name: value.half().cpu().contiguous() for name, value in sam.state_dict().items()}
    torch.save(state, folder / "state.pth")
    (folder / "arch.json").write_text(json.dumps(architecture, indent=2) + "\n")


if __name__ == "__main__":
    main()
