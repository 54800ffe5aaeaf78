"""The notebooks: pairs of a script and a notebook with the same cells, run from top to bottom."""

import os
import time
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LIMIT = 180  # seconds each


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks():
    assert len(SCRIPTS) == 8 == len(list(FOLDER.glob("*.ipynb")))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_script_and_notebook_are_a_pair(script: Path):
    """The same cells; every figure was drawn, and no cell ended in an error or has warnings."""
    notebook = nbformat.read(script.with_suffix(".ipynb"), 4)
    assert cells(jupytext.read(script)) == cells(notebook)
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    drawn = [out for out in outputs if "image/png" in out.get("data", {})]
    shown = sum(cell.source.count("plt.show()") for cell in notebook.cells)
    assert len(drawn) == shown > 0
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]


@pytest.mark.full(shard="notebooks")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_notebook_runs(script: Path, figure, tmp_path):
    start = time.perf_counter()
    where = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(jupytext.read(script), timeout=LIMIT, resources=where)
    client.execute(env=os.environ | {"PYTHONPATH": str(FOLDER.parent)})
    figure(script.stem, time.perf_counter() - start, "s")
    assert time.perf_counter() - start <= LIMIT
