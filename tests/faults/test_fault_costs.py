"""The table of fault costs: tries are summed, and the longest recovery is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cost_table import CostTable


def test_cost_table_has_one_row_per_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = CostTable()
    costs.add("rank killed", repeated_s=0.5, recovery_s=3.0)
    costs.add("trial raises")
    costs.add("rank killed", lost=1, repeated_s=0.25, recovery_s=2.0, tries=2)
    costs.show(tmp_path / "faults.md")
    page = (tmp_path / "faults.md").read_text()
    assert page.startswith("# What a fault costs\n")
    assert "| rank killed | 3 | 1 | 0.8 | 3.0 |" in page
    assert "| trial raises | 1 | 0 | 0.0 | - |" in page
    assert "| rank killed | 3 |" in capsys.readouterr().out, "the page is printed as well"
