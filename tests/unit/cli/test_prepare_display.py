"""The phases of `spark-hpo prepare`, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from spark_hpo.cli.prepare_display import PrepareDisplay
from spark_hpo.prepare.phases import announce


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_prepare_display_says_a_line_per_phase_elsewhere() -> None:
    there = console(terminal=False)
    with PrepareDisplay(there):
        announce("reading s3://user:secret@lake/sales")
        announce("writing 60,000 rows")
    announce("after the end")
    first, second = shown(there).splitlines()
    assert first.startswith("reading")
    assert "secret" not in first
    assert second == "writing 60,000 rows"


def test_prepare_display_is_silent_without_a_console(capfd: pytest.CaptureFixture[str]) -> None:
    with PrepareDisplay(None):
        announce("writing 60,000 rows")
    assert capfd.readouterr() == ("", "")


def test_prepare_display_shows_finished_tasks_on_a_terminal() -> None:
    there = console(terminal=True)
    # Answers of pyspark's StatusTracker, which needs a JVM.
    stage = SimpleNamespace(numTasks=8, numCompletedTasks=3)
    tracker = SimpleNamespace(getActiveStageIds=lambda: [1], getStageInfo=lambda _: stage)
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(statusTracker=lambda: tracker))
    with PrepareDisplay(there) as display:
        display.watch(spark)
        announce("writing 60,000 rows")
        display.refresh()
    assert "writing 60,000 rows" in shown(there)
    assert "3 of 8 tasks" in shown(there)


def test_prepare_display_restores_the_logger() -> None:
    logger = logging.getLogger("spark_hpo.prepare.phases")
    before = logger.level, logger.propagate, list(logger.handlers)
    with PrepareDisplay(console(terminal=False)):
        pass
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
