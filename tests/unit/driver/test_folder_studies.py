"""Whole studies, in this process, of a training function whose checkpoints are folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from spark_hpo.cli.export import command
from spark_hpo.config import StudyConfig
from spark_hpo.driver.cleanup import clean_study
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.storage import Storage
from tests.support.documents import blocks
from tests.support.tables import clusters_study

pytestmark = pytest.mark.medium

CHANGES: dict[str, Any] = {
    "task": "train",
    "data": None,
    "objective": {"metric": "error", "mode": "min"},
    "space": {"rate": {"type": "uniform", "low": 0.1, "high": 0.9}},
    "search": {"scheduler": "asha", "max_resource": 9, "reduction_factor": 3},
    "training": {"checkpoint_every": {"epochs": 1}},
    "budget": {"trials": 4},
}


def train() -> Any:
    (block,) = (b for b in blocks("docs/training.md", "python") if "progress.json" in b.text)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.text, str(block), "exec"), names)
    return names["train"]


def config_of(folder: Path, **changes: Any) -> StudyConfig:
    return clusters_study(folder, **{**CHANGES, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A study that has been continued with a larger budget."""
    folder = tmp_path_factory.mktemp("study")
    run_study(config_of(folder, budget={"trials": 2}), task=train(), test=False)
    return run_study(config_of(folder), task=train())


def checkpoints(storage: Storage) -> set[str]:
    folders = [f"{layout.CHECKPOINTS}/{name}" for name in storage.names(layout.CHECKPOINTS)]
    return {f"{folder}/{name}" for folder in folders for name in storage.names(folder, hidden=True)}


def test_example_of_the_documentation_continues_from_folders(finished: Result) -> None:
    best = finished.best
    rate = best.params["rate"]
    assert best.resource == 9
    assert {trial.failure for trial in finished.journal.trials.values()} == {None}
    assert best.metrics["error"] == pytest.approx((1 - rate) ** 9, rel=1e-3, abs=1e-6)
    place = finished.best_model()
    assert json.loads((place / "progress.json").read_text()) == {"steps": 9}
    assert torch.load(place / "weights.pt").shape == (8,)
    shutil.rmtree(place)


def test_study_keeps_only_the_parts_of_checkpoints_that_it_needs(finished: Result) -> None:
    storage = Storage(finished.config.study_dir)
    trials = finished.journal.trials.values()
    needed = {t.checkpoint for t in trials if t.checkpoint and storage.size(t.checkpoint)}
    parts = {manifest.part_path(path, part) for path in needed for part in manifest.parts(storage, path)}
    assert finished.best.checkpoint in needed
    assert checkpoints(storage) == needed | parts
    assert {storage.size(path) > 0 for path in parts} == {True}


def test_export_writes_the_folder_of_the_best_trial(finished: Result, tmp_path: Path) -> None:
    arguments = [finished.config.study_dir, "--what", "model", "--output"]
    done = CliRunner().invoke(command, [*arguments, str(tmp_path / "best")])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["progress.json", "weights.pt"]
    refused = CliRunner().invoke(command, [*arguments, str(tmp_path / "best.pt")])
    assert isinstance(refused.exception, ConfigError)


def test_clean_study_keeps_the_folder_of_the_best_trial(finished: Result, tmp_path: Path) -> None:
    shutil.copytree(finished.config.study_dir, tmp_path / "study")
    storage = Storage(tmp_path / "study")
    storage.write(f"{layout.checkpoints(finished.best.trial_id)}/0-2-ab.part", b"of a killed attempt")
    assert clean_study(storage, ended_for_s=0).files > 0
    path = finished.best.checkpoint or ""
    parts = {manifest.part_path(path, part) for part in manifest.parts(storage, path)}
    assert checkpoints(storage) == {path} | parts
    assert {storage.size(part) > 0 for part in parts} == {True}
