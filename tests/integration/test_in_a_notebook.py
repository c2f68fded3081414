"""The display of a study in a notebook: a progress bar, then a table and a plot."""

from __future__ import annotations

import nbformat
import pytest

from tests.support.notebook import execute, from_cells, printed, shown

BEGIN = """
from spark_hpo import tune

def train(ctx):
    ctx.report({"loss": ctx.params["x"] ** 2}, resource=ctx.resource.stop)

def search(**more):
    space = {"x": {"type": "uniform", "low": -1, "high": 1}}
    return tune(train, space, metric="loss", mode="min", trials=5, backend="inline", **more)
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> nbformat.NotebookNode:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
        folder = tmp_path_factory.mktemp("notebook")
        notebook = from_cells(BEGIN, "result = search()", "result", "search()", "print(result._repr_html_())")
        return execute(notebook, folder)


@pytest.fixture
def cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return list(notebook.cells)


def pictures(cell: nbformat.NotebookNode) -> int:
    return sum("application/vnd.plotly.v1+json" in data for data in shown(cell))


def tables(cell: nbformat.NotebookNode) -> list[str]:
    return [data["text/html"] for data in shown(cell) if "<table" in data.get("text/html", "")]


def plain(text: str) -> str:
    return text.replace("\u2007", " ")  # tqdm's, as wide as a figure


def test_notebook_shows_a_progress_bar(notebook: nbformat.NotebookNode) -> None:
    widget = "application/vnd.jupyter.widget-view+json"
    (bar,) = [data[widget] for data in shown(notebook.cells[1]) if widget in data]
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    parts = [
        state[child.removeprefix("IPY_MODEL_")]["state"]
        for child in state[bar["model_id"]]["state"]["children"]
    ]
    label, progress, rest = parts
    assert plain(label["value"]) == "train: 100%"
    assert (progress["value"], progress["max"], progress["bar_style"]) == (5, 5, "success")
    assert "5/5" in plain(rest["value"])
    assert "best loss 0.0" in plain(rest["value"])


def test_notebook_shows_a_table_and_a_plot_at_the_end(cells: list[nbformat.NotebookNode]) -> None:
    (table,) = tables(cells[1])
    assert table.count("<tr") == 1 + 5
    assert "is the best after 9 epochs" in table
    assert pictures(cells[1]) == 1


def test_result_is_displayed_again_on_request(cells: list[nbformat.NotebookNode]) -> None:
    assert tables(cells[2]) == tables(cells[1])
    assert pictures(cells[2]) == 1


def test_tune_in_the_last_line_of_a_cell_is_displayed_once(cells: list[nbformat.NotebookNode]) -> None:
    assert len(tables(cells[3])) == pictures(cells[3]) == 1


def test_notebook_prints_nothing_else(cells: list[nbformat.NotebookNode]) -> None:
    assert printed(cells[1]) == ""
    assert "cdn.plot.ly" in printed(cells[4])
