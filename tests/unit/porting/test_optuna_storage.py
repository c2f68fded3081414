"""Optuna reads a study that was exported to its storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.porting.optuna_storage import optuna_storage
from spark_hpo.search.space import Space
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.written_studies import StudyWriter

optuna = pytest.importorskip("optuna", reason="Optuna is an extra")

SPACE = {
    "rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
    "depth": {"type": "int", "low": 1, "high": 9},
    "width": {"type": "qloguniform", "low": 8, "high": 512, "q": 8, "integer": True},
    "share": {"type": "quniform", "low": 0.1, "high": 0.9, "q": 0.1},
    "shift": {"type": "normal", "mu": 0, "sigma": 1},
    "optimizer": {
        "type": "choice",
        "options": [
            "lbfgs",
            {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 0.99}},
            {"name": "adam", "momentum": {"type": "uniform", "low": 0.8, "high": 1}, "betas": [0.9, 0.99]},
        ],
    },
    "clip": {"type": "choice", "options": [None, 1, True]},
    "layers": {"type": "choice", "options": [[8, 4], [16]]},
    "epochs": 3,
}
COMMON = {"rate": 0.01, "depth": 4, "width": 32, "share": 0.3, "layers": [16], "epochs": 3}
SGD = {"name": "sgd", "momentum": 0.5}
ADAM = {"name": "adam", "momentum": 0.9, "betas": [0.9, 0.99]}
FAILURE = Failure(kind=FailureKind.TRIAL, message="diverged")


def read(writer: StudyWriter, folder: Path) -> Any:
    (folder / "study.db").write_bytes(optuna_storage(writer.record()))
    return optuna.load_study(study_name="by hand", storage=f"sqlite:///{folder}/study.db")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    writer = StudyWriter(space=SPACE)
    first = {**COMMON, "shift": 6.0, "optimizer": SGD, "clip": None}
    second = {**COMMON, "shift": 0.0, "optimizer": "lbfgs", "clip": True}
    third = {**COMMON, "shift": -1.0, "optimizer": ADAM, "clip": 1}
    writer.at(0).start(0, params=first, end=3).start(1, params=second, end=3).start(2, params=third, end=3)
    notes = {"seed": 1, "parts": [1, 2]}
    metrics = {"accuracy": 0.8, "loss": 0.4}
    writer.at(5).end(0, 3, curve={1: 0.5, 2: 0.7, 3: 0.8}, metrics=metrics, notes=notes)
    writer.at(6).end(1, 3, 0.6, curve={1: 0.5, 3: 0.6}).end(2, value=None, failure=FAILURE)
    writer.at(7).start(0, 3, 9, params=first, rung=1).at(9).end(0, 9, 0.7, curve={9: 0.7}, rung=1)
    writer.settle(TrialState.COMPLETED, 0).settle(TrialState.STOPPED, 1)
    writer.at(10).start(3, params=third)
    return read(writer, tmp_path_factory.mktemp("optuna"))


def test_states_values_and_times_are_those_of_the_trials(study: Any) -> None:
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert [t.value for t in study.trials] == [0.8, 0.6, None, None]  # 0.7 was after the best
    assert [t.number for t in study.trials] == [0, 1, 2, 3]
    assert [t.duration and t.duration.total_seconds() for t in study.trials] == [9, 6, 6, None]
    assert study.best_trial.number == 0
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["accuracy"]


def test_intermediate_values_are_the_learning_curve(study: Any) -> None:
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.7, 3: 0.8, 9: 0.7}
    assert study.trials[1].intermediate_values == {1: 0.5, 3: 0.6}
    assert study.trials[2].intermediate_values == {}


def test_parameters_have_the_distributions_of_the_space(study: Any) -> None:
    first, second, third, _ = study.trials
    expected = {
        "rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "depth": optuna.distributions.IntDistribution(1, 9),
        "width": optuna.distributions.IntDistribution(8, 512, log=True),
        "share": optuna.distributions.FloatDistribution(0.1, 0.9, step=0.1),
        "shift": optuna.distributions.FloatDistribution(-4, 6),  # Optuna has no normal one
        "optimizer": optuna.distributions.CategoricalDistribution(["lbfgs", "sgd", "adam"]),
        "clip": optuna.distributions.CategoricalDistribution(["null", "1", "true"]),  # 1 and true are equal
        "layers": optuna.distributions.CategoricalDistribution(["[8, 4]", "[16]"]),
    }
    assert second.distributions == expected
    chosen = {"shift": 0.0, "optimizer": "lbfgs", "clip": "true", "layers": "[16]"}
    assert {**second.params, "epochs": 3} == {**COMMON, **chosen}
    # Conditional parameters are there only where they are active; the ranges of these two differ.
    assert first.params["optimizer.1.momentum"] == 0.5
    assert third.params["optimizer.2.momentum"] == 0.9
    assert first.distributions.keys() - expected.keys() == {"optimizer.1.momentum"}


def test_attributes_hold_notes_other_metrics_and_failures(study: Any) -> None:
    first, _, failed, _ = study.trials
    assert first.user_attrs["seed"] == 1
    assert first.user_attrs["parts"] == [1, 2]
    assert (first.user_attrs["resource"], first.user_attrs["rung"]) == (9, 1)
    assert (failed.user_attrs["failure"], failed.user_attrs["failure_kind"]) == ("diverged", "trial")
    assert study.user_attrs["seed"] == 7


def test_several_objectives_and_limits_become_optunas(tmp_path: Path) -> None:
    objective = Objective(
        metric="accuracy",
        mode=Mode.MAX,
        extra_objectives=(("latency", Mode.MIN),),
        limits=(Limit(metric="size", at_most=10),),
    )
    writer = StudyWriter(objective)
    for trial, (accuracy, latency, size) in enumerate([(0.9, 7.0, 9.0), (0.8, 3.0, 8.0), (0.95, 2.0, 20.0)]):
        metrics = {"accuracy": accuracy, "latency": latency, "size": size}
        writer.start(trial).end(trial, value=accuracy, metrics=metrics)
    writer.settle(TrialState.STOPPED, 0, 1, 2)
    study = read(writer, tmp_path)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "latency"]
    assert [t.values for t in study.trials] == [[0.9, 7.0], [0.8, 3.0], [0.95, 2.0]]
    assert [t.number for t in study.best_trials] == [0, 1]  # trial 2 is too large


def test_trial_outside_a_space_that_was_narrowed_keeps_its_parameters(tmp_path: Path) -> None:
    writer = StudyWriter().start(0, params={"x": 7.0}).end(0)
    [trial] = read(writer, tmp_path).trials
    assert (trial.params, trial.user_attrs["params"]) == ({}, {"x": 7.0})


KINDS: dict[str, dict[str, Any]] = {
    "qnormal": {"type": "qnormal", "mu": 3, "sigma": 2, "q": 1, "integer": True},
    "lognormal": {"type": "lognormal", "mu": -2, "sigma": 1},
    "qlognormal": {"type": "qlognormal", "mu": 0, "sigma": 2, "q": 0.5},
    "qloguniform": {"type": "qloguniform", "low": 0.3, "high": 20, "q": 0.25},
    "quniform": {"type": "quniform", "low": -1, "high": 1, "q": 0.3},
    "steps": {"type": "quniform", "low": -5, "high": 5, "q": 2, "integer": True},
    "logint": {"type": "logint", "low": 1, "high": 100},
    "choice": {"type": "choice", "options": [0.1, 1, "a", False], "weights": [0.1, 0.2, 0.3, 0.4]},
}


def test_every_sample_is_within_its_distribution(tmp_path: Path) -> None:
    rng, space = np.random.default_rng(0), Space.from_config(KINDS)
    writer = StudyWriter(space=KINDS)
    sampled = [space.sample(rng) for _ in range(50)]
    for trial, params in enumerate(sampled):
        writer.start(trial, params=params)
    assert [t.params for t in read(writer, tmp_path).trials] == sampled
