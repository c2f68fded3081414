"""Estimators of pyspark.ml and xgboost.spark as trials, in threads of the driver, on a real Spark."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import spark_hpo
from spark_hpo.errors import ConfigError, NoTrialSucceeded, StudyInterrupted
from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.trial import FailureKind, TrialState
from tests.support.documents import blocks

pytestmark = pytest.mark.spark

X = {"x": {"type": "uniform", "low": 0, "high": 1}}


@pytest.fixture(scope="module")
def rows(spark: Any) -> Any:
    """The breast cancer table of scikit-learn as a DataFrame with a vector: 569 rows, 30 features."""
    from pyspark.ml.linalg import Vectors
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    records = [(Vectors.dense(x), float(y)) for x, y in zip(features, labels, strict=True)]
    frame = spark.createDataFrame(records, ["features", "label"]).repartition(2).cache()
    frame.count()
    yield frame
    frame.unpersist()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)


def tune(objective: Any, space: Any, **named: Any) -> spark_hpo.Result:
    named = {"metric": "auc", "mode": "max", "max_resource": 1, "backend": "driver", **named}
    return spark_hpo.tune(objective, space, **named)


def leaves(spark: Any) -> int:
    """The number of tables in Spark's cache."""
    return len(spark.sparkContext._jsc.getPersistentRDDs())


@pytest.mark.slow
def test_every_block_of_the_page_runs_and_the_searches_agree(spark: Any, tmp_path: Path) -> None:
    best = str(tmp_path / "best")  # Spark resolves a relative path in the folder where its JVM started
    cached = leaves(spark)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks("docs/spark-ml.md", "python"):
        if block.run_by:
            exec(compile(block.text.replace("models/best", best), str(block), "exec"), names)
    assert leaves(spark) == cached, "all folds and rows are released"
    trials = {trial.params["regParam"]: trial for trial in names["result"].journal.trials.values()}
    ours = [trials[value].metrics["auc"] for value in (0.0, 0.1, 1.0)]
    assert ours == pytest.approx(names["fitted"].avgMetrics, abs=1e-12)
    assert (trials[0.1].resource, trials[0.1].spread["auc"] > 0) == (3, True)
    from pyspark.ml.classification import LogisticRegressionModel

    final = LogisticRegressionModel.load(best)
    assert final.coefficients == names["fitted"].bestModel.coefficients
    assert names["boosted"].best.metrics["auc"] > 0.9
    assert names["grown"].best.resource == 3
    assert min(names["trials"].losses()) < -0.9
    assert {trial.failure for trial in names["boosted"].journal.trials.values()} == {None}


@pytest.mark.slow
def test_trainings_of_xgboost_run_side_by_side(rows: Any) -> None:
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from xgboost.spark import SparkXGBClassifier

    both = threading.Barrier(2)

    def objective(ctx: spark_hpo.TrainContext) -> dict[str, float]:
        estimator = SparkXGBClassifier(n_estimators=4, num_workers=ctx.num_slots, device="cpu")
        both.wait(60)
        model = estimator.fit(rows)
        return {"auc": BinaryClassificationEvaluator().evaluate(model.transform(rows))}

    result = tune(objective, X, trials=2)
    assert {trial.failure for trial in result.journal.trials.values()} == {None}
    assert result.best.metrics["auc"] > 0.95


def test_more_slots_than_the_cluster_has_are_refused(spark: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(lambda ctx: {"auc": 0.0}, X, resources={"slots_per_trial": 3})
    assert caught.value.key == "resources.slots_per_trial"


@pytest.mark.parametrize(("backend", "cure"), [("inline", "backend: driver"), ("driver", "resource: folds")])
def test_frames_of_folds_need_the_driver_and_folds(rows: Any, backend: str, cure: str) -> None:
    with pytest.raises(NoTrialSucceeded, match=cure):
        tune(lambda ctx: {"auc": len(ctx.fold_frames(rows))}, X, trials=1, backend=backend)


def sleep(spark: Any, seconds: float) -> None:
    """Run a job of short tasks, of which no more start once it is cancelled."""
    tasks = int(seconds / 0.05)
    spark.range(0, tasks, 1, tasks).selectExpr("java_method('java.lang.Thread', 'sleep', 50L)").collect()


def test_trial_that_fails_or_takes_too_long_is_a_failed_trial(spark: Any) -> None:
    count = itertools.count()

    def objective(ctx: spark_hpo.TrainContext) -> dict[str, float]:
        number = next(count)
        if number == 0:
            sleep(ctx.spark, 600)
        if number == 1:
            ctx.spark.sql("select no_such_column").collect()
        ctx.spark.range(10).count()
        return {"auc": ctx.params["x"]}

    result = tune(objective, X, trials=4, resources={"trial_timeout_s": 8, "max_concurrent": 1})
    trials = list(result.journal.trials.values())
    assert [trial.state for trial in trials[:2]] == [TrialState.FAILED] * 2
    overdue, wrong = (trial.failure for trial in trials[:2])
    assert overdue is not None
    assert wrong is not None
    assert "resources.trial_timeout_s" in overdue.message
    assert wrong.kind is FailureKind.TRIAL
    assert "no_such_column" in wrong.traceback
    assert "in objective" in wrong.traceback
    assert {trial.state for trial in trials[2:]} <= {TrialState.COMPLETED, TrialState.STOPPED}
    assert not spark.sparkContext.statusTracker().getActiveJobsIds()


def test_rungs_report_while_they_train(spark: Any) -> None:
    def objective(ctx: spark_hpo.TrainContext) -> None:
        start = ctx.load_checkpoint() or 0
        assert start == ctx.resource.start
        for epoch in range(*ctx.resource):
            ctx.report({"auc": ctx.params["x"] * ctx.spark.range(epoch + 1).count()}, checkpoint=epoch + 1)

    result = tune(objective, X, trials=3, max_resource=3, search={"method": "asha"})
    assert [m.resource for m in result.best.curve] == [1, 2, 3]
    assert result.best.metrics["auc"] == pytest.approx(3 * result.best.params["x"])


class _InterruptsAfter(Callback):
    """Sends this process Ctrl-C once some trials have ended and another one runs."""

    def __init__(self, ended: int) -> None:
        self.ended = ended

    def on_assigned(self, study: RunningStudy, assignment: Any) -> None:
        if assignment.trial_id >= self.ended:
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_study_cancels_its_jobs_and_resumes(spark: Any) -> None:
    runs = []

    def objective(ctx: spark_hpo.TrainContext) -> dict[str, float]:
        runs.append(ctx.trial_id)
        if ctx.trial_id == 2 and runs.count(2) == 1:
            sleep(ctx.spark, 600)
        return {"auc": ctx.params["x"]}

    named = {"trials": 4, "resources": {"grace_s": 1, "max_concurrent": 1}, "storage": "study"}
    with pytest.raises(StudyInterrupted):
        tune(objective, X, callbacks=[_InterruptsAfter(2)], **named)
    assert not spark.sparkContext.statusTracker().getActiveJobsIds()
    result = tune(objective, X, **named)
    assert runs == [0, 1, 2, 2, 3]
    assert len(result.journal.trials) == 4


_OBJECTIVE = """
import time
from pathlib import Path

def objective(ctx):
    ctx.spark.range(10).count()
    with open("runs", "a") as file:
        print(ctx.trial_id, file=file)
    while ctx.trial_id == 1 and Path("endless").exists():
        time.sleep(0.1)
    return {"auc": ctx.params["x"]}
"""
_PROGRAM = """
import json, sys
import spark_hpo

spark_hpo.tune("objective.py:objective", **json.loads(sys.argv[1]), spark={"spark.master": "local[1]"})
"""


@pytest.mark.slow
def test_study_of_a_killed_driver_resumes(spark: Any) -> None:
    Path("objective.py").write_text(_OBJECTIVE)
    study = {
        "space": X,
        "metric": "auc",
        "mode": "max",
        "max_resource": 1,
        "trials": 3,
        "backend": "driver",
        "resources": {"max_concurrent": 1},
        "storage": "study",
    }
    Path("endless").touch()
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, json.dumps(study)]) as process:
        deadline = time.monotonic() + 120
        while not Path("runs").exists() or Path("runs").read_text() != "0\n1\n":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
    Path("endless").unlink()
    result = spark_hpo.tune("objective.py:objective", **study)
    assert Path("runs").read_text().split() == ["0", "1", "1", "2"]
    assert {trial.state for trial in result.journal.trials.values()} == {TrialState.COMPLETED}
