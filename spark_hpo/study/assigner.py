"""Makes the assignments of a study."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spark_hpo.search.scheduler import Slot
from spark_hpo.study.decider import Decider
from spark_hpo.study.failures import Failures
from spark_hpo.trial import Assignment, Params, Purpose, Split, Trial


@dataclass(frozen=True, slots=True)
class Assigner:
    """Makes the first attempt of an assignment, with the seed of its trial."""

    decider: Decider
    failures: Failures
    seed: int
    is_define_by_run: bool

    def of_slot(self, slot: Slot, params: Params, checkpoint: str | None) -> Assignment:
        return Assignment(
            trial_id=slot.trial_id,
            attempt=1,
            params=params,
            bracket=slot.bracket,
            rung=slot.rung,
            resource_from=slot.resource_from,
            resource_to=slot.resource_to,
            checkpoint=checkpoint,
            seed=self._seed_of(slot.trial_id),
            excluded_files=self.failures.excluded_files,
            is_define_by_run=self.is_define_by_run,
            purpose=Purpose.FINISH if self.decider.is_finished(slot.trial_id) else Purpose.SEARCH,
        )

    def of_fold(self, slot: Slot, params: Params, fold: int) -> Assignment:
        one = replace(slot, resource_from=fold - 1, resource_to=fold)
        return replace(self.of_slot(one, params, None), fold=fold)

    def of_repeat(self, trial: Trial, number: int, fold: int | None = None) -> Assignment:
        """The training of a finalist from the start, with another seed, or of one of its folds."""
        again = self.after_search(trial, Split.VALIDATION, 0)
        if fold is not None:
            again = replace(again, resource_from=fold - 1, resource_to=fold, fold=fold)
        return replace(again, checkpoint=None, repeat=number, seed=self._seed_of(trial.trial_id, number))

    def after_search(self, trial: Trial, split: Split, resource_from: int) -> Assignment:
        """Work on a trial that has its final resource: to test it, or to train its final model."""
        slot = Slot(
            trial_id=trial.trial_id,
            bracket=trial.bracket,
            rung=trial.rung,
            resource_from=resource_from,
            resource_to=trial.resource,
        )
        return replace(
            self.of_slot(slot, trial.params, trial.checkpoint), split=split, purpose=Purpose.SEARCH
        )

    def _seed_of(self, *numbers: int) -> int:
        return int(np.random.SeedSequence((self.seed, *numbers)).generate_state(1)[0])
