"""Writes journals with known figures, for tests of reports."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from typing import Any

from spark_hpo.objective import Mode, Objective
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.space import Space
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Failure, FailureKind, Measurement, Report, Split, TrialState
from tests.benchmarks.replay.memory import MemoryStorage

BEGAN = 1_000_000.0


class StudyWriter:
    """Writes a study's journal event by event, with a clock that the test sets."""

    def __init__(
        self, objective: Objective | None = None, *, storage: Storage | None = None, **config: Any
    ) -> None:
        self.objective = objective or Objective(metric="accuracy", mode=Mode.MAX)
        self.storage = storage or MemoryStorage()
        self.now = BEGAN
        space = config.pop("space", {"x": {"type": "uniform", "low": 0.0, "high": 1.0}})
        record = {
            "name": "by hand",
            "seed": 7,
            "objective": {
                "metric": self.objective.metric,
                "mode": str(self.objective.mode),
                "also": {name: str(mode) for name, mode in self.objective.extra_objectives},
                "penalties": dict(self.objective.penalties),
                "limits": [
                    {name: bound for name, bound in asdict(limit).items() if bound not in (-inf, inf)}
                    for limit in self.objective.limits
                ],
            },
            "search": {"max_resource": 9},
            "space": Space.from_config(space).to_json(),
            **config,
        }
        Definition.create(record).write(self.storage)
        self.open()

    def open(self, **driver: Any) -> StudyWriter:
        self.journal = Journal.open(self.storage, self.objective, driver=driver, clock=lambda: self.now)
        return self

    def at(self, second: float) -> StudyWriter:
        self.now = BEGAN + second
        return self

    def start(self, trial: int, begin: int = 0, end: int = 1, **changes: Any) -> StudyWriter:
        known: dict[str, Any] = {
            "attempt": 1,
            "params": {"x": 0.5},
            "bracket": 0,
            "rung": 0,
            "checkpoint": None,
        }
        self.journal.assigned(
            Assignment(
                trial_id=trial,
                resource_from=begin,
                resource_to=end,
                seed=0,
                **{"checkpoint": None, **known, **changes},
            )
        )
        return self

    def end(self, trial: int, resource: int = 1, value: float | None = 0.5, **changes: Any) -> StudyWriter:
        """End an attempt with a value or a failure."""
        self.journal.reported(self._report(trial, resource, value, **changes))
        return self

    def lose(self, trial: int, message: str = "executor 3 was lost", **changes: Any) -> StudyWriter:
        failure = Failure(kind=changes.pop("kind", FailureKind.INFRASTRUCTURE), message=message)
        self.journal.lost(self._report(trial, 0, None, failure=failure, **changes))
        return self

    def settle(self, state: TrialState, *trials: int) -> StudyWriter:
        self.journal.settled(trials, state)
        return self

    def slots(self, count: int) -> StudyWriter:
        self.journal.slots(count)
        return self

    def close(self, reason: str = "trials") -> StudyWriter:
        self.journal.closed(reason)
        return self.die()

    def die(self) -> StudyWriter:
        self.journal.close()
        return self

    def record(self, *, is_running: bool | None = None) -> StudyRecord:
        return StudyRecord.read(self.storage, is_running=is_running)

    def _report(self, trial: int, resource: int, value: float | None, **changes: Any) -> Report:
        metrics = changes.pop("metrics", {} if value is None else {self.objective.metric: value})
        curve = changes.pop("curve", {resource: value} if value is not None else {})
        known: dict[str, Any] = {"attempt": 1, "rung": 0, "seconds": 1.0}
        return Report(
            trial_id=trial,
            resource=resource,
            metrics=metrics,
            curve=tuple(
                Measurement(
                    resource=r, metrics={self.objective.metric: v}, time=self.now, seconds=2.0, rows=1
                )
                for r, v in curve.items()
            ),
            **{**known, **changes},
        )


TEST = {"split": Split.TEST}
