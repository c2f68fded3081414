"""The finalists of a study, and their trainings with other seeds, as the journal has them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spark_hpo.objective import Objective
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.finalists import Finalist, compare
from spark_hpo.trial import AssignmentKey, Report, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """The finalists that were chosen, and the reports of their trainings so far."""

    objective: Objective
    resources: Mapping[int, int]  # by trial, the best first: how far it is trained with each seed
    seeds: int
    repeats: Mapping[tuple[int, int, int], Report]
    """By trial, resource at the end of the training, or number of the fold, and number of the seed."""
    has_folds: bool = False  # each seed trains all folds of the trial, one by one

    def missing(self, seeds: int) -> Iterator[tuple[int, int, int | None]]:
        """Iterate over the trainings without a report: trial, number of the seed, and fold if there are any.

        All trials come in turn, seed by seed.
        """
        for seed in range(1, seeds + 1):
            for trial_id in self.resources:
                for end in self._ends(trial_id):
                    if (trial_id, end, seed) not in self.repeats:
                        yield trial_id, seed, end if self.has_folds else None

    def _ends(self, trial_id: int) -> Sequence[int]:
        resource = self.resources[trial_id]
        return range(1, resource + 1) if self.has_folds else (resource,)

    @property
    def is_complete(self) -> bool:
        return not any(True for _ in self.missing(self.seeds))

    @property
    def winner(self) -> int | None:
        """The trial with the best mean; None: trainings are missing."""
        return self.compared()[0].trial_id if self.is_complete else None

    def compared(self) -> list[Finalist]:
        """Return the finalists, the best first, by the reports so far."""
        return compare({trial_id: self._losses(trial_id) for trial_id in self.resources})

    def _losses(self, trial_id: int) -> list[float]:
        found = (self._metrics(trial_id, seed) for seed in range(1, self.seeds + 1))
        scores = [self.objective.score(metrics) for metrics in found if metrics is not None]
        return [score.loss if not score.violation else math.inf for score in scores]

    def _metrics(self, trial_id: int, seed: int) -> Mapping[str, float] | None:
        """Return what a seed gave, as a mean over the folds; empty: it failed; None: reports are missing."""
        keys = [(trial_id, end, seed) for end in self._ends(trial_id)]
        if any(key not in self.repeats for key in keys):
            return None
        found = [self.repeats[key].scored_metrics for key in keys]
        common = set(found[0]).intersection(*found)
        return {name: statistics.fmean(metrics[name] for metrics in found) for name in common}


@dataclass(eq=False)
class FinalsLog:
    """The finalists and their trainings, as the events of a journal tell them.

    A trace: add(CONFIRMING trials 7 and 4); add(REPEATED ...) for each training; winner(objective) -> 4;
        add(ASSIGNED trial 9 of the search) -> there are no finalists any more
    """

    _chosen: tuple[Mapping[int, int], int, bool] | None = None  # resources by trial, seeds, has folds
    _repeats: dict[tuple[int, int, int], Report] = field(default_factory=dict)
    _resources: dict[AssignmentKey, int] = field(default_factory=dict)  # of trainings in flight

    def add(self, event: Event) -> None:
        """Take an event; one that has nothing to do with finalists changes nothing.

        Raises:
            KeyError, TypeError, ValueError: the record is damaged.
        """
        if event.kind is EventKind.ASSIGNED and event.data["split"] == Split.VALIDATION:
            if event.data.get("repeat") is None:
                self._chosen = None
            else:
                assignment = event.assignment
                self._resources[assignment.key] = assignment.resource_to
        elif event.kind is EventKind.CONFIRMING:
            chosen = {int(each["trial"]): int(each["resource"]) for each in event.data["finalists"]}
            self._chosen = chosen, int(event.data["seeds"]), bool(event.data.get("folds", False))
        elif event.kind is EventKind.REPEATED:
            report = event.report
            self._repeats[report.trial_id, self._resources[report.key], report.repeat or 0] = report

    def finals(self, objective: Objective) -> Finals | None:
        """Return the finalists; None: they are not chosen, or the search has continued since."""
        if self._chosen is None:
            return None
        resources, seeds, has_folds = self._chosen
        return Finals(
            objective=objective,
            resources=resources,
            seeds=seeds,
            repeats=dict(self._repeats),
            has_folds=has_folds,
        )

    def winner(self, objective: Objective) -> int | None:
        """Return the trial that has won; None: there are no finalists, or trainings are missing."""
        finals = self.finals(objective)
        return None if finals is None else finals.winner
