"""Published programs of hyperopt, Databricks and Optuna on a real Spark, before and after porting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hyperopt
import numpy as np
import pytest
from hyperopt import STATUS_FAIL, STATUS_OK, hp, space_eval, tpe

import spark_hpo
from spark_hpo.objective import Mode, Objective
from spark_hpo.porting.spark_trials import SparkTrials
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from tests.support.mlflow_database import write_database

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_database(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(autouse=True)
def _elsewhere(mlflow_db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_db)


@pytest.mark.slow
def test_fmin_runs_the_spark_trials_example_of_hyperopt(spark: object) -> None:
    # docs/templates/scaleout/spark.md of hyperopt: a sparse logistic regression, on digits instead of MNIST.
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    features, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(features, labels, train_size=600, random_state=0)
    scaler = StandardScaler()
    x_train = scaler.fit_transform(x_train)
    x_test = scaler.transform(x_test)

    def train(params: dict[str, Any]) -> dict[str, Any]:
        model = LogisticRegression(
            C=1.0 / float(params["regParam"]),
            l1_ratio={"l1": 1.0, "l2": 0.0}[params["penalty"]],
            solver="saga",
            tol=0.1,
        )
        model.fit(x_train, y_train)
        return {"loss": -model.score(x_test, y_test), "status": STATUS_OK}

    space = {
        "penalty": hp.choice("penalty", ["l1", "l2"]),
        "regParam": hp.loguniform("regParam", -10.0, 0),
    }
    old = hyperopt.SparkTrials(parallelism=2, spark_session=spark)
    new = SparkTrials()
    arguments: Any = {"fn": train, "space": space, "algo": tpe.suggest, "max_evals": 10}
    was = hyperopt.fmin(**arguments, trials=old, show_progressbar=False)
    best = spark_hpo.fmin(**arguments, trials=new, parallelism=2, spark=spark, show_progressbar=False)

    assert best.keys() == was.keys() == {"penalty", "regParam"}
    assert space_eval(space, best)["penalty"] in ("l1", "l2")
    assert len(new) == len(old) == 10
    assert min(new.losses()) == pytest.approx(min(old.losses()), abs=0.03)
    assert new.argmin == best
    assert new.trials[0].keys() == old.trials[0].keys()
    assert new.results[0].keys() == old.results[0].keys()


def test_fmin_runs_the_model_choice_example_of_databricks(spark: object) -> None:
    # "Model selection using scikit-learn, Hyperopt, and MLflow": branches of their own parameters.
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import SVC

    features, labels = load_iris(return_X_y=True)

    def objective(params: dict[str, Any]) -> dict[str, Any]:
        params = dict(params)
        kind = params.pop("type")
        if kind == "svm":
            model = SVC(**params)
        elif kind == "rf":
            model = RandomForestClassifier(**params, n_estimators=5)
        elif kind == "logreg":
            model = LogisticRegression(**params)
        else:
            return {"status": STATUS_FAIL}
        accuracy = cross_val_score(model, features, labels, cv=3).mean()
        return {"loss": -accuracy, "status": STATUS_OK, "kind": kind}

    space = hp.choice(
        "classifier_type",
        [
            {
                "type": "svm",
                "C": hp.lognormal("SVM_C", 0, 1.0),
                "kernel": hp.choice("kernel", ["linear", "rbf"]),
            },
            {
                "type": "rf",
                "max_depth": hp.uniformint("max_depth", 2, 5),
                "criterion": hp.choice("criterion", ["gini", "entropy"]),
            },
            {"type": "logreg", "C": hp.lognormal("LR_C", 0, 1.0)},
            {"type": "nothing"},
        ],
    )
    trials = SparkTrials(parallelism=2, spark_session=spark)  # type: ignore[arg-type]
    # Nothing but the class is another: hyperopt's own fmin hands over to it.
    best = hyperopt.fmin(
        objective,
        space,
        tpe.suggest,
        max_evals=14,
        trials=trials,
        rstate=np.random.default_rng(1),
        show_progressbar=False,
    )
    chosen = space_eval(space, best)
    assert chosen["type"] in ("svm", "rf", "logreg")
    assert trials.best_trial["result"]["kind"] == chosen["type"]
    assert min(loss for loss in trials.losses() if loss is not None) < -0.9
    assert trials.count_total_trials() == 14
    labels_of = {"svm": {"SVM_C", "kernel"}, "rf": {"max_depth", "criterion"}, "logreg": {"LR_C"}}
    assert best.keys() == {"classifier_type"} | labels_of[chosen["type"]]


def test_fmin_runs_on_spark_connect(connect: object) -> None:
    offset = 2.0
    trials = SparkTrials()
    best = spark_hpo.fmin(
        lambda x: (x - offset) ** 2,
        hp.uniform("x", 0, 4),
        tpe.suggest,
        4,
        trials=trials,
        spark=connect,
        show_progressbar=False,
    )
    assert best.keys() == {"x"}
    assert trials.losses() == [(x - offset) ** 2 for x in trials.vals["x"]]


def test_optimize_runs_the_pruning_example_of_optuna(spark: object) -> None:
    # Optuna's tutorial on efficient optimisation: an SGD classifier that reports each pass.
    optuna = pytest.importorskip("optuna", reason="Optuna is an extra")
    from sklearn.datasets import load_iris
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import train_test_split

    def objective(trial: Any) -> float:
        features, labels = load_iris(return_X_y=True)
        x_train, x_valid, y_train, y_valid = train_test_split(features, labels, random_state=0)
        model = SGDClassifier(alpha=trial.suggest_float("alpha", 1e-5, 1e2, log=True), random_state=0)
        for step in range(30):
            model.partial_fit(x_train, y_train, classes=[0, 1, 2])
            trial.report(1.0 - model.score(x_valid, y_valid), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(1.0 - model.score(x_valid, y_valid))

    result = spark_hpo.optimize(
        objective,
        n_trials=10,
        parallelism=2,
        seed=1,
        spark=spark,  # type: ignore[arg-type]
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=5),
    )
    study = result.to_optuna()
    states = [trial.state.name for trial in study.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert all(6 <= len(t.intermediate_values) <= 30 for t in study.trials if t.state.name == "PRUNED")
    assert study.best_value == result.best.loss < 0.4
    assert study.best_trial.state.name == "COMPLETE"


KILLED = """
import json, sys
import spark_hpo

def objective(trial):
    import time
    time.sleep(0.2)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    low = trial.suggest_float(f"{kind}_x", 0, 1)
    trial.set_user_attr("seen", kind)
    return low if kind == "a" else low + 1

result = spark_hpo.optimize(objective, n_trials=12, seed=5, storage=sys.argv[1], name="killed", parallelism=2,
                            **{"spark": None})
trials = result.to_optuna().trials
print(json.dumps({"params": [t.params for t in trials], "run": result.study.progress.run}))
"""


@pytest.mark.slow
def test_optimize_resumes_after_a_kill(tmp_path: Path, mlflow_db: str) -> None:
    pytest.importorskip("optuna", reason="Optuna is an extra")
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    command = [sys.executable, str(program), str(tmp_path / "study")]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow_db,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    objective = Objective(metric="value", mode=Mode.MIN)
    try:
        limit = time.monotonic() + 120
        while not (reported := _reported(tmp_path / "study", objective)) or len(reported) < 4:
            assert first.poll() is None, "the driver ended too early"
            assert time.monotonic() < limit
            time.sleep(0.1)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    before = _reported(tmp_path / "study", objective)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout.splitlines()[-1])
    assert len(output["params"]) == 12
    for trial_id, params in before.items():  # reported trials are kept
        assert output["params"][trial_id] == params
    assert output["run"] == 12 - len(before)
    assert all(params.keys() == {"kind", f"{params['kind']}_x"} for params in output["params"])


def _reported(folder: Path, objective: Objective) -> dict[int, Any]:
    if not (folder / "journal").is_dir():
        return {}
    trials = Journal(Storage(str(folder)), objective).trials
    return {i: dict(trial.params) for i, trial in trials.items() if trial.ended_at is not None}
