"""The sampler of CONTRIBUTING.md passes the contract suite by the commands of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.documents import ROOT, blocks

SAMPLER, CONTRACT = (block.text for block in blocks("CONTRIBUTING.md", "python"))
COMMAND = blocks("CONTRIBUTING.md", "sh")[0].text


def test_example_sampler_passes_the_contract_without_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "crossover.py").write_text(SAMPLER)
    (tmp_path / "test_crossover.py").write_text(CONTRACT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", COMMAND], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_example_sampler_is_the_one_of_the_example_package() -> None:
    package = ROOT / "tests/data/plugin_package/example_plugins/crossover.py"
    assert package.read_text() == SAMPLER
    assert len(list(filter(None, SAMPLER.splitlines()))) <= 30
