"""What OpenVINO is told on purpose, and how its faults reach a person."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from labeler.engine import MAX_SHAPES, MAX_UNUSED_S, Engine
from labeler.errors import ModelError
from labeler.model_folder import ModelInfo, read_model_info


def encode_noise(engine: Engine, side: int) -> np.ndarray:
    return engine.encode(np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32))


def test_f32_is_computed_unless_asked_otherwise(prototype_folder: Path) -> None:
    """Also on a CPU where OpenVINO would choose bf16 by itself: the answer differs from bf16's where there is one."""
    info = read_model_info(prototype_folder)
    features = encode_noise(Engine(prototype_folder, info, threads=1), info.image_size)
    explicit = encode_noise(Engine(prototype_folder, info, threads=1, precision="f32"), info.image_size)
    np.testing.assert_array_equal(features, explicit)
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        rough = encode_noise(Engine(prototype_folder, info, threads=1, precision="bf16"), info.image_size)
        assert 1e-6 < np.abs(rough - features).max() < 0.3 * np.abs(features).max()


def test_a_precision_this_cpu_lacks_is_an_error(prototype_folder: Path) -> None:
    """It names what the CPU has."""
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    lacking = [p for p, name in (("bf16", "BF16"), ("f16", "FP16")) if name not in capabilities]
    if not lacking:
        pytest.skip("this CPU computes in every precision there is")
    with pytest.raises(ModelError, match="FP32"):
        Engine(prototype_folder, read_model_info(prototype_folder), threads=1, precision=lacking[0])


def test_compiled_graphs_are_kept_and_give_the_same(prototype_folder: Path, tmp_path: Path) -> None:
    """The second engine reads what the first compiled, and both answer as one without a cache."""
    info = read_model_info(prototype_folder)
    expected = encode_noise(Engine(prototype_folder, info, threads=1), info.image_size)
    for _ in range(2):
        engine = Engine(prototype_folder, info, threads=1, cache_folder=tmp_path)
        np.testing.assert_array_equal(encode_noise(engine, info.image_size), expected)
    assert list(tmp_path.rglob("*.blob"))


def test_a_broken_graph_is_a_model_error_that_names_it(prototype_folder: Path, tmp_path: Path) -> None:
    """The folder's own fault, never an image's."""
    folder = tmp_path / "model"
    shutil.copytree(prototype_folder, folder)
    (folder / "encoder.xml").write_text("<net>")
    with pytest.raises(ModelError, match=r"encoder\.xml"):
        Engine(folder, read_model_info(folder), threads=1)


def make_prompts(info: ModelInfo, num_prompts: int) -> dict[str, np.ndarray]:
    """One point each, and SAM's padding point."""
    random = np.random.default_rng(1)
    points = random.uniform(0, info.image_size, (num_prompts, 2, 2)).astype(np.float32)
    return {
        "features": random.normal(size=info.embedding_shape).astype(np.float32),
        "points": points * np.array([1, 0], np.float32)[:, None],
        "labels": np.tile(np.array([1, -1], np.int32), (num_prompts, 1)),
    }


@pytest.mark.parametrize("num_prompts", [1, 2, 7])
def test_only_wanted_masks_are_made(prototype_folder: Path, num_prompts: int) -> None:
    """Every prompt has its predicted IoU; the wanted ones' logits are what they are when all are wanted."""
    info = read_model_info(prototype_folder)
    engine = Engine(prototype_folder, info, threads=2)
    inputs = make_prompts(info, num_prompts)
    every = engine.predict(**inputs)
    assert every.rows.tolist() == list(range(num_prompts))
    middle = np.median(every.predicted_iou[:, 1])
    some = engine.predict(**inputs, wanted=lambda iou: iou[:, 1] > middle)
    np.testing.assert_array_equal(some.predicted_iou, every.predicted_iou)
    assert some.rows.tolist() == np.flatnonzero(every.predicted_iou[:, 1] > middle).tolist()
    np.testing.assert_array_equal(some.logits[some.rows], every.logits[some.rows])
    none = engine.predict(**inputs, wanted=lambda iou: np.zeros(len(iou), np.bool_))
    assert len(none.rows) == 0


def test_compiled_graphs_are_kept_apart_by_their_threads(prototype_folder: Path, tmp_path: Path) -> None:
    """OpenVINO's own cache would give a graph that was compiled for one thread to who asks for two."""
    info = read_model_info(prototype_folder)
    kept = []
    for threads in (1, 2, 1):
        Engine(prototype_folder, info, threads=threads, cache_folder=tmp_path)
        kept.append({path.relative_to(tmp_path) for path in tmp_path.rglob("*.blob")})
    assert len(kept[0]) == 1
    assert len(kept[1]) == 2
    assert kept[2] == kept[1]


def test_processes_that_compile_the_same_graphs_wait_for_each_other(prototype_folder: Path, tmp_path: Path) -> None:
    """OpenVINO writes in place what the others have mapped and compute from: they died of it, or read half a graph."""
    script = """
import sys
from pathlib import Path
import numpy as np
from labeler.engine import Engine
from labeler.model_folder import read_model_info
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
info = read_model_info(folder)
engine = Engine(folder, info, threads=2, cache_folder=cache)
print("ready", flush=True)
sys.stdin.readline()
features = np.zeros(info.embedding_shape, np.float32)
for num_points in range(1, 7):
    for num_prompts in (1, 3):
        points, labels = np.ones((num_prompts, num_points, 2), np.float32), np.ones((num_prompts, num_points), np.int32)
        for _ in range(2):
            engine.predict(features, points=points, labels=labels)
"""
    arguments = [sys.executable, "-c", script, str(prototype_folder), str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(arguments, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]


def test_graphs_that_nobody_used_for_a_month_go(prototype_folder: Path, tmp_path: Path) -> None:
    """Those in use are marked as used each time; what is not ours in the cache stays."""
    info = read_model_info(prototype_folder)
    Engine(prototype_folder, info, threads=1, cache_folder=tmp_path)
    (used,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "1.blob").write_bytes(b"graph")
    long_ago_s = time.time() - MAX_UNUSED_S
    os.utime(used, (long_ago_s + 3600, long_ago_s + 3600))
    os.utime(tmp_path / "old", (long_ago_s - 3600, long_ago_s - 3600))
    Engine(prototype_folder, info, threads=1, cache_folder=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [used]
    assert used.stat().st_mtime > time.time() - 3600


def test_many_prompts_let_others_ask_meanwhile(prototype_folder: Path) -> None:
    """Somebody's click is answered, rightly, while masks of everything are made for somebody else."""
    info = read_model_info(prototype_folder)
    engine = Engine(prototype_folder, info, threads=1)
    many, one = make_prompts(info, 9), make_prompts(info, 1)
    one["features"] = -one["features"]
    alone = [engine.predict(**many), engine.predict(**one)]
    answers = []

    def wait_for_a_click(iou: np.ndarray) -> np.ndarray:
        if not answers:
            click = threading.Thread(target=lambda: answers.append(engine.predict(**one)), daemon=True)
            click.start()
            click.join(timeout=60)
        return np.ones(len(iou), np.bool_)

    busy = engine.predict(**many, wanted=wait_for_a_click)
    assert answers
    np.testing.assert_array_equal(answers[0].logits, alone[1].logits)
    np.testing.assert_array_equal(busy.logits, alone[0].logits)


def test_graphs_of_old_shapes_are_given_back(prototype_folder: Path) -> None:
    """Each number of points has graphs of its own: a list of prompts of all kinds must not fill the memory."""
    info = read_model_info(prototype_folder)
    engine = Engine(prototype_folder, info, threads=1)
    features, answers = np.zeros(info.embedding_shape, np.float32), []
    for num_points in [*range(1, MAX_SHAPES + 4), 1]:
        prompts = {"points": np.ones((1, num_points, 2), np.float32), "labels": np.ones((1, num_points), np.int32)}
        answers.append(engine.predict(features, **prompts))
        assert sum(name == "prompts" for name, *_ in engine._graphs) <= MAX_SHAPES
    np.testing.assert_array_equal(answers[0].logits, answers[-1].logits)


@pytest.mark.parametrize("under_masks", [False, True])
def test_answers_can_be_received_as_they_are_drawn(prototype_folder: Path, under_masks: bool) -> None:
    """Whoever receives gets each wanted prompt once, with the predicted IoU and logits that are kept otherwise."""
    info = read_model_info(prototype_folder)
    engine = Engine(prototype_folder, info, threads=2)
    inputs = make_prompts(info, 7)
    if under_masks:
        height, width = info.embedding_shape[2:]
        inputs["mask_logits"] = np.random.default_rng(2).normal(size=(7, 1, 4 * height, 4 * width)).astype(np.float32)
    kept = engine.predict(**inputs)
    middle = np.median(kept.predicted_iou[:, 1])
    received: list[tuple[int, np.ndarray, np.ndarray]] = []
    answers = engine.predict(
        **inputs,
        wanted=lambda iou: iou[:, 1] > middle,
        receive=lambda prompt, iou, logits: received.append((prompt, iou.copy(), logits.copy())),
    )
    assert sorted(prompt for prompt, _, _ in received) == np.flatnonzero(kept.predicted_iou[:, 1] > middle).tolist()
    assert answers.logits.shape[0] == 0
    for prompt, iou, logits in received:
        np.testing.assert_array_equal(iou, kept.predicted_iou[prompt])
        np.testing.assert_array_equal(logits, kept.logits[prompt])


def test_an_error_of_who_receives_is_raised(prototype_folder: Path) -> None:
    """It happens in a thread of the engine, which goes on working afterwards."""
    info = read_model_info(prototype_folder)
    engine = Engine(prototype_folder, info, threads=2)

    def refuse(_prompt: int, _iou: np.ndarray, _logits: np.ndarray) -> None:
        raise LookupError("not this one")

    with pytest.raises(LookupError, match="not this one"):
        engine.predict(**make_prompts(info, 5), receive=refuse)
    assert len(engine.predict(**make_prompts(info, 5)).logits) == 5


def test_a_batch_does_not_depend_on_the_number_of_threads(prototype_folder: Path) -> None:
    """Each call of a batch runs on one thread: the same bits for any number of them."""
    info = read_model_info(prototype_folder)
    inputs = make_prompts(info, 9)
    alone = Engine(prototype_folder, info, threads=1).predict(**inputs)
    together = Engine(prototype_folder, info, threads=2).predict(**inputs)
    np.testing.assert_array_equal(alone.logits, together.logits)
    np.testing.assert_array_equal(alone.predicted_iou, together.predicted_iou)


def test_predicted_iou_is_finer_than_bf16(prototype_folder: Path) -> None:
    """The IoU head computes in f32 at every precision: bf16's steps near 0.88 would make ties."""
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    info = read_model_info(prototype_folder)
    iou = Engine(prototype_folder, info, threads=1, precision="bf16").predict(**make_prompts(info, 8)).predicted_iou
    assert np.mean(iou.view(np.uint32) & 0xFFFF != 0) > 0.9
