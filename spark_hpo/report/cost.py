"""The cost of a study, compared with the same trials without early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Slot time and training that were spent and saved, without idle slots."""

    trials: int  # that have been trained
    slot_s: float  # of all attempts, including lost ones and the test
    lost_s: float  # of lost attempts
    resource: int  # epochs, or parts
    full_resource: int  # with full training of each trial that did not fail
    full_slot_s: float | None  # estimated; None: no epoch was timed
    price_per_slot_hour: float | None

    @property
    def saved(self) -> float | None:
        """The share of the training that was saved; None: nothing was trained."""
        return 1 - self.resource / self.full_resource if self.full_resource else None

    @property
    def money(self) -> float | None:
        return self._priced(self.slot_s)

    @property
    def full_money(self) -> float | None:
        return None if self.full_slot_s is None else self._priced(self.full_slot_s)

    def _priced(self, seconds: float) -> float | None:
        return None if self.price_per_slot_hour is None else seconds / 3600 * self.price_per_slot_hour


def cost_of(record: StudyRecord) -> Cost:
    """Return the cost so far. Running trials count up to their last report.

    The estimate without early stopping continues each stopped trial at its own speed to the maximum resource.
    Trials that ended on a plateau or failed are not continued.
    """
    ended = [attempt for attempt in record.attempts if attempt.report is not None]
    slot_s = sum(attempt.report.seconds for attempt in ended if attempt.report is not None)
    lost_s = sum(a.report.seconds for a in ended if a.report is not None and a.is_lost)
    spent = [a.report.resource - a.assignment.resource_from for a in record.reported if a.report is not None]
    trained = [trial for trial in record.trials.values() if trial.ended_at is not None]
    missing = {trial.trial_id: _missing(trial, record.search.max_resource) for trial in trained}
    paces = {trial.trial_id: pace for trial in trained if (pace := _pace(trial)) is not None}
    full_slot_s = None
    if paces:
        usual = fmean(paces.values())
        full_slot_s = slot_s + sum(epochs * paces.get(i, usual) for i, epochs in missing.items())
    return Cost(
        trials=len(trained),
        slot_s=slot_s,
        lost_s=lost_s,
        resource=sum(spent),
        full_resource=sum(spent) + sum(missing.values()),
        full_slot_s=full_slot_s,
        price_per_slot_hour=record.stopping.price_per_slot_hour,
    )


def _missing(trial: Trial, max_resource: int) -> int:
    if trial.state in (TrialState.COMPLETED, TrialState.FAILED):
        return 0
    return max(0, max_resource - trial.resource)


def _pace(trial: Trial) -> float | None:
    """Return the measured seconds per epoch, without the start of each attempt."""
    measured = [measurement.seconds for measurement in trial.curve if measurement.seconds > 0]
    if measured:
        # With a resource of rows there is one measurement per rung, of all its parts.
        return sum(measured) / max(trial.resource, len(measured))
    return trial.seconds / trial.resource if trial.resource and trial.seconds > 0 else None
