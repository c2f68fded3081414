"""Progress of a study while it runs: what the terminal's line and the notebook's bar say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from spark_hpo.callbacks.progress_bar import NotebookBar, TerminalLine, live_status_of, progress_callback
from spark_hpo.report.live_line import ProgressLine
from spark_hpo.report.notebook import in_notebook
from spark_hpo.study import Budget
from tests.support.interrupting import StopAfter
from tests.support.study_bench import StudyRunner


@pytest.fixture
def bench(tmp_path: Path) -> StudyRunner:
    return StudyRunner(tmp_path / "study")


def test_terminal_line_is_shown_during_the_search(bench: StudyRunner) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    line = ProgressLine("digits", "loss", console=console)
    study = bench.study(callbacks=[TerminalLine(line)])
    study.run()
    assert line.render().plain.startswith("digits  ")
    assert f"best loss {study.best.metrics['loss']:.4g}" in line.render().plain  # type: ignore[union-attr]
    assert "100%" in line.render().plain
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "it is gone, and the cursor is back"


def test_progress_bar_counts_trials_and_continues_after_a_resume(
    bench: StudyRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.study(callbacks=[NotebookBar("digits", "loss"), StopAfter(12)]).run()
    first = capsys.readouterr().err.rsplit("\r", 1)[1]
    assert not first.startswith("digits: 100%")
    study = bench.study(callbacks=[NotebookBar("digits", "loss")])
    spent = int(live_status_of(study).spent)
    assert spent > 0
    study.run()
    lines = capsys.readouterr().err.split("\r")
    assert next(f" {spent}/15 " in line for line in lines if "digits" in line), "it begins where it stood"
    assert "digits: 100%" in lines[-1]
    assert "15/15" in lines[-1]
    assert f"best loss {study.best.metrics['loss']:.4g}" in lines[-1]  # type: ignore[union-attr]


@pytest.mark.parametrize("unit", ["epochs", "parts"])
def test_notebook_bar_counts_the_resource_where_it_is_the_budget(
    bench: StudyRunner, capsys: pytest.CaptureFixture[str], unit: str
) -> None:
    bar = NotebookBar("digits", "loss", unit)
    study = bench.study(callbacks=[bar], trials=None, budget=Budget(resource=20))
    study.run()
    last = capsys.readouterr().err.rsplit("\r", 1)[1]
    assert study.progress.resource_spent > 20, "what ran was finished"
    assert "100%" in last
    assert "20/20" in last
    assert unit.removesuffix("s") in last


def test_progress_callback_is_a_line_outside_of_a_notebook() -> None:
    assert not in_notebook()
    assert isinstance(progress_callback("digits", "loss"), TerminalLine)
