"""The finalists of a study, and their trainings with other seeds, as the journal has them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from spark_hpo.objective import Objective
from spark_hpo.study_dir.finalists import Finalist, compare
from spark_hpo.trial import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """The finalists that were chosen, and the reports of their trainings so far."""

    objective: Objective
    resources: Mapping[int, int]  # by trial, the best first: how far it is trained with each seed
    seeds: int
    repeats: Mapping[tuple[int, int, int], Report]  # by trial, resource and number of the seed

    def missing(self, seeds: int) -> Iterator[tuple[int, int]]:
        """Iterate over the trainings without a report: trial and number of the seed, all trials in turn."""
        for seed in range(1, seeds + 1):
            for trial_id, resource in self.resources.items():
                if (trial_id, resource, seed) not in self.repeats:
                    yield trial_id, seed

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
        keys = ((trial_id, self.resources[trial_id], seed) for seed in range(1, self.seeds + 1))
        scores = [
            self.objective.score(self.repeats[key].scored_metrics) for key in keys if key in self.repeats
        ]
        return [score.loss if not score.violation else math.inf for score in scores]
