"""Studies whose training is a formula, for tests of the driver loop without Spark and torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spark_hpo.backend.base import Backend
from spark_hpo.backend.inline import InlineBackend
from spark_hpo.objective import Choice, Mode, Objective
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.registry import build_sampler, build_scheduler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.space import Space
from spark_hpo.search.stopping import StoppingRule
from spark_hpo.study import Budget, Search, Study
from spark_hpo.study.dispatch import DispatchPolicy
from spark_hpo.study.failures import FailurePolicy
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Failure, Report

LOSS = Objective(metric="loss", mode=Mode.MIN)
SPACE = Space.from_config({"x": {"type": "uniform", "low": -1.0, "high": 1.0}})


class Killed(BaseException):
    """Simulates kill -9: the package does not catch it."""


class NoTracker:
    def __init__(self) -> None:
        self.synced = 0

    def sync(self, journal: Any) -> None:
        self.synced += 1

    def info(self) -> Mapping[str, Any]:
        return {}


class Training:
    """Computes metrics by a formula, writes a checkpoint, and records its assignments."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.asked: list[Assignment] = []
        self.fail: Callable[[Assignment], Failure | None] = lambda assignment: None
        self.kill_after: int | None = None
        self.fold_effect = 0.1

    def __call__(self, assignment: Assignment, **_: Any) -> Report:
        if self.kill_after is not None and len(self.asked) == self.kill_after:
            raise Killed
        self.asked.append(assignment)
        base = {
            "trial_id": assignment.trial_id,
            "attempt": assignment.attempt,
            "rung": assignment.rung,
            "resource": assignment.resource_to,
            "split": assignment.split,
            "fold": assignment.fold,
            "repeat": assignment.repeat,
        }
        if (failure := self.fail(assignment)) is not None:
            return Report(**base, failure=failure)
        if assignment.checkpoint is not None:
            assert self.storage.read(assignment.checkpoint) is not None, (
                "a checkpoint that is needed was deleted"
            )
        x = assignment.params["x"]
        if assignment.fold is not None:  # folds save no checkpoint; the first ones are the easiest
            return Report(**base, metrics={"loss": x**2 + self.fold_effect * assignment.fold})
        path = layout.checkpoint(assignment.trial_id, assignment.resource_to, assignment.attempt)
        self.storage.write(path, b"weights")
        # The cost grows with the resource, so only trials of equal resource are comparable.
        metrics = {"loss": x**2 + 1 / assignment.resource_to, "cost": (1 + x) * assignment.resource_to}
        return Report(**base, metrics=metrics, checkpoint=path)


class ConcurrentBackend:
    """Holds several assignments; each `wait` runs a random one."""

    num_slots = 4

    def __init__(self, training: Training, seed: int) -> None:
        self.training = training
        self.rng = np.random.default_rng(seed)
        self.running: list[Assignment] = []

    def submit(self, assignment: Assignment) -> None:
        self.running.append(assignment)

    def wait(self, timeout: float) -> Report | None:
        if not self.running:
            return None
        assignment = self.running.pop(int(self.rng.integers(len(self.running))))
        return self.training(assignment, rank=0, world_size=1)

    def cancel(self, trial_id: int, fold: int | None = None) -> None:
        self.running = [a for a in self.running if a.key != (trial_id, fold)]

    def close(self) -> None:
        self.running.clear()


RETRY_AT_ONCE = DispatchPolicy(failures=FailurePolicy(max_infra_retries=2))


class StudyRunner:
    """Runs studies in one directory, each with a new driver."""

    def __init__(self, folder: Path, objective: Objective = LOSS) -> None:
        self.objective = objective
        self.storage = Storage(folder)
        self.training = Training(self.storage)
        self.tracker = NoTracker()
        self.journal: Journal | None = None

    def study(
        self,
        *,
        sampler: str = "random",
        scheduler: str | Scheduler = "hyperband",
        budget: Budget | None = None,
        trials: int | None = 15,
        seed: int = 0,
        explorer: Explorer | None = None,
        stopping: Sequence[StoppingRule] = (),
        backend: Backend | None = None,
        has_folds: bool = False,
        choice: Choice | None = None,
        scheduler_settings: Mapping[str, Any] | None = None,
        sampler_settings: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Study:
        if self.journal is not None:
            self.journal.close()
        self.journal = Journal.open(self.storage, self.objective)
        return Study(
            journal=self.journal,
            search=Search(
                sampler=build_sampler(
                    sampler,
                    SPACE,
                    seed,
                    num_objectives=len(self.objective.metrics),
                    **(sampler_settings or {}),
                ),
                scheduler=build_scheduler(
                    scheduler, max_resource=9, max_trials=trials, **(scheduler_settings or {})
                )
                if isinstance(scheduler, str)
                else scheduler,
                explorer=explorer,
                stopping=stopping,
                has_folds=has_folds,
                choice=choice or Choice(),
                seed=seed,
            ),
            backend=backend or InlineBackend(self.training),
            tracker=self.tracker,
            budget=budget or Budget(trials=trials),
            **{"policy": RETRY_AT_ONCE, **settings},
        )

    @property
    def checkpoints(self) -> set[str]:
        return {
            f"checkpoints/{folder}/{name}"
            for folder in self.storage.names("checkpoints")
            for name in self.storage.names(f"checkpoints/{folder}")
        }
