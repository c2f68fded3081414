"""Runs every block of the pages on porting, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.tables import write_clusters

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/from-sparktrials.md", "docs/scikit-learn.md"])
def test_every_block_of_a_porting_page_runs(
    page: str, spark: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "docs/from-sparktrials.md":
        pytest.importorskip("optuna", reason="Optuna is an extra")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    write_clusters(tmp_path / "data/table")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
