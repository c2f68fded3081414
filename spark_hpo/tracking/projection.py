"""Converts a trial to params, metrics and tags of MLflow, idempotently: times are those of measurements."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

from spark_hpo.objective import Mode, Objective
from spark_hpo.tracking.system_metrics import system_metrics, system_series
from spark_hpo.trial import Measurement, Trial, TrialState, flatten

STUDY_ID = "spark_hpo.study_id"
KIND = "spark_hpo.kind"  # study or trial
TRIAL_ID = "spark_hpo.trial_id"
RESOURCE = "spark_hpo.resource"
WRITTEN = "spark_hpo.written"  # number of the trial's last journal event in MLflow
POINTS = "spark_hpo.points"  # number of measurements in MLflow
CONFIRMATION = "spark_hpo.confirmation"  # the finalists, as JSON
PARETO_FRONT = "spark_hpo.pareto_front"  # true or false, at the end of the study
DESCRIPTION = "mlflow.note.content"  # MLflow's page of a run shows it
_BEST = "best."  # tags of the study's run begin with it

# MLflow's limits.
MAX_KEY = 250
MAX_PARAM = 6_000
MAX_TAG = 8_000
PARAMS_PER_BATCH = 100
POINTS_PER_BATCH = 800  # 1,000 entries a batch, less 100 parameters and 100 tags

_T = TypeVar("_T")

_FORBIDDEN = re.compile(r"[^\w\-. :/]")

STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.PAUSED: "FINISHED",  # RUNNING again if it is promoted
    TrialState.STOPPED: "FINISHED",
    TrialState.COMPLETED: "FINISHED",
    TrialState.FAILED: "FAILED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    time_ms: int  # since 1970
    step: int  # epochs completed


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """Everything to write to one run."""

    params: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def batches(self) -> Iterator[RunUpdate]:
        """Split into calls within MLflow's limits. The tags come last, as a sign that all was written."""
        params = _chunks(list(self.params.items()), PARAMS_PER_BATCH)
        points = _chunks(list(self.points), POINTS_PER_BATCH)
        *first, last = list(zip_longest(params, points, fillvalue=())) or [((), ())]
        for some_params, some_points in first:
            yield RunUpdate(params=dict(some_params), points=some_points)
        yield RunUpdate(params=dict(last[0]), points=last[1], tags=self.tags)


def project(trial: Trial, *, written: bool = False, points: int = 0) -> RunUpdate:
    """Return what MLflow lacks of a trial.

    Args:
        written: the run has its parameters, which MLflow does not allow to change. Those of a define-by-run
            trial are written when it has chosen them.
        points: number of measurements that the run has.
    """
    is_known = trial.state is not TrialState.RUNNING if trial.is_define_by_run else not written
    return RunUpdate(
        params=param_texts(trial.params) if is_known else {},
        points=[*_curve(trial.curve[points:]), *_summary(trial)],
        tags={
            "spark_hpo.state": str(trial.state),
            "spark_hpo.bracket": str(trial.bracket),
            "spark_hpo.rung": str(trial.rung),
            RESOURCE: str(trial.resource),
            **({} if trial.parent is None else {"spark_hpo.parent_trial": str(trial.parent)}),
            "spark_hpo.seconds": f"{trial.seconds:.3f}",
            **(
                {"spark_hpo.rows_per_second": f"{rate:.1f}"} if (rate := rows_per_second(trial.curve)) else {}
            ),
            **(
                {
                    "spark_hpo.failure": cut(trial.failure.message, MAX_TAG),
                    "spark_hpo.failure_kind": str(trial.failure.kind),
                }
                if trial.failure
                else {}
            ),
            POINTS: str(len(trial.curve)),
            WRITTEN: str(trial.changed_at),
        },
    )


def experiment_tags(objective: Objective) -> dict[str, str]:
    """Return tags with which MLflow's page of an experiment shows runs, and charts the objective first."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": name(objective.metric),
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(objective.mode is Mode.MAX),
    }


def best_tags(best: Trial) -> dict[str, str]:
    """Return the number and the parameters of the best trial, by names such as `best.learning_rate`."""
    params = {cut(f"{_BEST}{key}", MAX_KEY): value for key, value in param_texts(best.params).items()}
    return {**params, f"{_BEST}trial": str(best.trial_id)}


def confirmation_metrics(
    metric: str, *, mean: float | None, spread: float | None, chance: float
) -> dict[str, float]:
    """Return the metrics of the study's run that say what the winner's trainings with other seeds gave."""
    found = {f"confirmed_{metric}": mean, f"confirmed_{metric}_std": spread, "confirmed_chance": chance}
    return {key: value for key, value in found.items() if value is not None}


def model_tags(trial: Trial) -> dict[str, str]:
    """Return the parameters of a model's trial and its metrics on the validation split."""
    metrics = {f"spark_hpo.validation.{name}": repr(float(value)) for name, value in trial.metrics.items()}
    params = {f"spark_hpo.param.{name}": value for name, value in param_texts(trial.params).items()}
    return {cut(key, MAX_KEY): value for key, value in (metrics | params).items()}


def describe_best(best: Trial, objective: Objective, link: str = "") -> str:
    """Return the best trial in Markdown: its metric, and a table of its parameters.

    Args:
        link: address of its run; empty: unknown.
    """
    name_ = f"trial {best.trial_id}"
    metric = objective.metric
    lines = [
        f"Best: {f'[{name_}]({link})' if link else name_}, {metric} {best.metrics[metric]:.4g} "
        f"at resource {best.resource}.",
        "",
        "| parameter | value |",
        "|---|---|",
    ]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in param_texts(best.params).items()]
    return cut("\n".join(lines), MAX_TAG)


def rows_per_second(curve: Sequence[Measurement]) -> float | None:
    """Return the rows trained on per second; None: nothing was measured."""
    seconds = sum(measurement.seconds for measurement in curve)
    return sum(measurement.rows for measurement in curve) / seconds if seconds > 0 else None


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters as texts by dotted name: `{"optimizer": {"lr": 0.1}} -> {"optimizer.lr": "0.1"}`."""
    texts: dict[str, str] = {}
    for path, value in flatten(params):
        key = name(path)
        while key in texts:  # names that differ only in forbidden characters
            key = name(key[: MAX_KEY - 1] + "_")
        texts[key] = cut(str(value), MAX_PARAM)
    return texts


def name(text: str) -> str:
    """Return a key that MLflow accepts: letters, digits and `_-. :/`, at most 250 characters."""
    key = _FORBIDDEN.sub("_", text)
    # MLflow interprets keys as paths, and refuses `.`, `..` and empty parts.
    key = "/".join(part if part.strip(".") else "_" for part in key.split("/"))
    return cut(re.sub(r"^\.+", "_", key), MAX_KEY, mark="__cut")


def cut(text: str, limit: int, mark: str = " ... (cut)") -> str:
    """Return at most `limit` characters of a text, ending in `mark` if it was longer."""
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _curve(curve: Sequence[Measurement]) -> Iterator[Point]:
    for measurement in curve:
        rate = rows_per_second([measurement])
        ours = {"epoch_seconds": measurement.seconds} | ({"rows_per_second": rate} if rate else {})
        for key, value in (ours | dict(measurement.metrics)).items():  # a metric of the task overrides ours
            yield Point(
                key=name(key),
                value=float(value),
                time_ms=int(measurement.time * 1000),
                step=measurement.resource,
            )


def _summary(trial: Trial) -> Iterator[Point]:
    """Yield the spread over the folds, how the last assignment used its machine and, at the end, sums."""
    if trial.ended_at is None:
        return
    found = {f"{key}_std": value for key, value in trial.spread.items()}
    if trial.state.is_out:
        found |= {"trial_seconds": trial.seconds, "rung": float(trial.rung)}
    for key, value in found.items():
        yield Point(key=name(key), value=value, time_ms=int(trial.ended_at * 1000), step=trial.resource)
    # Steps of system metrics are seconds, as MLflow's own are counted by time, not by epochs.
    series = [*system_series(trial.usage), *([(0.0, system_metrics(trial.usage))] * trial.state.is_out)]
    for before_end_s, metrics in series:
        at = trial.ended_at - before_end_s
        step = max(0, int(at - trial.started_at))
        for key, value in metrics.items():
            yield Point(key=name(key), value=value, time_ms=int(at * 1000), step=step)


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
