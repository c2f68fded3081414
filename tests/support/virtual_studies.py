"""Writes study directories that look like real ones, within a second: a virtual clock, and no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spark_hpo.config import build_config
from spark_hpo.driver.build_search import build_search
from spark_hpo.search.space import Space
from spark_hpo.study import Budget, RunningStudy, Study
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Measurement, Params, Report, Trial
from tests.support.simulated import Curve, Disturbances, SimulatedBackend

START = 1_700_000_000.0
SPACE: dict[str, Any] = {
    "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
    "dropout": {"type": "uniform", "low": 0.0, "high": 0.6},
    "width": {"type": "choice", "options": [32, 64, 128]},
    "optimizer": {
        "type": "choice",
        "options": [
            {"name": "adam"},
            {"name": "sgd", "momentum": {"type": "uniform", "low": 0.0, "high": 0.99}},
        ],
    },
}
TODAY = {"learning_rate": 0.02, "dropout": 0.5, "width": 32, "optimizer": {"name": "adam"}}


class Accuracies:
    """Learning curves of a made-up network; a learning rate that is too high diverges."""

    def __init__(self, max_resource: int) -> None:
        self.max_resource = max_resource

    def curve(self, trial_id: int, params: Params) -> Curve:
        rate = np.log10(params["learning_rate"])
        momentum = params["optimizer"].get("momentum", 0.9)
        final = 0.98 - 0.06 * (rate + 2.6) ** 2 - 0.25 * (params["dropout"] - 0.15) ** 2
        final -= 0.04 * (1 - momentum) + 0.02 * (params["width"] == 32)
        epochs = np.arange(1, self.max_resource + 1)
        noise = np.random.default_rng(trial_id).normal(scale=0.006, size=self.max_resource)
        accuracy = np.clip(final * (1 - 0.6 * np.exp(-epochs / 4)) + noise / np.sqrt(epochs), 0.0, 1.0)
        if params["learning_rate"] > 0.07:
            accuracy[2:] = np.nan
        seconds = 4.0 + 0.05 * params["width"]
        return Curve(metrics={"accuracy": accuracy}, elapsed_s=seconds * epochs)


class _Backend(SimulatedBackend):
    """Adds the metrics of each epoch to the reports, as ranks do."""

    def __init__(self, curves: Accuracies, slots: int, disturbances: Disturbances | None) -> None:
        super().__init__(curves, slots, disturbances)
        self.begun: dict[int, Assignment] = {}

    def submit(self, assignment: Assignment) -> None:
        self.begun[assignment.trial_id] = assignment
        super().submit(assignment)

    def wait(self, timeout: float) -> Report | None:
        report = super().wait(timeout)
        if report is None:
            return None
        assignment = self.begun[report.trial_id]
        curve = self._curves.curve(assignment.trial_id, assignment.params)
        measured = [
            Measurement(
                resource=epoch,
                metrics={name: float(values[epoch - 1]) for name, values in curve.metrics.items()},
                time=START + self.clock(),
                seconds=curve.seconds(epoch - 1, epoch),
                rows=1000,
            )
            for epoch in range(assignment.resource_from + 1, report.resource + 1)
        ]
        return replace(report, curve=tuple(measured))


class _StopAfter(Callback):
    """Raises `error` in the driver after a number of reports."""

    def __init__(self, reports: int, error: type[BaseException]) -> None:
        self._left = reports
        self._error = error

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error


class _NoTracker:
    def sync(self, journal: Any) -> None: ...

    def info(self) -> Mapping[str, Any]:
        return {}


class Killed(BaseException):
    """Simulates kill -9."""


def write_study(
    folder: Path | Storage,
    *,
    trials: int | None = 40,
    resource: int | None = None,
    slots: int = 4,
    name: str = "virtual",
    space: Mapping[str, Any] | None = None,
    curves: Any = None,
    stop_after: tuple[int, type[BaseException]] | None = None,
    begin: float = 0.0,
    disturbances: Disturbances | None = None,
    driver: Mapping[str, Any] | None = None,
    test: bool = True,
    finish: int = 0,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> Storage:
    """Run or resume a study in a directory.

    Args:
        stop_after: number of reports, and the error that ends the driver then; KeyboardInterrupt closes
            the journal.
        begin: virtual second at which this driver begins.
        changes: of the study file.
    """
    storage = folder if isinstance(folder, Storage) else Storage(folder)
    config = build_config(
        {
            "name": name,
            "study_dir": storage.url,
            "task": "image",
            "seed": 1,
            "objective": {"metric": "accuracy", "mode": "max"},
            "space": dict(space or SPACE),
            "search": {"sampler": "tpe", "scheduler": "hyperband", "max_resource": 27},
            "budget": {"trials": trials, "resource": resource},
            **changes,
        },
        place="virtual",
    )
    parsed = Space.from_config(config.space)
    if Definition.load(storage) is None:
        Definition.create({**config.model_dump(mode="json"), "space": parsed.to_json()}).write(storage)
    objective = config.objective.build()
    backend = _Backend(curves or Accuracies(config.search.max_resource), slots, disturbances)
    journal = Journal.open(storage, objective, driver=driver, clock=lambda: START + begin + backend.clock())
    search = replace(build_search(config, parsed), choice=Definition.require(storage).choice)
    study = Study(
        journal=journal,
        search=search,
        backend=backend,
        tracker=_NoTracker(),
        budget=Budget(trials=config.budget.trials, resource=config.budget.resource, finish=finish),
        callbacks=[*callbacks, *([_StopAfter(*stop_after)] if stop_after else [])],
        clock=backend.clock,
    )
    try:
        reason = study.run()
        if test and study.best is not None:
            study.test(study.best)
        journal.closed(reason)
    except KeyboardInterrupt:
        journal.closed("interrupted")
    except Killed:
        pass
    finally:
        journal.close()
    return storage
