"""Studies of older versions resume after an upgrade."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from spark_hpo.config import load_config
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from tests.data.make_journals import study_file
from tests.support.mlflow_database import write_database

DATA = Path(__file__).parents[1] / "data"
STUDIES = sorted(path for path in DATA.glob("journals/*/*") if path.is_dir() and path.name[0] != "_")


def resume(kept: Path, work: Path, **changes: Any) -> Result:
    """Resume a copy of a study, or the copy of an earlier call."""
    if not (work / "study").exists():
        shutil.copytree(kept, work / "study")
        shutil.copy(DATA / "journals" / "task.py", work / "task.py")
    name = kept.name.rpartition("-")[0]
    record = {**study_file(name), "study_dir": str(work / "study"), **changes}
    record["mlflow"] = {"tracking_uri": write_database(work)}
    path = work / "study.yaml"
    path.write_text(yaml.safe_dump(record))  # as the studies were written: in the same order
    return run_study(load_config(path), resume="must")


@pytest.mark.parametrize("kept", STUDIES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_studies_of_older_versions_resume(kept: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for file in (kept / "journal").iterdir() for line in file.open()]
    reported = [line for line in lines if line["event"] == "reported" and line["split"] == "validation"]
    result = resume(kept, tmp_path)
    assert result.study.progress.replayed == len(reported) > 0
    assert (result.study.progress.run == 0) == kept.name.endswith("finished")
    assert len(result.journal.trials) == 12
    assert result.stopped_by == "trials"


@pytest.mark.parametrize("name", ["default-finished", "hyperband-killed", "population-finished"])
def test_study_of_an_older_version_continues_with_more_trials(name: str, tmp_path: Path) -> None:
    kept = next(path for path in STUDIES if path.name == name)
    result = resume(kept, tmp_path, budget={"trials": 20})
    assert (len(result.journal.trials), result.stopped_by) == (20, "trials")
    again = resume(kept, tmp_path, budget={"trials": 20})
    assert again.study.progress.run == 0
    assert len(resume(kept, tmp_path, budget={"trials": 22}).journal.trials) == 22


def test_journals_of_older_versions_exist() -> None:
    assert len(STUDIES) >= 16


def test_resume_of_an_older_study_still_refuses_changed_settings(tmp_path: Path) -> None:
    kept = next(path for path in STUDIES if path.name == "default-killed")
    with pytest.raises(ConfigError) as caught:
        resume(kept, tmp_path, seed=1)
    assert ("seed", 1) in [(error.key, error.value) for error in caught.value.errors]
