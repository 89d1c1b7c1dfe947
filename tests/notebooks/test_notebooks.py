"""Every shipped notebook runs from top to bottom without a browser, and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import workbench
from workbench.resources import notebooks_path

NOTEBOOKS = sorted(notebooks_path().glob("*.ipynb"))
EXPECTED = {
    "00_workbench.ipynb",
    "01_grids.ipynb",
    "02_your_own_model.ipynb",
    "03_integer_only.ipynb",
    "04_lut_gemm.ipynb",
    "05_power_exponent.ipynb",
    "06_methods.ipynb",
    "07_status_quo.ipynb",
}
MAX_LINES = 15


def names(path: Path) -> str:
    return path.name


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_notebooks_ship():
    assert {path.name for path in NOTEBOOKS} >= EXPECTED


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_runs(path, tmp_path, monkeypatch):
    """Run in an empty folder: an installed notebook has no repository around it."""
    source = str(Path(workbench.__file__).resolve().parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    for number, cell in enumerate(code_cells(notebook)):
        for output in cell.outputs:
            assert output.output_type != "error"
            unwanted = output.output_type == "stream" and output.name == "stderr" and "Traceback" in output.text
            assert not unwanted, f"cell {number} of {path.name} wrote {output.text}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_is_stripped_and_thin(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_names_no_machine_and_downloads_nothing(path):
    code = "\n".join(cell.source for cell in code_cells(nbformat.read(path, as_version=4)))
    live = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith("#"))
    assert "/home/" not in live
    assert "http://" not in live
    assert "https://" not in live
