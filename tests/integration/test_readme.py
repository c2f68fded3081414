"""Runs every command and code block of the README."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.documents import blocks
from tests.support.tables import write_clusters

ROOT = Path(__file__).parents[2]
COMMANDS = [block.text.rstrip("\n") for block in blocks("README.md", "sh") if not block.note]
PYTHON = [block.text for block in blocks("README.md", "python")]
ADULT = ROOT.parent / "shared/data/adult/adult.csv"
LIMIT_S = 280.0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, with the environment that runs this test as its .venv."""
    folder = tmp_path_factory.mktemp("home") / "spark_hpo"
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        folder.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in ("jobs", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "spark_hpo").symlink_to(ROOT / "spark_hpo")
    # `make test` made it from these very files, so that `make tune` finds nothing to install.
    (folder / ".venv").symlink_to(Path(sys.prefix))
    if ADULT.exists():  # a third of the rows that `make data/adult.csv` would have downloaded
        (folder / "data").mkdir()
        header, *rows = ADULT.read_text().splitlines()
        (folder / "data/adult.csv").write_text("\n".join([header, *rows[::3], ""]))
    return folder


def shell(command: str, **more: Any) -> dict[str, Any]:
    """Return process arguments that run a command as in a user's shell, without an active environment."""
    assert command in COMMANDS, f"the README does not say {command!r}"
    hidden = ("PYSPARK", "SPARK", "VIRTUAL_ENV", "PYTHONPATH", "MAKE", "MFLAGS")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    path = [folder for folder in os.environ["PATH"].split(":") if not folder.startswith(sys.prefix)]
    return {"args": ["bash", "-ec", command], "env": {**environment, "PATH": ":".join(path)}, **more}


def run(command: str, folder: Path) -> str:
    """Run a command of the README, and return what it printed to standard output."""
    done = subprocess.run(
        **shell(command), cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    output: str = done.stdout
    return output


def program(text: str) -> str:
    """Return the program of the README that contains this text."""
    return next(source for source in PYTHON if text in source)


def answer(output: str) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    return last


@pytest.mark.slow
def test_make_tune_finds_a_good_model_of_the_digits(checkout: Path) -> None:
    output = run("make tune", checkout)
    found = answer(output)
    assert "data/digits: preparing the table" in output
    assert "data/digits: prepared 1797 rows" in output
    assert found["test"]["accuracy"] >= 0.96
    assert sum(found["trials"].values()) >= 20
    assert found["model"]["uri"] == "models:/quickstart/1"
    told = run(next(command for command in COMMANDS if "spark-hpo watch" in command), checkout)
    assert "quickstart: finished" in told
    assert f"learning_rate: {found['best']['params']['learning_rate']}" in told


@pytest.mark.slow
@pytest.mark.skipif(not ADULT.exists(), reason="the Adult table is not beside this checkout")
def test_make_tune_finds_a_good_model_of_adult(checkout: Path) -> None:
    assert answer(run("make tune CONFIG=conf/adult.yaml", checkout))["test"]["accuracy"] >= 0.81


def test_mlflow_ui_command_serves_pages(checkout: Path) -> None:
    command = next(command for command in COMMANDS if "mlflow ui" in command)
    (checkout / "studies").mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = shell(command, cwd=checkout, start_new_session=True)
    settings["args"][-1] += f" --port {port} --workers 1"  # port 5000 may be in use
    process = subprocess.Popen(**settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LIMIT_S / 2
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert b"MLflow" in page.read()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.slow
def test_readme_commands_tune_an_own_task_on_an_own_table(checkout: Path) -> None:
    rng = np.random.default_rng(0)
    size, age = rng.uniform(30, 200, 600), rng.uniform(0, 90, 600)
    price = 3000.0 * size - 2000.0 * age + rng.normal(0, 10_000, 600)
    pd.DataFrame({"size": size, "age": age, "price": price.round(2)}).to_csv(
        checkout / "my_table.csv", index=False
    )
    run(next(command for command in COMMANDS if "spark-hpo init" in command), checkout)

    (checkout / "my_task.py").write_text(program("class MyTask"))
    study = yaml.safe_load((checkout / "my_study.yaml").read_text())
    study |= {
        "name": "prices",
        "study_dir": "studies/prices",
        "task": "my_task.py:MyTask",
        "objective": {"metric": "absolute_error", "mode": "min"},
        "space": {
            "learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-1},
            "hidden": {"type": "int", "low": 4, "high": 32},
        },
        "search": {"max_resource": 9},
        "training": {"batch_size": 32},
        "budget": {"trials": 20},
    }
    (checkout / "my_study.yaml").write_text(yaml.safe_dump(study))
    told = run(next(command for command in COMMANDS if "spark-hpo run my_study.yaml" in command), checkout)
    assert "and 10 more" in told, "the table has the best ten of twenty"
    found = re.search(r"absolute_error \S+ on validation, (\S+) on test", told)
    assert found is not None
    # Always guessing the mean misses by 130,000.
    assert float(found[1]) < 40_000


def test_function_of_the_readme_trains(tmp_path: Path) -> None:
    helpers = """
import torch
def make_model(params):
    return torch.nn.Linear(2, 2)
def outputs(model, batch):
    return model(torch.stack([batch["x"], batch["y"]], dim=1))
def train_one_epoch(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(outputs(model, batch), batch["side"]).backward()
        optimizer.step()
def measure(model, batches):
    hits = [(outputs(model, batch).argmax(1) == batch["side"]).float() for batch in batches]
    return {"accuracy": float(torch.cat(hits).mean())}
"""
    write_clusters(tmp_path / "table")
    (tmp_path / "my_loop.py").write_text(helpers + program("make_model"))
    study = {
        "name": "loop",
        "study_dir": "study",
        "task": "my_loop.py:train",
        "data": {"path": "table"},
        "objective": {"metric": "accuracy", "mode": "max"},
        "space": {"unused": {"type": "uniform", "low": 0, "high": 1}},
        "search": {"max_resource": 9},
        "budget": {"trials": 4},
        "backend": "inline",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/tune.py"), "--config", "study.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = answer(done.stdout)
    assert found["test"]["accuracy"] > 0.7
    assert found["model"] is None


def test_every_command_of_the_readme_is_run() -> None:
    """`make test` runs this; every other command is run above."""
    source = Path(__file__).read_text()
    for command in COMMANDS:
        known = any(
            hint in command for hint in ("mlflow ui", "spark-hpo watch", "spark-hpo init", "my_study.yaml")
        )
        assert known or f'run("{command}"' in source or command == "make test", command
