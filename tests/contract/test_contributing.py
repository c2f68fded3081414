"""The sampler of CONTRIBUTING.md, put to the test as the page says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.documents import ROOT, blocks

SAMPLER, CONTRACT = (block.text for block in blocks("CONTRIBUTING.md", "python"))
COMMAND = blocks("CONTRIBUTING.md", "sh")[0].text


def test_the_sampler_passes_the_contract_suite_by_the_command_of_the_page(tmp_path: Path) -> None:
    checkout = tmp_path / "spark_hpo"
    shutil.copytree(
        ROOT / "tests/contract", checkout / "tests/contract", ignore=shutil.ignore_patterns("__*")
    )
    for name in (
        *("spark_hpo", "pyproject.toml"),
        *("tests/__init__.py", "tests/conftest.py", "tests/support", "tests/benchmarks"),
    ):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / ".venv").symlink_to(Path(sys.prefix))
    (checkout / "crossover.py").write_text(SAMPLER)
    (checkout / "tests/contract/test_crossover.py").write_text(CONTRACT)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "VIRTUAL"))
    }
    done = subprocess.run(
        ["bash", "-ec", COMMAND], cwd=checkout, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_it_is_the_one_that_the_example_package_brings() -> None:
    package = ROOT / "tests/data/plugin_package/example_plugins/crossover.py"
    assert package.read_text() == SAMPLER
    assert len(list(filter(None, SAMPLER.splitlines()))) <= 30
