"""The DAG without an Airflow: that its commands are commands of ours. `make test-airflow` runs it."""

from __future__ import annotations

import ast
import json
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from spark_hpo.cli.program import load_command
from spark_hpo.driver.sync import Synced
from spark_hpo.tracking.study_runs import RunStatus
from tests.support.command_line_page import parse

ROOT = Path(__file__).parents[2]
DAG = ROOT / "jobs/airflow_dag.py"


def tasks() -> dict[str, dict[str, str]]:
    """The arguments of each `Submit(...)`, with the file's own constants filled in."""
    tree = ast.parse(DAG.read_text())
    known: dict[str, Any] = {"JOBS": ROOT / "jobs"}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("FOLDER", "STUDY"):
            exec(compile(ast.Module([node], []), DAG.name, "exec"), known)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "Submit"]
    values = [{str(k.arg): eval(ast.unparse(k.value), known) for k in call.keywords} for call in calls]
    return {value["task_id"]: value for value in values}


def words(task_id: str, overrides: str = "") -> list[str]:
    params = {
        "study_file": str(ROOT / "conf/quickstart.yaml"),
        "folder": "/nowhere",
        "prepare": "digits --fractions 0.7,0.15,0.15",
        "overrides": overrides,
    }
    run_id = "manual__2026-01-01T00:00:00+00:00"
    text = jinja2.Template(tasks()[task_id]["arguments"]).render(params=params, run_id=run_id)
    return shlex.split(text)


def test_its_files_are_jobs_and_it_needs_nothing_of_ours() -> None:
    assert list(tasks()) == ["prepare", "tune", "check", "promote"]
    assert all(Path(task["application"]).is_file() for task in tasks().values())
    imported = [n for n in ast.walk(ast.parse(DAG.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not [n for n in imported if "spark_hpo" in ast.unparse(n)]


@pytest.mark.parametrize("task_id", ["tune", "check", "promote"])
def test_commands_of_the_dag_are_valid(
    task_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The one mistake is ours: a message about it alone says that all else is as it must be.
    arguments = words(task_id, "budget.trials=0 'spark={spark.ui.enabled: \"false\"}'")
    monkeypatch.setattr(sys, "argv", [tasks()[task_id]["application"], *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(tasks()[task_id]["application"], run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().endswith("budget.trials must be at least 1 (got 0)")
    assert ("--sync" in arguments) is (task_id != "tune")
    assert ("mlflow.promote=auto" in arguments) is (task_id == "promote")
    assert "study_dir=/nowhere/manual__2026-01-01T00-00-00-00-00/study" in arguments


def test_dag_prepares_the_table_where_the_study_reads_it() -> None:
    parse(load_command("prepare"), words("prepare"))
    [path] = [word.removeprefix("data.path=") for word in words("tune") if word.startswith("data.path=")]
    assert words("prepare")[-2:] == ["--output", path]


def test_dag_finds_the_line_of_the_result_by_its_beginning() -> None:
    """The DAG looks for `{"study"`; the command line puts that first."""
    assert """line.startswith('{"study"')""" in DAG.read_text()
    synced = Synced(status=RunStatus.FINISHED, trials=1, written=0, model=None, is_complete=True)
    assert json.dumps({"study": "x", **synced.summary()}).startswith('{"study"')
