"""Trains the finalists of a study again, with other seeds, before one of them becomes the champion."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from spark_hpo.study.incumbents import Incumbents
from spark_hpo.study.search import Confirm, Search
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.layout import repeat_of
from spark_hpo.trial import AssignmentKey, Trial

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Confirmation:
    """Decides which finalists are trained with which seeds.

    Finalists are chosen when the search has ended and the reserve is used: the trials with the best results,
    each as it was when it was best. The choice is in the journal, so a driver that resumes continues with the
    seeds that are missing. Training of the search after it, with a larger budget, revokes it.

    A trace, top 2, seeds 2: next({}) -> trial 7, seed 1; trial 4, seed 1; trial 7, seed 2; trial 4, seed 2;
        then None, and `winner` is the one with the lower mean
    """

    journal: Journal
    incumbents: Incumbents
    search: Search

    @property
    def confirm(self) -> Confirm | None:
        return self.search.confirm

    def left(self) -> list[tuple[int | None, int]]:
        """Return the trainings that are still needed, those in flight included.

        Returns:
            For each, the trial, or None if the finalists are not chosen yet, and its resource.
        """
        if self.confirm is None:
            return []
        finals, has_folds = self.journal.finalists, self.search.has_folds
        if finals is not None:
            missing = finals.missing(self.confirm.seeds)
            return [(t, 1 if has_folds else finals.resources[t]) for t, *_ in missing]
        count, resource = self.confirm.top * self.confirm.seeds, self.search.scheduler.max_resource
        return [(None, 1)] * (count * resource) if has_folds else [(None, resource)] * count

    def has_next(self, begun: Collection[AssignmentKey]) -> bool:
        """Return whether a training waits, now that the search has ended.

        Args:
            begun: the keys of the assignments in flight.
        """
        if self.confirm is None:
            return False
        finals = self.journal.finalists
        if finals is None:
            return bool(self.incumbents.finalists(self.confirm.top))
        return any(repeat_of(*each) not in begun for each in finals.missing(self.confirm.seeds))

    def next(self, begun: Collection[AssignmentKey]) -> tuple[Trial, int, int | None] | None:
        """Return the next training.

        Returns:
            A trial as it was when it was best, the number of the seed and, if there are any, of the fold.
        """
        if self.confirm is None or not self.has_next(begun):
            return None
        if self.journal.finalists is None:
            best = self.incumbents.finalists(self.confirm.top)
            resources = {trial.trial_id: trial.resource for trial in best}
            self.journal.confirming(resources, self.confirm.seeds, has_folds=self.search.has_folds)
            names = ", ".join(str(trial.trial_id) for trial in best)
            logger.info("confirming trials %s with %d other seeds each", names, self.confirm.seeds)
        finals = self.journal.finalists
        assert finals is not None, "they have been chosen"
        missing = (each for each in finals.missing(self.confirm.seeds) if repeat_of(*each) not in begun)
        trial_id, seed, fold = next(missing)
        trial = next(t for t in self.incumbents.finalists(self.confirm.top) if t.trial_id == trial_id)
        return trial, seed, fold

    @property
    def winner(self) -> Trial | None:
        """The finalist with the best mean, as it was when it was best; None: not all are confirmed."""
        finals = self.journal.finalists
        if self.confirm is None or finals is None or any(finals.missing(self.confirm.seeds)):
            return None
        trial_id = finals.compared()[0].trial_id
        return next((t for t in self.incumbents.finalists(self.confirm.top) if t.trial_id == trial_id), None)
