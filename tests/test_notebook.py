"""The notebook of examples/ runs from top to bottom, in a kernel of its own.

Its class is defined in a cell: there is no file to import it from, here or where it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_stored_without_outputs(notebook: Any) -> None:
    """What a run prints differs each time, and holds paths of the machine."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_runs_from_top_to_bottom(notebook: Any, tmp_path: Path) -> None:
    """The notebook asserts that another process gives the same answers; here, that it was the class that gave them."""
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()

    printed = [
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stdout"
    ]
    assert any(text.startswith("The model comes back as it is: ") for text in printed)
    assert any(text.startswith("Moons 1.5 ['") for text in printed)
    assert {path.name for path in tmp_path.iterdir()} == {"tutorial"}
