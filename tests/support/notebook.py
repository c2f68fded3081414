"""Notebooks run as in Jupyter: a kernel of this Python, cell after cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

LIMIT_S = 240  # of a cell


def from_cells(*cells: str) -> nbformat.NotebookNode:
    """A notebook with these cells of code."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run it from top to bottom with `folder` as its directory; an error in a cell is raised."""
    client = NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def shown(cell: nbformat.NotebookNode) -> Sequence[Mapping[str, Any]]:
    """What a cell shows, by MIME type."""
    return [output["data"] for output in cell.outputs if "data" in output]


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell has written to its streams."""
    return "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")
