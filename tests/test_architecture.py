"""The rooms keep their order: imports go down only, modules form no cycle, heavy packages load late."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "workbench"
ROOMS = [
    "errors",
    "resources",
    "grids",
    "kernels",
    "checkpoints",
    "quantization",
    "calibration",
    "integer",
    "sparsity",
    "methods",
    "evaluation",
    "sweeps",
    "export",
    "figures",
    "panels",
    "shell",
    "cli",
]
# Which rooms may import a package at all (None: every room, but only inside functions).
GUESTS = {
    "plotly": {"figures", "panels"},
    "ipywidgets": {"panels"},
    "anywidget": {"panels"},
    "traitlets": {"panels"},
    "IPython": {"panels"},
    "typer": {"shell", "cli"},
    "numba": {"kernels"},
    "gguf": {"checkpoints", "integer"},
    "huggingface_hub": {"checkpoints"},
    "tflite": {"integer"},
    "onnx": {"integer"},
    "onnxruntime": {"integer"},
    "ai_edge_litert": {"integer"},
    "tflite_micro": {"integer"},
    "lm_eval": {"evaluation"},
    "sklearn": {"calibration", "evaluation"},
}
LATE = {"torch", "transformers", "pandas", "gguf", "huggingface_hub", "tflite"}
LATE |= {"lm_eval", "scipy", "sklearn", "yaml"}
LATE |= {"onnx", "onnxruntime", "ai_edge_litert", "tflite_micro"}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, *, at_import_time: bool) -> set[str]:
    """Names that a module imports (``from a import b`` gives ``a.b`` where that is a module, else ``a``)."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the whole name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in SOURCES else str(node.module))
        elif (at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and at_import_time and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def room(module: str) -> str:
    return module.split(".")[1]


INSIDE = [name for name in SOURCES if name != "workbench"]


@pytest.mark.parametrize("module", INSIDE)
def test_rooms_import_only_rooms_below(module: str):
    assert room(module) in ROOMS, f"{module} stands in no room of the house plan"
    for imported in imports(module, at_import_time=False):
        if imported.startswith("workbench.") and room(imported) != room(module):
            below = ROOMS[: ROOMS.index(room(module))]
            assert room(imported) in below, f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize("module", INSIDE)
def test_packages_stay_in_their_rooms_and_heavy_ones_load_late(module: str):
    for imported in imports(module, at_import_time=False):
        package = imported.split(".")[0]
        if package in GUESTS:
            assert room(module) in GUESTS[package], f"{module} imports {package}"
    early = {name.split(".")[0] for name in imports(module, at_import_time=True)}
    assert not early & LATE, f"{module} imports {early & LATE} before it is needed"


def test_modules_form_no_cycle():
    graph = {
        module: {name for name in imports(module, at_import_time=True) if name in SOURCES and name != module}
        for module in INSIDE
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as cycle:
        pytest.fail(f"modules import each other: {' -> '.join(cycle.args[1])}")


def test_importing_the_package_loads_nothing_heavy():
    script = "import sys, workbench; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "transformers", "numba", "plotly", "ipywidgets", "pandas", "gguf", "numpy", "tflite"}
    assert not heavy & set(loaded)


def test_every_public_name_exists():
    import workbench

    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = workbench.nonsense


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_have_one_job(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, f"{path.name} has two jobs"
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}
