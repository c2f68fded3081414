"""ASHA whose first trials train on, and whose new trials start above rungs that rank badly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_hpo.objective import Score
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.asha import AsyncBracket, AsyncScheduler
from spark_hpo.search.schedulers.controls import ControlBracket
from spark_hpo.search.schedulers.entry import Entry
from spark_hpo.search.settings import require_integer, require_number

_CHEAP = 8  # a rung of at most max_resource / 8 gets all pioneers


class PioneerBracket(AsyncBracket):
    """A bracket of ASHA whose first trials, the *pioneers*, do not wait for a rung to fill.

    All pioneers are trained to the highest cheap rung. From there on, each rung promotes the better half of
    the pioneers that have reported, and at least one. So some configurations are trained to the end in the
    time of one training, as in random search, and they are the better ones of those that random search would
    have trained. At the cheap rungs pioneers are not selected, which shows how well these rungs rank.

    Pioneers may come on top of the trials that a rung promotes of the others, or take their places.

    A trace with 2 pioneers, levels 1, 9, 27, 81, all at the same speed:
        start(0), start(1); report(0, 0.5), report(1, 0.9) -> promote() twice, to 9, which is cheap
        report(0, 0.4) -> nothing is due; report(1, 0.8) -> promote() -> trial 0 to 27; ... to 81
    """

    def __init__(
        self,
        levels: tuple[int, ...],
        reduction_factor: int,
        max_trials: int | None,
        *,
        num_pioneers: int,
        are_extra: bool,
        may_rise: bool,
    ) -> None:
        super().__init__(0, levels, reduction_factor, max_trials, may_rise=may_rise)
        self._are_extra = are_extra
        self._num_pioneers = num_pioneers
        self._pioneers: set[int] = set()
        self._reported = [0] * len(levels)  # pioneers, by rung
        self._promoted = [0] * len(levels)

    def start(self, trial_id: int) -> Slot:
        # Trials that start after the first report come too late.
        if len(self._pioneers) < self._num_pioneers and not any(self._reported):
            self._pioneers.add(trial_id)
        return super().start(trial_id)

    def promote(self) -> Slot | None:
        for number in reversed(range(len(self._rungs) - 1)):
            rung = self._rungs[number]
            full = rung.max_promotions is not None and rung.promoted >= rung.max_promotions
            if full or self._promoted[number] >= self._num_due(number):
                continue
            waiting = [trial_id for _, trial_id in rung.paused if trial_id in self._pioneers]
            if waiting:
                self._promoted[number] += 1
                return self._promote(number, waiting)
        return super().promote()

    def report(self, slot: Slot, score: Score) -> list[int]:
        if slot.trial_id in self._pioneers:
            self._reported[slot.rung] += 1
        return super().report(slot, score)

    def _num_promotable(self, number: int) -> int:
        if not self._are_extra:
            return super()._num_promotable(number)
        rung = self._rungs[number]
        others = (rung.reported - self._reported[number]) // self.reduction_factor
        share = self._promoted[number] + max(others, int(self._is_complete(number)))
        return share if rung.max_promotions is None else min(share, rung.max_promotions)

    def _num_due(self, number: int) -> int:
        """Return how many pioneers a rung promotes, of those that have reported."""
        reported = self._reported[number]
        if _CHEAP * self._rungs[number + 1].resource <= self._rungs[-1].resource:
            return reported
        return -(-reported // 2) if self._has_all(number) else reported // 2

    def _has_all(self, number: int) -> bool:
        """Return whether all pioneers have reported that will ever reach a rung."""
        if not number:
            return self._reported[0] == len(self._pioneers)
        is_last = self._promoted[number - 1] == self._num_due(number - 1)
        return is_last and self._has_all(number - 1) and self._reported[number] == self._promoted[number - 1]


@dataclass(eq=False, kw_only=True)
class PioneerAshaScheduler(AsyncScheduler):
    """ASHA that has a fully trained model early, and skips rungs whose rankings say little.

    - **Pioneers**, the first trials, do not wait for rungs to fill: see `PioneerBracket`.
    - **Entry.** Where the ranking at a rung contradicts the ranking at the next one, new trials start above
      it: see `Entry`. Trials that are paused below may still go on.
    - **Controls** are trained to the end whatever their losses are (`ControlBracket`), so each rung has
      trials that were not selected.
    """

    num_pioneers: int = 8
    """At most half of the trials that the lowest rung promotes, if `max_trials` limits them. >= 0."""
    extra_pioneers: bool = True
    """Promote as many other trials as without pioneers, as far as `max_trials` allows. False: pioneers take
    their places, perhaps all of them."""
    least_agreement: float = 0.4
    """Minimum rank correlation of a rung with the next, -1..1. Below it, new trials start above that rung.
    With -1, they always start at the lowest one."""
    num_controls: int = 6
    """At most max_trials / reduction_factor. >= 0."""
    control_share: float = 0.1
    """Maximum share of the resource that controls use, 0..1. A control starts only when this share covers its
    whole training."""

    def _open_brackets(self) -> Sequence[AsyncBracket | ControlBracket]:
        require_integer("num_pioneers", self.num_pioneers, 0)
        require_integer("num_controls", self.num_controls, 0)
        require_number("control_share", self.control_share, low=0, high=1)
        require_number("least_agreement", self.least_agreement, low=-1, high=1)
        at_most = None if self.max_trials is None else self.max_trials // self.reduction_factor
        places = at_most // 2 if at_most is not None and self.extra_pioneers else at_most
        num_pioneers = self.num_pioneers if places is None else min(self.num_pioneers, places)
        self._num_controls = self.num_controls if at_most is None else min(self.num_controls, at_most)
        if len(self.levels) == 1:  # all trials are trained to the end anyway
            self._num_controls = 0
        self._entry = Entry(len(self.levels), self.least_agreement)
        self.bracket = PioneerBracket(
            self.levels,
            self.reduction_factor,
            self.max_trials,
            num_pioneers=num_pioneers,
            are_extra=self.extra_pioneers,
            may_rise=self._entry.may_rise,
        )
        self.controls = ControlBracket(1, self.levels)
        return self.controls, self.bracket

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        self._entry.note(slot.trial_id, slot.rung, Score.of(loss, violation))
        self.bracket.entry = self._entry.rung
        return super().report(slot, loss, violation=violation)

    def _bracket_for_new_trial(self) -> AsyncBracket | ControlBracket:
        spent = self.controls.committed + self.bracket.committed
        due = self.controls.committed + self.max_resource
        wants_control = self.controls.started < self._num_controls and due <= self.control_share * spent
        return self.controls if wants_control else self.bracket
