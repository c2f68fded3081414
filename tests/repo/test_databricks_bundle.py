"""The asset bundle, as far as it can be known without a workspace: by Databricks' classes and our parser."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from spark_hpo.cli.program import load_command
from spark_hpo.config import load_config
from tests.support.command_line_page import parse

bundles = pytest.importorskip("databricks.bundles.jobs", reason="pip install databricks-bundles")

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
TEXT = (CONF / "databricks.yml").read_text()
BUNDLE: dict[str, Any] = yaml.safe_load(TEXT)
JOBS: dict[str, Any] = BUNDLE["resources"]["jobs"]
NAMES = {"catalog": "main", "schema": "ml", **{k: v.get("default") for k, v in BUNDLE["variables"].items()}}
NAMES |= {"catalog": "main", "schema": "ml"}


def filled(text: str) -> str:
    """As the CLI and the workspace fill it in."""
    text = re.sub(r"\$\{var\.(\w+)\}", lambda match: str(NAMES[match[1]]), text)
    text = text.replace("${workspace.file_path}", str(ROOT)).replace("{{job.run_id}}", "17")
    return text.replace("${workspace.current_user.userName}", "someone@example.com")


def parameters(job: str, task_key: str) -> list[str]:
    [task] = [task for task in JOBS[job]["tasks"] if task["task_key"] == task_key]
    return [filled(word) for word in task["spark_python_task"]["parameters"]]


@pytest.mark.parametrize("name", list(JOBS))
def test_databricks_own_classes_take_the_jobs(name: str) -> None:
    bundles.Job.from_dict(JOBS[name])
    broken = {**JOBS[name], "retries": 3}
    with pytest.raises(ValueError, match="Unexpected field 'retries'"):
        bundles.Job.from_dict(broken)


def test_databricks_own_classes_take_the_volume() -> None:
    from databricks.bundles.volumes import Volume

    Volume.from_dict(BUNDLE["resources"]["volumes"]["studies"])


def test_bundle_has_the_documented_shape() -> None:
    """These have no classes in Databricks' package: keys as its reference lists them."""
    assert set(BUNDLE) == {"bundle", "sync", "variables", "targets", "resources"}
    assert set(BUNDLE["bundle"]) <= {"name", "uuid", "databricks_cli_version", "git", "deployment"}
    assert set(BUNDLE["sync"]) <= {"paths", "include", "exclude"}
    assert all(set(v) <= {"description", "default", "type", "lookup"} for v in BUNDLE["variables"].values())
    assert all(
        set(target) <= {"mode", "default", "workspace", "run_as"} for target in BUNDLE["targets"].values()
    )
    assert set(BUNDLE["resources"]) == {"jobs", "volumes"}


def test_references_of_the_bundle_exist() -> None:
    assert set(re.findall(r"\$\{var\.(\w+)\}", TEXT)) == set(BUNDLE["variables"])
    assert {match for match in re.findall(r"\$\{(\w+)\.", TEXT)} == {"var", "workspace", "bundle"}
    for job in JOBS.values():
        clusters = {cluster["job_cluster_key"] for cluster in job["job_clusters"]}
        assert {task["job_cluster_key"] for task in job["tasks"]} == clusters, "each is used"
        for cluster in job["job_clusters"]:
            [script] = cluster["new_cluster"]["init_scripts"]
            assert Path(filled(script["workspace"]["destination"])).is_file()
        for task in job["tasks"]:
            assert (CONF / task["spark_python_task"]["python_file"]).is_file()


def test_gpu_cluster_has_the_gpus_that_its_ranks_request() -> None:
    for job, gpus in (("tune", 0), ("tune_gpu", 1)):
        [task] = [task for task in JOBS[job]["tasks"] if task["task_key"] == "tune"]
        [cluster] = [c for c in JOBS[job]["job_clusters"] if c["job_cluster_key"] == task["job_cluster_key"]]
        assert ("-gpu-ml-" in cluster["new_cluster"]["spark_version"]) is bool(gpus)
        assert "autoscale" not in cluster["new_cluster"], "Spark starts no barrier job then"
        path, *overrides = parameters(job, "tune")[1:]
        config = load_config(path, overrides)
        assert config.resources.gpus_per_rank == gpus
        assert (config.registry_uri, config.registered_model) == ("databricks-uc", "main.ml.digits")
        assert config.experiment == "/Users/someone@example.com/spark_hpo"
        assert config.study_dir == "/Volumes/main/ml/spark_hpo/studies/17"
        assert config.data is not None
        assert config.data.path == parameters(job, "prepare")[-1]


@pytest.mark.parametrize("job", list(JOBS))
def test_parameters_of_the_bundle_are_valid(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", *parameters(job, "tune"), "budget.trials=0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs/tune.py"), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().endswith("budget.trials must be at least 1 (got 0)")
    parse(load_command("prepare"), parameters(job, "prepare"))


@pytest.mark.parametrize(("code", "is_exit"), [(0, False), (3, True)])
def test_job_that_succeeds_does_not_call_exit(
    code: int, is_exit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Databricks runs the file in a process that goes on, and takes `sys.exit(0)` for an error."""
    monkeypatch.setattr("spark_hpo.cli.tune", lambda: sys.exit(code))
    monkeypatch.setattr("spark_hpo.cli.prepare_data", lambda: sys.exit(code))
    for name in ("tune", "prepare_data"):
        if is_exit:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / f"jobs/{name}.py"), run_name="__main__")
            assert ended.value.code == code
        else:
            runpy.run_path(str(ROOT / f"jobs/{name}.py"), run_name="__main__")


def test_init_script_installs_missing_packages_only(tmp_path: Path) -> None:
    """With a pip that notes what it is asked for: what it would install needs a network."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'if [ "$1" = - ]; then exec {sys.executable} -; fi\n'
        f'echo "$@" >> {tmp_path}/calls\n'
        'if [ "$3" = list ]; then echo torch==9.0+cu99; echo plotly==1.0; fi\n'
        'while [ $# -gt 0 ]; do if [ "$1" = --constraint ] || [ "$1" = --requirement ]; then '
        f'cp "$2" {tmp_path}/${{1#--}}; fi; last=$1; shift; done\n'
        f'if [ -d "$last" ]; then ls "$last" > {tmp_path}/source; fi\n'
    )
    python.chmod(0o755)
    subprocess.run(
        ["bash", str(CONF / "databricks_init.sh")],
        check=True,
        timeout=60,
        env={**os.environ, "SPARK_HPO_SOURCE": str(ROOT), "SPARK_HPO_PYTHON": str(python)},
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[:3] for call in calls] == [["-m", "pip", "list"], *[["-m", "pip", "install"]] * 2]
    assert "--no-deps" in calls[1]
    assert set((tmp_path / "source").read_text().split()) >= {"spark_hpo", "pyproject.toml", "README.md"}
    assert (tmp_path / "constraint").read_text() == "torch==9.0+cu99\nSQLAlchemy<2.1\n", (
        "as the runtime has it"
    )
    asked = {re.split(r"[<>=]", line)[0] for line in (tmp_path / "requirement").read_text().splitlines()}
    ours = {re.split(r"[<>=; ]", line)[0] for line in requires("spark_hpo") or [] if "extra ==" not in line}
    assert asked == ours - {"pyspark"}
    assert {"torch", "mlflow", "hyperopt"} <= asked


def test_runtime_17_3_has_what_the_package_requires_except_for_two_packages() -> None:
    lines = (ROOT / "constraints-dbr.txt").read_text().splitlines()
    runtime = dict(line.split("==") for line in lines if "==" in line)
    runtime["mlflow"] = runtime["mlflow-skinny"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [Requirement(text) for text in project["dependencies"]]
    too_old = {r.name for r in required if r.name in runtime and runtime[r.name] not in r.specifier}
    assert too_old == {"fsspec", "plotly"}, "the init script replaces these, and must keep the others"
    assert {r.name for r in required} & set(runtime) > {"mlflow", "numpy", "pandas", "pyarrow", "torch"}
