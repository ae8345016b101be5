"""What OpenVINO is told on purpose, and how its faults reach a person."""

import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from labeler.engine import Engine
from labeler.errors import ModelError
from labeler.model_folder import read_model_info


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
