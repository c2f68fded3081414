"""Runs all blocks of docs/python.md in one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.documents import blocks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/python.md").read_text()
BLOCKS = [block.text for block in blocks("docs/python.md", "python") if block.run_by]

pytestmark = pytest.mark.spark


def test_blocks_of_the_python_page_run(
    spark: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_uri: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    names: dict[str, object] = {"__name__": "__main__"}
    for i, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/python.md, block {i + 1}", "exec"), names)
    assert len(BLOCKS) == 5
    assert (tmp_path / "history.html").exists()
    assert (tmp_path / "studies/train/report.html").exists()
    assert list((tmp_path / "tensorboard").glob("trial-*/events*"))
    assert "'rate':" in capsys.readouterr().out
    assert (tmp_path / "studies/longer/journal").is_dir()


def test_python_page_lists_every_argument_of_tune() -> None:
    import inspect

    from spark_hpo import tune

    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert named == set(inspect.signature(tune).parameters) - {"task", "settings"}
