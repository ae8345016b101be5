"""The house's floors, as data: who may import whom, and where each heavy library may be imported."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("labeler.errors", "labeler.options"),
    (
        "labeler.types",
        "labeler.geometry",
        "labeler.orientation",
        "labeler.rle",
        "labeler.ahead",
        "labeler.signals",
        "labeler.limits",
        "labeler.locks",
        "labeler.temporary",
        "labeler.compiled",
        "labeler.tracing",
        "labeler.masks",
        "labeler.adaptive",
        "labeler.regions",
        "labeler.sniff",
        "labeler.architecture",
        "labeler.model_folder",
    ),
    ("labeler.retries", "labeler.stores", "labeler.store_errors", "labeler.store_pages"),
    (
        "labeler.storage",
        "labeler.ranges",
        "labeler.archives",
        "labeler.image_rows",
        "labeler.pictures",
        "labeler.images",
        "labeler.checkpoints",
        "labeler.engine",
        "labeler.speed",
        "labeler.tables",
        "labeler.reviews",
        "labeler.runs",
        "labeler.draw",
    ),
    (
        "labeler.tiny_vit",
        "labeler.encoders",
        "labeler.heads",
        "labeler.stages",
        "labeler.graphs",
        "labeler.prompts",
        "labeler.prompt_rows",
        "labeler.predictor",
        "labeler.call_size",
        "labeler.quantize",
        "labeler.convert",
        "labeler.models",
    ),
    (
        "labeler.generator",
        "labeler.prompted",
        "labeler.pages",
        "labeler.pages.session",
        "labeler.pages.shelf",
        "labeler.pages.scene",
        "labeler.pages.downloads",
        "labeler.pages.review_desk",
        "labeler.pages.widgets",
        "labeler.pages.click_page",
        "labeler.pages.review_page",
        "labeler.pages.serve",
    ),
    (
        "jobs.options",
        "jobs.refs",
        "jobs.processes",
        "jobs.ordering",
        "jobs.lists",
        "jobs.patterns",
        "jobs.reading",
        "jobs.outages",
        "jobs.sources",
        "jobs.prompt_files",
        "jobs.matching",
        "jobs.prompts",
        "jobs.parts",
        "jobs.plan",
        "jobs.extension",
        "jobs.lease",
        "jobs.shards",
        "jobs.events",
        "jobs.asking",
        "jobs.labeling",
        "jobs.worker",
        "jobs.bench_worker",
        "export.options",
        "export.polygons",
        "export.frames",
        "export.filters",
        "export.selection",
        "export.names",
        "export.folders",
        "export.coco",
        "export.yolo",
        "export.sa1b",
        "export.labelme",
        "export.masks",
        "export.fiftyone",
        "export.photos",
        "export.preview",
        "export.page",
    ),
    (
        "jobs.tallies",
        "jobs.report",
        "jobs.verify_prompts",
        "jobs.verify",
        "jobs.ledger",
        "jobs.cluster",
        "jobs.worker_memory",
        "jobs.actors",
        "jobs.crew",
        "jobs.run",
        "jobs.driver",
        "jobs.estimate",
        "jobs.bench",
        "export.progress",
    ),
    ("labeler.flags", "labeler.cli", "jobs.arguments", "jobs.bench_cli", "jobs.cli", "export.cli"),
    ("labeler.__main__", "jobs.__main__", "export.__main__"),
)
"""From the ground up. A module may import those below it, and its neighbours named left of it."""

DOORS = ("labeler", "jobs", "export")
"""The packages' own ``__init__``: they import nothing before a name is used."""

HEAVY: dict[str, set[str]] = {
    "PIL": {"labeler.images", "labeler.draw"},
    "cyclopts": {"labeler.flags", "labeler.cli", "jobs.arguments", "jobs.bench_cli", "jobs.cli", "export.cli"},
    "fastapi": {"labeler.pages.serve"},
    "fiftyone": {"export.fiftyone"},
    "fsspec": {"labeler.stores", "labeler.store_pages"},
    "cv2": {"export.polygons"},
    "gradio": {"labeler.pages.widgets", "labeler.pages.click_page", "labeler.pages.review_page", "labeler.pages.serve"},
    "numba": {"labeler.compiled"},
    "onnx": {"labeler.convert", "labeler.graphs"},
    "onnxruntime": set(),
    "nncf": {"labeler.quantize"},
    "openvino": {"labeler.engine", "labeler.graphs", "labeler.quantize", "labeler.speed"},
    "pandas": set(),
    "pyarrow": {
        "labeler.tables",
        "labeler.reviews",
        "labeler.prompt_rows",
        "jobs.prompts",
        "jobs.refs",
        "jobs.ordering",
        "labeler.image_rows",
        "jobs.parts",
        "jobs.plan",
        "jobs.extension",
    },
    "pycocotools": {"labeler.rle"},
    "ray": {"jobs.cluster", "jobs.actors", "jobs.crew", "jobs.run"},
    "segment_anything": {
        "labeler.convert",
        "labeler.graphs",
        "labeler.heads",
        "labeler.stages",
        "labeler.tiny_vit",
        "labeler.encoders",
    },
    "torch": {"labeler.convert", "labeler.graphs", "labeler.heads", "labeler.stages", "labeler.tiny_vit", "labeler.encoders"},
    "torchvision": set(),
    "uvicorn": {"labeler.pages.serve"},
}

ORDER = {module: (floor, place) for floor, row in enumerate(FLOORS) for place, module in enumerate(row)}


def list_modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in DOORS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def list_imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file, as dotted names; not those for the type checker only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen: list[ast.AST] = [tree]
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in ORDER else str(node.module) for name in names)
        unseen += ast.iter_child_nodes(node)


def test_every_module_has_its_floor() -> None:
    """A new file is put on a floor before it is used."""
    assert set(list_modules()) == set(ORDER) | set(DOORS)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_down(module: str) -> None:
    """Nothing imports from above; the job and the export never meet."""
    for name in list_imports(list_modules()[module]):
        if name.split(".")[0] not in DOORS or name == module.split(".")[0]:
            continue  # Not ours; or the package's own door, which imports nothing by itself.
        assert name in ORDER, f"{module} imports {name}, which is a door or unknown"
        assert ORDER[name] < ORDER[module], f"{module} imports {name} from above"
        assert {module.split(".")[0], name.split(".")[0]} != {"jobs", "export"}
        assert module.split(".")[0] != "labeler" or name.split(".")[0] == "labeler"


@pytest.mark.parametrize("module", ORDER)
def test_heavy_libraries_stay_behind_their_seams(module: str) -> None:
    """Each is imported where the plan says and nowhere else."""
    for name in list_imports(list_modules()[module]):
        library = name.split(".")[0]
        assert library not in HEAVY or module in HEAVY[library], f"{module} imports {library}"


@pytest.mark.parametrize("door", DOORS)
def test_importing_a_package_imports_nothing_heavy(door: str) -> None:
    """The door opens at once."""
    code = f"import sys, {door}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_nobody_is_told_that_openvino_is_used(tmp_path: Path) -> None:
    """By itself its import sends an event, from every process, and leaves an id in the user's home."""
    tell = "import openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    told = {}
    for name, code in (("alone", tell), ("ours", f"import labeler.engine, labeler.quantize; {tell}")):
        home = tmp_path / name
        home.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**environment, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "HTTPS_PROXY": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=True,
        )
        told[name] = (done.stdout.strip(), [path.name for path in home.iterdir()])
    assert told["alone"] == ("openvino_telemetry.main", ["intel"])
    assert told["ours"] == ("openvino.tools.ovc.telemetry_stub", [])


def test_a_worker_needs_no_torch() -> None:
    """All that labels is imported without the libraries of the conversion."""
    code = "import sys, labeler.generator, labeler.models, jobs.worker, jobs.run, export.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "segment_anything", "onnx", "nncf"} & set(loaded.stdout.split())
