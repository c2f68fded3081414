"""DVC, Kubeflow Pipelines and the Spark operator with the files of conf/ and jobs/: `make test-pipelines`.

Their packages are in an environment of their own, build/pipelines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "build/pipelines/bin"
LIMIT_S = 600.0

pytestmark = [
    pytest.mark.timeout(2 * LIMIT_S),
    pytest.mark.skipif(not TOOLS.exists(), reason="make test-pipelines installs the tools"),
]


def run(*words: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


# DVC ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with conf/dvc.yaml, a small table and a small study."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("conf", "data", "studies"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "conf/dvc.yaml", folder / "conf/dvc.yaml")
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, 400)
    income = np.where(age + rng.normal(0, 8, 400) > 45, ">50K", "<=50K")
    table = {"age": age, "sex": rng.choice(["f", "m", "?"], 400), "income-per-year": income}
    pd.DataFrame(table).to_csv(folder / "data/adult.csv", index=False)
    study = yaml.safe_load((ROOT / "conf/adult.yaml").read_text())
    study |= {"budget": {"trials": 2}, "backend": "local", "resources": {"world_size": 1}}
    study["search"] |= {"max_resource": 3}
    (folder / "conf/adult.yaml").write_text(yaml.safe_dump(study))
    run(TOOLS / "dvc", "init", "--no-scm", "-q", folder=folder)
    return folder


def repro(project: Path) -> str:
    return run(TOOLS / "dvc", "repro", "conf/dvc.yaml", folder=project)


def metrics(project: Path) -> Any:
    shown = json.loads(run(TOOLS / "dvc", "metrics", "show", "--json", folder=project))
    return shown[""]["data"]["studies/adult.json"]["data"]


def test_dvc_runs_what_has_changed_and_the_study_continues(project: Path) -> None:
    first = repro(project)
    assert first.count("Running stage") == 2
    assert (project / "data/adult/schema.json").exists()
    assert sum(metrics(project)["trials"].values()) == 2
    assert "Running stage" not in repro(project)

    study = yaml.safe_load((project / "conf/adult.yaml").read_text())
    study["budget"]["trials"] = 3
    (project / "conf/adult.yaml").write_text(yaml.safe_dump(study))
    assert re.findall(r"Running stage '(.*)'", repro(project)) == ["conf/dvc.yaml:tune"]
    assert sum(metrics(project)["trials"].values()) == 3
    drivers = list((project / "studies/adult/journal").iterdir())
    assert len(drivers) == 2, "the same study, not a new one"


# Kubeflow Pipelines ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pipeline as kfp has compiled it."""
    file = tmp_path_factory.mktemp("kubeflow") / "pipeline.yaml"
    run(TOOLS / "python", ROOT / "jobs/kubeflow_pipeline.py", file, folder=file.parent)
    record: dict[str, Any] = yaml.safe_load(file.read_text())
    return record


def test_pipeline_fits_the_published_schema(pipeline: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(pipeline))
    program = (
        "import sys; from google.protobuf.json_format import Parse; from kfp.pipeline_spec import "
        "pipeline_spec_pb2 as spec; Parse(open(sys.argv[1]).read(), spec.PipelineSpec())"
    )
    run(TOOLS / "python", "-c", program, tmp_path / "study.json", folder=tmp_path)
    tune = pipeline["root"]["dag"]["tasks"]["tune"]
    assert tune["dependentTasks"] == ["prepare"]
    assert tune["retryPolicy"]["maxRetryCount"] > 1


def test_steps_of_the_pipeline_prepare_and_tune(pipeline: dict[str, Any], tmp_path: Path) -> None:
    """Runs the compiled commands, on a local Spark instead of the cluster's."""
    inputs = pipeline["root"]["inputDefinitions"]["parameters"]
    values = {
        "executors": "1",
        "arguments": inputs["prepare_arguments"]["defaultValue"],
        "study_file": str(ROOT / "conf/quickstart.yaml"),
        "folder": str(tmp_path),
        "overrides": f"mlflow.tracking_uri=sqlite:///{tmp_path}/mlflow.db budget.trials=2 "
        "search.max_resource=3 resources.world_size=1",
    }
    for step in ("prepare", "tune"):
        container = pipeline["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
        words = [*container["command"], *container["args"]]
        for place, ours in (
            ("k8s://https://kubernetes.default.svc", "local[2]"),
            ('"$(hostname -i)"', "127.0.0.1"),
            ("/opt/spark_hpo", str(ROOT)),
        ):
            words = [word.replace(place, ours) for word in words]
        for name, value in values.items():
            words = [word.replace(f"{{{{$.inputs.parameters['{name}']}}}}", value) for word in words]
        result = tmp_path / "outputs/result"
        words = [w.replace("{{$.outputs.parameters['result'].output_file}}", str(result)) for w in words]
        assert "{{" not in " ".join(words)
        run(*words, folder=tmp_path)
    [line] = (tmp_path / "outputs/result").read_text().splitlines()
    assert sum(json.loads(line)["trials"].values()) == 2


# The Spark operator ---------------------------------------------------------------------------------------


def test_spark_application_fits_the_published_schema(tmp_path: Path) -> None:
    """The models are made of the operator's resource definition. What they do not know, they drop."""
    program = """
import sys, yaml
from kubeflow_spark_api.models import SparkV1beta2SparkApplication as Model
given = yaml.safe_load(open(sys.argv[1]))
kept = Model.from_dict(given).to_dict()

def lost(given, kept, path=""):
    if isinstance(given, dict):
        for key, value in given.items():
            if key not in kept: yield f"{path}.{key}"
            else: yield from lost(value, kept[key], f"{path}.{key}")
    elif isinstance(given, list):
        for i, value in enumerate(given): yield from lost(value, kept[i], f"{path}[{i}]")
    elif str(given) != str(kept): yield f"{path}: {given} {kept}"

unknown = list(lost(given, kept))
assert not unknown, unknown
"""
    manifest = ROOT / "conf/spark-application.yml"
    run(TOOLS / "python", "-c", program, manifest, folder=tmp_path)
    (tmp_path / "typo.yml").write_text(manifest.read_text().replace("memoryOverhead: 10g", "overhead: 10g"))
    with pytest.raises(AssertionError, match=r"spec\.executor\.overhead"):
        run(TOOLS / "python", "-c", program, tmp_path / "typo.yml", folder=tmp_path)
