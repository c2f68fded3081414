"""What the trials of whole studies used, as their reports show it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_hpo import load_study
from spark_hpo.cli import main
from spark_hpo.data.readers.arrow_reader import ArrowReader
from spark_hpo.driver.run import run_study
from tests.support.command_line import run_in_process
from tests.support.mlflow_database import write_database
from tests.support.tables import clusters_study, write_clusters

MIB = 2**20

# A child process decodes each batch, as in a DataLoader with workers, and the rank itself allocates memory.
TASK = f"""
import sys, time
from torch.utils.data import DataLoader, Dataset

class Decoded(Dataset):
    def __init__(self, seconds):
        self.seconds = seconds
        self.memory = None
    def __len__(self):
        return 24
    def __getitem__(self, row):
        self.memory = self.memory or b"x" * {150 * MIB}  # of the child process
        time.sleep(self.seconds)
        return row

def train(ctx):
    assert "pyspark" not in sys.modules
    if ctx.is_evaluation:
        return {{"loss": 1.0}}
    memory = b"x" * {200 * MIB}
    seconds = 0.1 if ctx.params["is_slow"] else 0.0
    for _ in DataLoader(Decoded(seconds), num_workers=1):
        time.sleep(0.0 if seconds else 0.1)
    return {{"loss": 1.0}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "table")
    write_database(tmp_path)
    return tmp_path


def train(ctx: Any) -> dict[str, float]:
    """Use each batch for a moment, and leave no model."""
    if not ctx.is_evaluation:
        for _ in ctx.batches("train"):
            time.sleep(0.02)
    return {"accuracy": 0.5}


def test_ranks_of_a_slow_reader_wait_and_those_of_a_fast_one_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(name: str) -> Any:
        data = {"path": str(folder / "table"), "reader": "arrow", "cache": {"enabled": False}}
        config = clusters_study(folder, data=data, study_dir=str(folder / name), search={"max_resource": 1})
        run_study(config, task=train, test=False)
        return load_study(folder / name)

    fast = study("fast")
    read = ArrowReader.read

    def read_slowly(*arguments: Any) -> Iterator[Any]:
        time.sleep(0.7)
        yield from read(*arguments)

    monkeypatch.setattr(ArrowReader, "read", read_slowly)
    slow = study("slow")
    assert fast.usage_advice == ()
    (advice,) = slow.usage_advice
    assert "data.cache" in advice
    assert slow.usage.wait_share.median() > 0.5
    assert advice in Path(slow.report()).read_text()


@pytest.mark.medium
def test_processes_of_data_loaders_count_for_their_rank(folder: Path) -> None:
    (folder / "task.py").write_text(TASK)
    config = clusters_study(
        folder,
        backend="local",
        task=f"{folder}/task.py:train",
        data=None,
        objective={"metric": "loss", "mode": "min"},
        space={"is_slow": {"type": "choice", "options": [True, False]}},
        search={"sampler": "grid", "scheduler": "full", "max_resource": 1},
        budget={"trials": 2},
    )
    run_study(config)
    study = load_study(config.study_dir)
    slow = study.trials.set_index("trial")["is_slow"]
    usage = study.usage.assign(is_slow=[slow[trial] for trial in study.usage.trial])
    assert set(usage.is_slow) == {True, False}
    assert (usage.wait_share[usage.is_slow] > 0.7).all()
    assert (
        usage.wait_share[~usage.is_slow] < 0.5
    ).all()  # of 2.4 s; the start of a process counts as waiting
    assert (usage.memory_bytes > 350 * MIB).all()
    (advice,) = study.usage_advice
    assert "num_workers" in advice
    ended = run_in_process(main, ["resume", config.study_dir], folder)
    assert advice.split(":")[0] in " ".join(ended.stdout.split())
