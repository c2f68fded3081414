"""Twelve trials on the wine table end with a model that was trained: real training, in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

import spark_hpo
from spark_hpo.config import build_config
from spark_hpo.driver.build import build_budget
from spark_hpo.study_dir.definition import Definition
from spark_hpo.train.context import TrainContext
from spark_hpo.trial import TrialState

EPOCHS = 81


def train_softmax(ctx: TrainContext) -> None:
    """Softmax regression on a third of the rows, by noisy gradients of small batches."""
    features, label = load_wine(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    x, other_x, y, other_y = train_test_split(features, label, train_size=60, random_state=0, stratify=label)
    state = ctx.load_checkpoint() or {"epochs": 0, "weights": np.zeros((13, 3)).tolist()}
    weights = np.array(state["weights"])
    rng = np.random.default_rng((ctx.seed, *ctx.resource))

    def probabilities(rows: Any) -> Any:
        scores = rows @ weights
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def loss() -> float:
        return float(-np.log(probabilities(other_x)[np.arange(len(other_y)), other_y] + 1e-9).mean())

    for _ in range(*ctx.resource):
        for rows in np.array_split(rng.permutation(len(x)), 20):
            wrong = probabilities(x[rows]) - np.eye(3)[y[rows]]
            weights -= ctx.params["learning_rate"] * x[rows].T @ wrong
        state = {"epochs": state["epochs"] + 1, "weights": weights.tolist()}
        ctx.report({"loss": loss()}, checkpoint=state)
    if ctx.is_evaluation:
        ctx.report({"loss": loss()})


def tuned(folder: Path, **settings: Any) -> spark_hpo.Result:
    return spark_hpo.tune(
        train_softmax,
        {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1.0}},
        metric="loss",
        mode="min",
        trials=12,
        max_resource=EPOCHS,
        storage=folder / "study",
        backend="inline",
        seed=9,
        mlflow={"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
        **settings,
    )


@pytest.mark.medium
def test_twelve_trials_on_wine_end_with_a_model_that_was_trained(tmp_path: Path) -> None:
    # With these settings, the one place in the last rung goes to another trial than the best.
    result = tuned(
        tmp_path,
        search={
            "sampler": "tpe",
            "sampler_settings": {"enough": 10, "learns_from_paused": True},
            "scheduler": "adaptive_asha",
            "scheduler_settings": {"has_leader": True, "control_share": 0.1},
        },
    )
    best = result.study.trials[result.best.trial_id]
    assert (best.state, best.resource) == (TrialState.COMPLETED, EPOCHS)
    used = result.summary()["reserve"]
    (early,) = used["trials"]
    assert used["resource"] == EPOCHS - 3, "it had the lowest loss when it was stopped, after 3"
    assert len(result.study.trials) == 12
    assert result.best_model()["epochs"] == result.best.resource
    assert result.best.loss <= best.loss
    trained = [t.loss for t in result.study.trials.values() if t.state is TrialState.COMPLETED]
    assert best.loss == min(trained)
    assert best.trial_id != early, "its early value was luck: at its end another trial is better"
    assert any(f"Trial {early} had a better loss" in warning for warning in result.warnings)


@pytest.mark.medium
def test_default_method_trains_its_best_of_twelve_trials_to_the_end(tmp_path: Path) -> None:
    result = tuned(tmp_path)
    best = result.study.trials[result.best.trial_id]
    assert (best.state, best.resource) == (TrialState.COMPLETED, EPOCHS)
    assert len(result.study.trials) == 12


@pytest.mark.medium
def test_real_study_keeps_its_limit_of_time_and_trains_its_model(tmp_path: Path) -> None:
    def train_slowly(ctx: TrainContext) -> None:
        for epoch in range(*ctx.resource):
            end = time.monotonic() + 0.1  # a full training takes 2.7 s
            while time.monotonic() < end:
                loss = float(np.linalg.norm(np.random.default_rng(epoch).random((100, 100))))
            ctx.report(
                {"loss": loss * abs(np.log10(ctx.params["learning_rate"]) + 2)}, checkpoint={"e": epoch}
            )
        if ctx.is_evaluation:
            ctx.report({"loss": 0.0})

    result = spark_hpo.tune(
        train_slowly,
        {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1.0}},
        metric="loss",
        mode="min",
        seconds=6.0,
        max_resource=27,
        storage=tmp_path / "study",
        backend="inline",
        mlflow={"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    assert result.stopped_by == "seconds"
    assert result.study.progress.seconds <= 6.3
    assert result.study.trials[result.best.trial_id].state is TrialState.COMPLETED


def test_study_of_an_earlier_version_has_no_reserve_unless_it_is_asked_for(tmp_path: Path) -> None:
    def record(budget: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": "old",
            "study_dir": str(tmp_path),
            "task": "image",
            "objective": {"metric": "accuracy", "mode": "max"},
            "space": {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1}},
            "search": {"max_resource": 9},
            "budget": budget,
        }

    usual = build_config(record({"trials": 9}), place="test")
    old = Definition.create({**usual.model_dump(mode="json"), "budget": {"trials": 9}})
    assert build_budget(usual, old).finish == 0
    assert build_budget(build_config(record({"trials": 9, "finish": 2}), place="test"), old).finish == 2
    assert build_budget(usual, Definition.create(usual.model_dump(mode="json"))).finish == 1
