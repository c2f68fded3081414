"""Runs studies on the simulated backend, each with a new driver, until their budget ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spark_hpo.objective import Choice, Mode, Objective
from spark_hpo.search.registry import build_explorer, build_sampler, build_scheduler
from spark_hpo.search.schedulers.staged import StagedScheduler
from spark_hpo.search.space import Space
from spark_hpo.study import Budget, Confirm, Search, Study
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Measurement, Params, Report, part_of
from tests.support.simulated import Curve, SimulatedBackend
from tests.support.study_bench import Killed, NoTracker

MAX = 27
LOSS = Objective(metric="loss", mode=Mode.MIN)
SPACE = Space.from_config({"x": {"type": "uniform", "low": 0.0, "high": 1.0}})


class Noise:
    """Curves whose ranking changes at every epoch, so that schedulers often stop the best trial."""

    def curve(self, trial_id: int, params: Params) -> Curve:
        losses = np.random.default_rng(int(params["x"] * 1e9)).random(MAX)
        return Curve(metrics={"loss": losses}, elapsed_s=np.arange(1.0, MAX + 1))


class Backend(SimulatedBackend):
    """Saves a checkpoint at the end of each assignment, and asks for the one at its beginning."""

    def __init__(self, storage: Storage, slots: int) -> None:
        super().__init__(Noise(), slots)
        self.storage = storage
        self.asked: list[Assignment] = []
        self.kill_after: int | None = None

    def submit(self, assignment: Assignment) -> None:
        if self.kill_after is not None and len(self.asked) == self.kill_after:
            raise Killed
        self.asked.append(assignment)
        if assignment.checkpoint is not None:
            assert self.storage.read(assignment.checkpoint) is not None, "a checkpoint was deleted too early"
            written = assignment.checkpoint.rpartition("/")[2]
            if not assignment.is_evaluation:
                assert int(written.partition("-")[0]) == assignment.resource_from
        super().submit(assignment)

    def wait(self, timeout: float) -> Report | None:
        report = super().wait(timeout)
        if report is not None and report.repeat is not None:  # another seed, another value
            shift = np.random.default_rng((report.trial_id, report.repeat)).normal(scale=0.05)
            report = replace(report, metrics={"loss": report.metrics["loss"] + 0.1 + shift})
        if report is not None and report.fold is None and report.failure is None:
            report = replace(report, curve=self._measured(report))
        if report is None or report.fold is not None or report.failure is not None:
            return report
        part = part_of(None, report.repeat)
        path = layout.checkpoint(report.trial_id, report.resource, report.attempt, part)
        self.storage.write(path, b"weights")
        return replace(report, checkpoint=path)

    def _measured(self, report: Report) -> tuple[Measurement, ...]:
        """Return what ranks measure at each epoch."""
        assignment = next(a for a in reversed(self.asked) if a.key == report.key)
        curve = self._curves.curve(report.trial_id, assignment.params)
        return tuple(
            Measurement(
                resource=epoch,
                metrics={"loss": float(curve.metrics["loss"][epoch - 1])},
                time=self.clock(),
                seconds=curve.seconds(epoch - 1, epoch),
                rows=1000,
            )
            for epoch in range(assignment.resource_from + 1, report.resource + 1)
        )


class Runner:
    """Runs studies in one directory, each with a new driver whose clock begins where the last one ended."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(folder)
        self.now = 0.0
        self.asked: list[Assignment] = []
        self.first_trials: list[int | None] = []  # by driver

    def run(
        self,
        scheduler: str = "asha",
        *,
        slots: int = 2,
        kill_after: int | None = None,
        stopping: Any = (),
        callbacks: Any = (),
        has_folds: bool = False,
        choice: Choice | None = None,
        confirm: Confirm | None = None,
        objective: Objective = LOSS,
        settings: Mapping[str, Any] | None = None,
        max_resource: int = MAX,
        **budget: Any,
    ) -> Study:
        budget = {"finish": 1, **budget}
        backend = Backend(self.storage, slots)
        backend.kill_after = kill_after
        began = self.now
        self.first_trials.append(budget.get("trials"))
        first = self.first_trials[0]
        journal = Journal.open(self.storage, objective, clock=lambda: began + backend.clock())
        self.journal = journal
        study = Study(
            journal=journal,
            search=Search(
                sampler=build_sampler("random", SPACE, 0, num_objectives=len(objective.metrics)),
                scheduler=StagedScheduler(
                    lambda trials: build_scheduler(
                        scheduler, max_resource=max_resource, max_trials=trials, **(settings or {})
                    ),
                    first,
                ),
                explorer=build_explorer("perturbation", SPACE, 0),
                stopping=stopping,
                first_max_trials=first,
                max_trials=budget.get("trials"),
                has_folds=has_folds,
                confirm=confirm,
                choice=choice or Choice(),
            ),
            backend=backend,
            tracker=NoTracker(),
            budget=Budget(**budget),
            callbacks=callbacks,
            clock=backend.clock,
        )
        try:
            journal.closed(study.run())
        except Killed:
            pass
        finally:
            journal.close()
            self.now += backend.clock()
            self.asked += backend.asked
        return study
