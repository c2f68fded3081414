"""Runs notebooks as Jupyter does, in a kernel of this Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

LIMIT_S = 240  # of a cell


def from_cells(*cells: str) -> nbformat.NotebookNode:
    """Return a notebook of these code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder. Raises the error of a cell."""
    client = NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def shown(cell: nbformat.NotebookNode) -> Sequence[Mapping[str, Any]]:
    """Return the displayed output of a cell, by MIME type."""
    return [output["data"] for output in cell.outputs if "data" in output]


def printed(cell: nbformat.NotebookNode) -> str:
    """Return the text that a cell has printed."""
    return "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")
