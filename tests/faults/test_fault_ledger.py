"""The table of what faults cost: tries are added up, and of the times to recover the longest is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ledger import Ledger

pytestmark = pytest.mark.quick


def test_tries_of_one_fault_are_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    ledger.add("rank killed", repeated_s=0.5, recovery_s=3.0)
    ledger.add("trial raises")
    ledger.add("rank killed", lost=1, repeated_s=0.25, recovery_s=2.0, tries=2)
    ledger.show(tmp_path / "faults.md")
    page = (tmp_path / "faults.md").read_text()
    assert page.startswith("# What a fault costs\n")
    assert "| rank killed | 3 | 1 | 0.8 | 3.0 |" in page
    assert "| trial raises | 1 | 0 | 0.0 | - |" in page
    assert "| rank killed | 3 |" in capsys.readouterr().out, "what is shown is what is written"
