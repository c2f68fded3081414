"""Executes the notebooks of the repository from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pyspark
import pytest

from tests.support.class_archive import java_options
from tests.support.notebook import execute, printed, shown

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPARK = Path(pyspark.__file__).parent
TEXTS = ROOT.parent / "shared/data/sms_spam/sms.tsv"

pytestmark = pytest.mark.cluster


@pytest.fixture
def spark_home(tmp_path: Path) -> Path:
    """A Spark home whose executors write to a temporary folder."""
    home = tmp_path / "spark"
    home.mkdir()
    for path in SPARK.iterdir():
        if path.name != "work":
            (home / path.name).symlink_to(path)
    return home


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace the numbers of trials, epochs and texts by small ones: the code is what is to run."""
    for cell in notebook.cells:
        cell.source = re.sub(r"\btrials=\d+", "trials=2", cell.source)
        cell.source = cell.source.replace("max_resource=9", "max_resource=3")
        cell.source = cell.source.replace("rows(tokenizer, 0, 128)", "rows(tokenizer, 0, 16)")
    return notebook


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs(
    file: Path, tmp_path: Path, spark_home: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("SPARK_HOME", str(spark_home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JDK_JAVA_OPTIONS", java_options())  # of executors, too
    if TEXTS.name in file.read_text():  # the notebook asks its reader to download it
        if not TEXTS.exists():
            pytest.skip("the texts are not here")
        (tmp_path / TEXTS.name).symlink_to(TEXTS)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = execute(shortened(nbformat.read(file, as_version=4)), tmp_path)
    cells = [cell for cell in done.cells if cell.cell_type == "code"]
    tables = [cell for cell in cells if any("<table" in data.get("text/html", "") for data in shown(cell))]
    assert tables
    for cell in cells:
        assert cell in tables or "= tune(" not in cell.source, printed(cell)[-2000:]
    assert list((tmp_path / "studies").glob("*/report.html"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_stored_without_outputs(file: Path) -> None:
    for cell in nbformat.read(file, as_version=4).cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)
