"""A table of 20 GB trains in 1.5 GB: `make test-large`, minutes, and 20 GB of disk for the node cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.large_table import write_large

GB = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_large(folder / "table", 20 * GB)
    return folder


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("reader", ["arrow", "petastorm"])
@pytest.mark.parametrize("cached", [False, True])
def test_twenty_gigabytes_train_in_one_and_a_half(folder: Path, reader: str, cached: bool) -> None:
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support/large_table.py"),
        str(folder),
        "--reader",
        reader,
    ]
    if cached:
        command += ["--cache", str(folder / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    print(answer)
    assert answer["rows"] * 33 * 4 >= 20 * GB
    assert answer["peak_mb"] * 2**20 < 1.5 * GB
