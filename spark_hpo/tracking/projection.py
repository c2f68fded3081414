"""What one trial looks like in MLflow. Pure: the same trial gives the same tags, values and times.

Times come from the measurements, never from the clock of the writer, so that a batch written twice is the
same batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

from spark_hpo.dotted import flatten
from spark_hpo.trial import Measurement, Trial, TrialState

STUDY_ID = "spark_hpo.study_id"
KIND = "spark_hpo.kind"  # study or trial
TRIAL_ID = "spark_hpo.trial_id"
RESOURCE = "spark_hpo.resource"
WRITTEN = "spark_hpo.written"  # the trial's last journal event that is here
POINTS = "spark_hpo.points"  # measurements that are here
PARETO_FRONT = "spark_hpo.pareto_front"  # true or false: whether the trial is on it, at the study's end

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
    TrialState.PAUSED: "FINISHED",  # it may never be promoted; if it is, it runs again
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
class Batch:
    """What goes to MLflow in one call: within its limits."""

    params: tuple[tuple[str, str], ...] = ()
    points: tuple[Point, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The whole of one run."""

    params: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def batches(self) -> Iterator[Batch]:
        """Within MLflow's limits. The tags come last: where they are, everything is."""
        params = _chunks(list(self.params.items()), PARAMS_PER_BATCH)
        points = _chunks(list(self.points), POINTS_PER_BATCH)
        *first, last = list(zip_longest(params, points, fillvalue=())) or [((), ())]
        for some_params, some_points in first:
            yield Batch(params=tuple(some_params), points=tuple(some_points))
        yield Batch(params=tuple(last[0]), points=tuple(last[1]), tags=tuple(self.tags.items()))


def project(trial: Trial, *, written: bool = False, points: int = 0) -> Record:
    """What is to be written of `trial` when `points` of its measurements are there already.

    `written`: the run has been written before; its parameters are there, and MLflow lets none change.
    Those of a trial that chooses them itself are written when it has.
    """
    is_known = trial.state is not TrialState.RUNNING if trial.is_define_by_run else not written
    return Record(
        params=param_texts(trial.params) if is_known else {},
        points=[*_curve(trial.curve[points:]), *_summary(trial)],
        tags={
            "spark_hpo.state": str(trial.state),
            "spark_hpo.bracket": str(trial.bracket),
            "spark_hpo.rung": str(trial.rung),
            RESOURCE: str(trial.resource),
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


def rows_per_second(curve: Sequence[Measurement]) -> float | None:
    """Rows trained on by the second; None where nothing was measured."""
    seconds = sum(measurement.seconds for measurement in curve)
    return sum(measurement.rows for measurement in curve) / seconds if seconds > 0 else None


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested parameters as MLflow takes them: `{"optimizer": {"lr": 0.1}} -> {"optimizer.lr": "0.1"}`."""
    texts: dict[str, str] = {}
    for path, value in flatten(params):
        key = name(path)
        while key in texts:  # two names that differ only in what MLflow forbids
            key = name(key[: MAX_KEY - 1] + "_")
        texts[key] = cut(str(value), MAX_PARAM)
    return texts


def name(text: str) -> str:
    """A key that MLflow accepts: letters, digits and `_-. :/`, at most 250, and no `.` or `..` as a path."""
    key = _FORBIDDEN.sub("_", text)
    # MLflow takes keys for paths, and refuses those that are not in their shortest form.
    key = "/".join(part if part.strip(".") else "_" for part in key.split("/"))
    return cut(re.sub(r"^\.+", "_", key), MAX_KEY, mark="__cut")


def cut(text: str, limit: int, mark: str = " ... (cut)") -> str:
    """`text`, at most `limit` characters of it; where it was longer, its end says so."""
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _curve(curve: Sequence[Measurement]) -> Iterator[Point]:
    for measurement in curve:
        rate = rows_per_second([measurement])
        ours = {"epoch_seconds": measurement.seconds} | ({"rows_per_second": rate} if rate else {})
        for key, value in (ours | dict(measurement.metrics)).items():  # a task's own name wins
            yield Point(
                key=name(key),
                value=float(value),
                time_ms=int(measurement.time * 1000),
                step=measurement.resource,
            )


def _summary(trial: Trial) -> Iterator[Point]:
    """Sums as metrics, so that people can sort by them; once, when the trial is out."""
    if trial.state.is_out and trial.ended_at is not None:
        for key, value in (("trial_seconds", trial.seconds), ("rung", float(trial.rung))):
            yield Point(key=key, value=value, time_ms=int(trial.ended_at * 1000), step=trial.resource)


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
