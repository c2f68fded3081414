"""Studies on `backend: local`: trials in processes of this machine, without Spark and Java."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spark_hpo.driver.backend_choice import with_backend
from spark_hpo.driver.run import run_study
from tests.support.mlflow_database import write_database
from tests.support.tables import clusters_study, write_clusters
from tests.support.workspace import LIMIT_S

# A training function in a file of its own, which kills its process the first time that it trains trial 1.
KILLED_ONCE = """
import os, pathlib, signal, sys
import helper_of_the_task

def train(ctx):
    assert "pyspark" not in sys.modules
    for epoch in range(*ctx.resource):
        if ctx.trial_id == 1 and ctx.rank == 1 and not MARK.exists():
            MARK.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = helper_of_the_task.loss(ctx.params["x"], epoch)
        ctx.report({"loss": loss}, checkpoint=b"a state")
"""
HELPER = "def loss(x, epoch): return (x - 2) ** 2 + 1 / (epoch + 1)\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clusters(tmp_path / "table")
    write_database(tmp_path)
    return tmp_path


@pytest.mark.medium
def test_study_ends_with_the_results_of_the_inline_backend(folder: Path) -> None:
    """With one trial at a time the same seed gives the same study, wherever trials run."""
    one_at_a_time = {"resources": {"max_concurrent": 1}}
    local = run_study(clusters_study(folder, backend="local", **one_at_a_time))
    inline = run_study(
        clusters_study(folder, study_dir=str(folder / "inline"), backend="inline", **one_at_a_time)
    )
    assert local.summary()["best"] == inline.summary()["best"]
    assert local.test == inline.test


@pytest.mark.medium
def test_two_ranks_train_together_and_survive_the_death_of_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "task.py").write_text(
        f"import pathlib\nMARK = pathlib.Path({str(folder / 'killed')!r})\n{KILLED_ONCE}"
    )
    (folder / "helper_of_the_task.py").write_text(HELPER)
    config = clusters_study(
        folder,
        backend="local",
        task=f"{folder}/task.py:train",
        data=None,
        objective={"metric": "loss", "mode": "min"},
        space={"x": {"type": "uniform", "low": -10, "high": 10}},
        resources={"world_size": 2},
    )
    result = run_study(config)
    assert (folder / "killed").exists()
    assert "was lost (the process of rank 1 was killed by SIGKILL)" in caplog.text
    assert result.best.metrics["loss"] < 100


# What a notebook does: a study of a DataFrame, of a CSV and of Parquet, and predictions of the model.
FIRST_STUDIES = """
import mlflow, numpy as np, pandas as pd
import spark_hpo
from spark_hpo.errors import ConfigError

rng = np.random.default_rng(0)
rows = pd.DataFrame({"age": rng.integers(18, 70, 400), "job": rng.choice(["cook", "smith", "clerk"], 400)})
rows["hired"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, 400), unit="D")
rows["leaves"] = np.where(rows.age + (rows.job == "cook") * 30 > 60, "yes", "no")
rows.to_csv("rows.csv", index=False)
rows.to_parquet("rows.parquet", row_group_size=10)
space = {"learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-1}}
for name, data in {"frame": rows, "csv": "rows.csv", "parquet": "rows.parquet"}.items():
    result = spark_hpo.tune("tabular", space, data=data, label="leaves", metric="accuracy", mode="max",
                            trials=1, max_resource=1, name=name)
    mlflow.set_tracking_uri("sqlite:///studies/mlflow.db")
    given = pd.read_csv(data) if name == "csv" else rows  # a CSV has texts, where a DataFrame has times
    answers = mlflow.pyfunc.load_model(result.model.uri).predict(given.drop(columns="leaves"))
    assert set(answers["prediction"]) <= {"yes", "no"} and len(answers) == 400
best = spark_hpo.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=2).to_optuna()
assert 0 <= best.best_value <= 1
try:
    spark_hpo.tune("tabular", space, data={"query": "SELECT 1"}, label="x", metric="loss", mode="min")
except ConfigError as exc:
    assert "Java" in str(exc), exc
else:
    raise AssertionError("a query was answered without Spark")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three studies and the commands, whatever else the machine does
def test_first_studies_need_no_java(tmp_path: Path) -> None:
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAVA", "SPARK", "PYSPARK"))
    }
    bare |= {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(Path(__file__).parents[2])}
    (tmp_path / "bin").mkdir()
    assert shutil.which("java", path=bare["PATH"]) is None
    (tmp_path / "studies").mkdir()
    write_database(tmp_path / "studies")

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=bare,
            capture_output=True,
            text=True,
            timeout=3 * LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "first.py").write_text(FIRST_STUDIES)
    run("first.py")
    command = ("-m", "spark_hpo")
    run(*command, "prepare", "csv", "--input", "rows.csv", "--label", "leaves", "--output", "table")
    run(*command, "init", "table", "--output", "study.yaml")
    settings = ("backend=auto", "budget.trials=2", "search.max_resource=1", "resources.max_concurrent=1")
    assert "FAIL" not in run(*command, "doctor", "study.yaml", *settings)
    done = json.loads(run(*command, "run", "study.yaml", "--json", *settings).splitlines()[-1])
    assert done["trials"]["completed"] >= 1


@pytest.mark.parametrize(
    ("settings", "environment", "chosen"),
    [
        ({}, {}, "local"),
        ({"spark.master": "local[2]"}, {}, "spark"),
        ({"spark.remote": "sc://host"}, {}, "spark"),
        ({}, {"SPARK_REMOTE": "sc://host"}, "spark"),
        ({}, {"PYSPARK_GATEWAY_PORT": "1"}, "spark"),
        ({}, {"DATABRICKS_RUNTIME_VERSION": "17.3"}, "spark"),
    ],
)
def test_auto_takes_spark_where_there_is_one(
    folder: Path,
    settings: dict[str, str],
    environment: dict[str, str],
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spark_hpo.backend.spark.session.running_session", lambda: None)
    for name in ("SPARK_REMOTE", "PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert with_backend(clusters_study(folder, backend="auto", spark=settings)).backend == chosen


GROWING = """
import os, pathlib, signal
import torch.distributed as dist
from spark_hpo.train.tasks.tabular import TabularTask

class Growing(TabularTask):
    steps = 0

    def training_loss(self, outputs, batch):
        if outputs.requires_grad and dist.is_initialized():
            Growing.steps += 1
            if dist.get_rank() == 1 and Growing.steps == 3 and not MARK.exists():
                MARK.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.loss(outputs, batch)
"""


@pytest.mark.slow
def test_study_whose_ranks_grow_with_the_rung_ends_with_the_results_of_one_rank(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole split is a batch, so that every step has the same rows. A wide assignment resumes within."""
    (folder / "growing.py").write_text(
        f"import pathlib\nMARK = pathlib.Path({str(folder / 'killed')!r})\n{GROWING}"
    )
    found = {}
    for name, world_size in (("one", 1), ("growing", {0: 1, 1: 2})):
        config = clusters_study(
            folder,
            study_dir=str(folder / name),
            backend="local",
            task=f"{folder}/growing.py:Growing",
            search={"method": "asha", "max_resource": 9},
            budget={"trials": 5},
            training={"batch_size": 120, "checkpoint_every": {"epochs": 1}},
            resources={"max_concurrent": 1, "world_size": world_size},
        )
        found[name] = run_study(config)
    assert (folder / "killed").exists()
    assert "was lost (the process of rank 1 was killed by SIGKILL)" in caplog.text
    ones, wide = (found[name].record.trials for name in ("one", "growing"))
    assert max(trial.rung for trial in wide.values()) >= 1
    assert list(ones) == list(wide)
    for one, growing in zip(ones.values(), wide.values(), strict=True):
        assert (one.trial_id, one.resource, one.params) == (
            growing.trial_id,
            growing.resource,
            growing.params,
        )
        assert growing.metrics == pytest.approx(one.metrics, rel=1e-4)
    assert found["growing"].test == pytest.approx(found["one"].test, rel=1e-4)
