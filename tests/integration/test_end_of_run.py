"""The output of `spark-hpo run` at the end of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.cli.driver import drive
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage
from tests.support.tables import clusters_study, write_clusters


def end_of_run(folder: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    config = clusters_study(folder, **changes)
    assert drive(config, resume="never", as_json=False) == 0
    return " ".join(capsys.readouterr().out.split())


def test_drive_counts_a_resource_of_rows_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clusters(tmp_path / "table")
    search = {"resource": "rows", "max_resource": 3, "scheduler": "full"}
    told = end_of_run(tmp_path, capsys, search=search, budget={"trials": 2})
    assert "after 3 parts, accuracy" in told
    assert "epoch" not in told
    constant = StudyRecord.read(Storage(tmp_path / "study")).constant
    assert constant is not None
    assert 0.5 <= constant.value < 0.7
    assert "note:" not in told


def test_drive_warns_of_a_model_that_is_no_better_than_a_constant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clusters(tmp_path / "table")
    space = {"learning_rate": {"type": "uniform", "low": 1e-12, "high": 1e-11}, "weight_decay": 0.0}
    told = end_of_run(
        tmp_path,
        capsys,
        space=space,
        objective={"metric": "loss", "mode": "min"},
        search={"max_resource": 1, "scheduler": "full"},
        budget={"trials": 1},
    )
    assert "note: The model is no better than a constant answer" in told


def test_drive_warns_of_a_best_trial_that_was_trained_in_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clusters(tmp_path / "table")
    search = {"max_resource": 27, "scheduler": "successive_halving", "sampler": "random"}
    told = end_of_run(tmp_path, capsys, search=search, budget={"trials": 9, "resource": 6, "finish": 0})
    assert "of 27 epochs only" in told
    assert "Raise the budget" in told
