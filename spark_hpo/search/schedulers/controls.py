"""A control group: trials that are always promoted, to measure how well rungs predict the end."""

from __future__ import annotations

from collections.abc import Mapping

from spark_hpo.objective import Score
from spark_hpo.search.agreement import rank_agreement
from spark_hpo.search.scheduler import Slot


class ControlBracket:
    """Trials that are promoted from rung to rung whatever their losses are.

    They are not selected by their losses, so the rank correlation of their losses at a rung with those at the
    end is an unbiased measure of how informative the rung is.

    A trace, levels 1, 3, 9:
        start(4) -> 0..1;  report(0.5) -> [];  promote() -> 1..3;  report(0.7) -> [];  promote() -> 3..9
        report(0.6) -> [];  finished -> [{0: 0.5, 1: 0.7, 2: 0.6}]
    """

    def __init__(self, number: int, levels: tuple[int, ...]) -> None:
        self.number = number
        self.started = 0
        self.finished: list[Mapping[int, Score]] = []  # scores by rung of each that came to the last one
        self._levels = levels
        self._running: dict[int, dict[int, Score]] = {}  # by trial, scores by rung
        self._queue: list[tuple[int, int]] = []  # (trial, its next rung)

    @property
    def committed(self) -> int:
        """Resource that its trials need until they are fully trained."""
        return self.started * self._levels[-1]

    @property
    def is_done(self) -> bool:
        """True if every trial that was started is fully trained or has failed."""
        return not self._running

    def start(self, trial_id: int) -> Slot:
        """Open the first slot of a new trial."""
        self.started += 1
        self._running[trial_id] = {}
        return self._slot(trial_id, 0)

    def promote(self) -> Slot | None:
        """Open the next slot of the trial that has waited longest; None if none waits."""
        return self._slot(*self._queue.pop(0)) if self._queue else None

    def report(self, slot: Slot, score: Score) -> list[int]:
        """Take the score of an open slot. Returns the trial if it failed."""
        scores = self._running[slot.trial_id]
        scores[slot.rung] = score
        if not score.is_finite:
            del self._running[slot.trial_id]
            return [slot.trial_id]
        if slot.rung + 1 < len(self._levels):
            self._queue.append((slot.trial_id, slot.rung + 1))
        else:
            self.finished.append(self._running.pop(slot.trial_id))
        return []

    def drop(self, trial_id: int) -> list[int]:
        """Take out a trial that waits for its next slot. Returns it, or nothing if it does not wait."""
        left = [(waiting, rung) for waiting, rung in self._queue if waiting != trial_id]
        if len(left) == len(self._queue):
            return []
        self._queue = left
        del self._running[trial_id]
        return [trial_id]

    def close(self) -> list[int]:
        """Every trial that was started is still trained to the end."""
        return []

    def agreement(self, rung: int) -> float | None:
        """Return the rank correlation of a rung with the last one, -1..1; None with too few trials."""
        last = len(self._levels) - 1
        return rank_agreement([(scores[rung], scores[last]) for scores in self.finished])

    def _slot(self, trial_id: int, rung: int) -> Slot:
        return Slot(
            trial_id=trial_id,
            bracket=self.number,
            rung=rung,
            resource_from=self._levels[rung - 1] if rung else 0,
            resource_to=self._levels[rung],
        )
