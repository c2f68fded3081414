from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from spark_hpo.cli import driver
from spark_hpo.report.live_line import LiveStatus
from tests.support.tables import clusters_study, write_clusters


@pytest.mark.medium
def test_terminal_shows_what_happens_before_during_and_after_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Line(driver.ProgressLine):
        def announce(self, phase: str) -> None:
            super().announce(phase)
            shown.append(self.render().plain)

        def update(self, status: LiveStatus) -> None:
            super().update(status)
            shown.append(self.render().plain)

    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    monkeypatch.setattr(driver, "diagnostics", lambda: console)
    monkeypatch.setattr(driver, "ProgressLine", Line)
    logger = logging.getLogger("spark_hpo")
    monkeypatch.setattr(logger, "level", logging.INFO)
    write_clusters(tmp_path / "table")
    assert driver.drive(clusters_study(tmp_path, budget={"trials": 2}), resume="auto", as_json=True) == 0
    assert shown[0] == "clusters  starting  0 s"
    at_end = shown.index("clusters  writing the results  0 s")
    assert any("best accuracy" in line for line in shown[:at_end])
    assert not any("best accuracy" in line or "started with" in line for line in shown[at_end:])
    assert logger.handlers == []
