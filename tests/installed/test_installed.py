"""What `make dist` has made, used in an environment that has nothing else: `make test-dist`."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import spark_hpo

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {})
PYTHON = ROOT / "build/from-wheel/bin/python"
STUDY = """
name: prices
study_dir: study
task: tabular
data: {path: table}
objective: {metric: absolute_error, mode: min}
space:
  learning_rate: {type: loguniform, low: 1e-3, high: 1e-1}
  hidden_units: {type: int, low: 4, high: 16}
search: {max_resource: 3}
budget: {trials: 4}
training: {batch_size: 32}
resources: {world_size: 2}
spark: {spark.master: "local[2]", spark.ui.enabled: "false"}
"""


def run(folder: Path, *command: str) -> str:
    """A command in the new environment and outside of the checkout."""
    hidden = ("PYTHON", "PYSPARK", "SPARK", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment["PATH"] = f"{PYTHON.parent}:{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def facts(folder: Path) -> dict[str, Any]:
    program = """
import importlib.util, json, pathlib, spark_hpo
from spark_hpo.data.readers import resolve_reader
folder = pathlib.Path(spark_hpo.__file__).parent
print(json.dumps({
    "version": spark_hpo.__version__,
    "folder": str(folder),
    "typed": (folder / "py.typed").is_file(),
    "reader": resolve_reader("auto"),
    "public": [name for name in spark_hpo.__all__ if getattr(spark_hpo, name)],
    "tools": [name for name in ("pytest", "ruff", "sphinx", "tests") if importlib.util.find_spec(name)],
}))
"""
    found: dict[str, Any] = json.loads(run(folder, "python", "-c", program))
    return found


def test_it_is_imported_from_the_wheel_typed_and_with_petastorm(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert Path(found["folder"]).is_relative_to(PYTHON.parents[1]), "not the checkout's"
    assert found["version"] == spark_hpo.__version__
    assert found["typed"]
    assert found["reader"] == "petastorm"
    assert found["public"] == list(spark_hpo.__all__)
    assert found["tools"] == [], "what it needs to be developed is not what it needs"


def test_the_installed_versions_go_together() -> None:
    run(ROOT, "python", "-m", "pip", "check")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_is_there(tmp_path: Path, script: str) -> None:
    assert script in run(tmp_path, script, "--help")


def test_a_table_is_prepared_and_a_study_made_of_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size, rooms = rng.uniform(30, 200, 600), rng.integers(1, 6, 600)
    price = 3.0 * size + 20.0 * rooms + rng.normal(0, 10, 600)
    table = pd.DataFrame({"size": size, "rooms": rooms, "price": price.round(2)})
    table.to_csv(tmp_path / "prices.csv", index=False)
    (tmp_path / "study.yaml").write_text(STUDY)
    # The scripts are all that comes from the checkout: their folder is on the path, and the package is not.
    options = ("--input", "prices.csv", "--label", "price", "--output", "table")
    run(tmp_path, "python", str(ROOT / "jobs/prepare_data.py"), "csv", *options)
    output = run(tmp_path, "python", str(ROOT / "jobs/tune.py"), "--config", "study.yaml")
    found = json.loads(output.splitlines()[-1])
    assert sum(found["trials"].values()) == 4
    assert found["test"]["absolute_error"] < 60, "always guessing the mean misses by 130"
    assert found["model"]["uri"] == "models:/prices/1"


@pytest.fixture(scope="module")
def source() -> list[str]:
    [file] = (ROOT / "dist").glob("spark_hpo-*.tar.gz")
    with tarfile.open(file) as archive:
        return sorted(name.partition("/")[2] for name in archive.getnames())


def test_the_sdist_has_what_it_takes_to_build_the_wheel_and_no_tests(source: list[str]) -> None:
    assert {"LICENSE", "README.md", "pyproject.toml", "spark_hpo/__init__.py", "spark_hpo/py.typed"} <= {
        *source
    }
    tops = {name.partition("/")[0] for name in source if name}
    assert tops <= {
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
        "spark_hpo",
        "spark_hpo.egg-info",
    }
