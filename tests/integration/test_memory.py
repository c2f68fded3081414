"""Memory does not grow with the table. `make test-large` shows it with 20 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.large_table import write_large

TABLE_MB = 1200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_large(folder / "table", TABLE_MB * 10**6)
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_rank_streams_a_table_larger_than_its_memory(folder: Path, cached: bool) -> None:
    program = Path(__file__).parents[1] / "support/large_table.py"
    command = [sys.executable, str(program), str(folder)]
    if cached:
        command += ["--cache", str(folder / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["rows"] * 33 * 4 >= TABLE_MB * 10**6
    assert answer["peak_mb"] - answer["before_mb"] < TABLE_MB / 3
