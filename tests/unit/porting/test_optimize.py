"""`optimize` with unchanged Optuna objectives; trials run in this process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import spark_hpo
from spark_hpo.errors import ConfigError, NoTrialSucceeded
from spark_hpo.report.pictures.history import history
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState

optuna = pytest.importorskip("optuna", reason="Optuna is an extra")


def optimize(objective: Any, **named: Any) -> Any:
    return spark_hpo.optimize(objective, **{"backend": "inline", "seed": 3, "parallelism": 1, **named})


def bowl(trial: Any) -> float:
    x = trial.suggest_float("x", -5, 5)
    y = trial.suggest_int("y", 1, 9, step=2)
    return float((x - 1) ** 2 + (y - 3) ** 2)


def branches(trial: Any) -> float:
    kind = trial.suggest_categorical("kind", ["linear", "deep", None])
    if kind == "linear":
        return 1.0 + float(trial.suggest_float("penalty", 1e-3, 1e1, log=True))
    if kind is None:
        return 5.0
    layers = trial.suggest_int("layers", 1, 3)
    widths = [trial.suggest_int(f"width_{i}", 8, 64, log=True) for i in range(layers)]
    return 1.0 / sum(widths)


def test_optimize_finds_what_optuna_finds() -> None:
    result = optimize(bowl, n_trials=40)
    alone = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))
    alone.optimize(bowl, n_trials=40)
    assert result.best.loss < 2
    assert alone.best_value < 2
    assert result.best.params["y"] == 3
    study = result.to_optuna()
    assert study.best_params == result.best.params
    assert study.best_value == result.best.loss
    assert [trial.number for trial in study.trials] == list(range(40))
    assert study.trials[5].distributions == alone.trials[5].distributions
    assert study.trials[5].datetime_complete >= study.trials[5].datetime_start
    assert optuna.importance.get_param_importances(study)["x"] > 0


def test_optimize_refuses_folds_because_each_would_choose_parameters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        optimize(
            bowl, n_trials=2, storage=tmp_path / "study", search={"resource": "folds", "max_resource": 3}
        )
    assert (raised.value.key, raised.value.value) == ("search.resource", "folds")
    assert not (tmp_path / "study/journal").exists()


def test_trial_has_exactly_the_parameters_it_asked_for() -> None:
    result = optimize(branches, n_trials=40)
    seen = set()
    for trial in result.journal.trials.values():
        kind = trial.params["kind"]
        seen.add(kind)
        widths = {f"width_{i}" for i in range(trial.params.get("layers", 0))}
        below = {"linear": {"penalty"}, "deep": {"layers", *widths}, None: set()}
        assert trial.params.keys() == {"kind"} | below[kind]
    assert seen == {"linear", "deep", None}
    assert result.best.params["kind"] == "deep"
    assert result.best.metrics["value"] < 1 / 100
    # In MLflow too, where a logged parameter cannot be changed: proposals must not be logged.
    client = MlflowClient()
    experiment = client.get_experiment_by_name("branches")
    runs = client.search_runs([experiment.experiment_id], "tags.`spark_hpo.kind` = 'trial'", max_results=100)
    logged = {int(run.data.tags["spark_hpo.trial_id"]): set(run.data.params) for run in runs}
    assert logged == {i: set(trial.params) for i, trial in result.journal.trials.items()}


def test_trial_is_a_real_optuna_trial() -> None:
    def objective(trial: Any) -> float:
        assert trial.params == {}
        x = trial.suggest_float("x", 0, 1)
        assert trial.params == {"x": x}
        trial.set_user_attr("number", trial.number)
        trial.report(math.nan, 0)
        trial.report(x, 3)
        with pytest.raises(TypeError):
            trial.report("much", 4)
        return float(x)

    result = optimize(objective, n_trials=3)
    for trial in result.journal.trials.values():
        x = trial.params["x"]
        assert [(m.resource, m.metrics) for m in trial.curve] == [(4, {"value": x}), (5, {"value": x})]
        assert trial.resource == 1
    for trial in result.to_optuna().trials:
        assert trial.user_attrs == {"number": trial.number}
        assert math.isnan(trial.intermediate_values[0])
        assert trial.intermediate_values[3] == trial.value


def test_pruned_trial_is_stopped_and_never_the_best() -> None:
    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(10):
            trial.report(x, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x + 10.0  # worse than what any pruned one has reported

    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    result = optimize(objective, n_trials=20, pruner=pruner)
    pruned = [t for t in result.journal.trials.values() if t.state is TrialState.STOPPED]
    assert 3 <= len(pruned) <= 17
    assert result.best.state is not TrialState.STOPPED
    assert result.best.loss >= 10
    assert all(math.isinf(trial.loss) for trial in pruned)
    record = StudyRecord.read(Storage(result.config.study_dir))
    (best_so_far,) = [trace for trace in history(record).figure.data if trace.name == "best so far"]
    assert best_so_far.y[-1] == pytest.approx(result.best.loss)
    page = (Path(result.config.study_dir) / "report.html").read_text()
    assert "the study has no table, so it has no test split" in page
    assert "the training function defines the space" in page
    study = result.to_optuna()
    assert [t.number for t in study.trials if t.state.name == "PRUNED"] == [t.trial_id for t in pruned]
    # MedianPruner: worse at a step than the median of the trials that have ended by then.
    for trial in pruned:
        ended = [t.intermediate_values for t in study.trials[: trial.trial_id] if t.state.name == "COMPLETE"]
        first = sorted(values[0] for values in ended)
        assert study.trials[trial.trial_id].intermediate_values[0] > first[(len(first) - 1) // 2]


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.SuccessiveHalvingPruner(),
        optuna.pruners.HyperbandPruner(max_resource=9),
        optuna.pruners.PatientPruner(None, patience=1),
        optuna.pruners.ThresholdPruner(upper=0.5),
        optuna.pruners.NopPruner(),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
def test_optimize_runs_every_optuna_pruner(pruner: Any) -> None:
    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(9):
            trial.report(x + (step if x > 0.5 else -step) / 100, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(x)

    states = [t.state.name for t in optimize(objective, n_trials=12, pruner=pruner).to_optuna().trials]
    assert ("PRUNED" in states) == (not isinstance(pruner, optuna.pruners.NopPruner))
    assert "COMPLETE" in states


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.RandomSampler(),
        optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=5),
        optuna.samplers.NSGAIISampler(population_size=4),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_optuna_sampler_repeats_with_the_same_seed(sampler: Any) -> None:
    first, second = (optimize(bowl, n_trials=12, sampler=sampler).journal.trials for _ in range(2))
    assert [t.params for t in first.values()] == [t.params for t in second.values()]
    assert len({json.dumps(t.params) for t in first.values()}) > 4


def test_optimize_resumes_as_if_it_had_not_ended(tmp_path: Path) -> None:
    whole = [t.params for t in optimize(branches, n_trials=24).journal.trials.values()]
    optimize(branches, n_trials=11, storage=tmp_path / "mine")
    parts = optimize(branches, n_trials=24, storage=tmp_path / "mine", seed=99)
    assert [t.params for t in parts.journal.trials.values()] == whole
    assert parts.study.progress.run == 13


def test_optimize_treats_values_as_objectives() -> None:
    def objective(trial: Any) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 2)
        return x**2, (x - 1) ** 2

    result = optimize(objective, n_trials=15, directions=["minimize", "maximize"])
    assert result.best.metrics.keys() == {"value_0", "value_1"}
    front = {trial.trial_id for trial in result.pareto_front}
    assert front == {trial.number for trial in result.to_optuna().best_trials}


def test_optimize_runs_enqueued_trials_first() -> None:
    result = optimize(bowl, n_trials=3, enqueue=[{"x": 1.0, "y": 3}, {"x": -2.0}])
    assert result.journal.trials[0].params == {"x": 1.0, "y": 3}
    assert result.journal.trials[1].params["x"] == -2.0
    assert result.best.loss == 0


def test_objective_that_fails_is_a_failed_trial() -> None:
    def objective(trial: Any) -> Any:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            raise ZeroDivisionError
        return {0: "no number", 2: math.nan, 3: (1.0, 2.0)}.get(trial.number, x)

    result = optimize(objective, n_trials=6)
    messages = [t.failure and t.failure.message for t in result.journal.trials.values()]
    assert "'no number'" in messages[0]
    assert "ZeroDivisionError" in messages[1]
    assert "nan" in messages[2]
    assert "(1.0, 2.0)" in messages[3]
    assert messages[4:] == [None, None]
    assert all("x" in trial.params for trial in result.journal.trials.values())
    assert [t.state.name for t in result.to_optuna().trials] == ["FAIL"] * 4 + ["COMPLETE"] * 2

    def prunes(trial: Any) -> float:
        raise optuna.TrialPruned

    with pytest.raises(NoTrialSucceeded, match="all 2 trials were pruned"):
        optimize(prunes, n_trials=2)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({}, ""),
        ({"n_trials": 1, "direction": "up"}, "direction"),
        ({"n_trials": 1, "direction": "minimize", "directions": ["minimize"]}, ""),
        ({"n_trials": 1, "directions": []}, "directions"),
        ({"n_trials": 1, "sampler": optuna.samplers.GridSampler({"x": [1]})}, "sampler"),
    ],
)
def test_optimize_names_a_wrong_argument(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        optimize(bowl, **arguments)
    assert (raised.value.place, raised.value.key) == ("optimize", key)
