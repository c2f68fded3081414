"""ASHA that raises its lowest rung above the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_hpo.objective import Score
from spark_hpo.search.agreement import MIN_PAIRS, rank_agreement
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.asha import AsyncBracket, AsyncScheduler
from spark_hpo.search.schedulers.controls import ControlBracket
from spark_hpo.search.settings import require_integer, require_number


class AdaptiveBracket(AsyncBracket):
    """A bracket of ASHA that raises its entry, the rung at which new trials start, above noisy rungs.

    The first `num_probes` trials that report at the entry are *probes*: they are promoted whatever their
    losses are, so that the two rankings of the same, unselected trials can be compared. If the rankings
    disagree, the entry moves up by one rung, the trials that are paused below are out, and the trials at the
    new entry are the next probes. Probes count as promotions of their rung, which then promotes fewer others.

    Rungs from max_resource / reduction_factor^2 upwards have no probes, because probes there would cost as
    much as the search. For these, `raise_entry` is called from outside.

    With `has_leader`, a rung above the entry promotes its first trial at once. The first trial that the entry
    promotes, the *leader*, thus trains to the end without waiting, and the study has a model early.
    """

    def __init__(
        self,
        levels: tuple[int, ...],
        reduction_factor: int,
        max_trials: int | None,
        *,
        num_probes: int,
        least_agreement: float,
        may_rise: bool,
        has_leader: bool = False,
    ) -> None:
        super().__init__(0, levels, reduction_factor, max_trials, may_rise=may_rise)
        self._has_leader = has_leader
        self._num_probes = num_probes
        self._least_agreement = least_agreement
        self._queue: list[int] = []  # probes to be promoted
        self._probes: dict[int, Score] = {}  # score at the entry, by probe
        self._pairs: list[tuple[Score, Score]] = []
        self._num_judged = 0  # probes that have reported at the next rung or failed
        self._is_settled = num_probes < MIN_PAIRS or not self._may_be_noise(0)

    def promote(self) -> Slot | None:
        if self._queue:
            self._rungs[self.entry].promoted += 1
            return self._open(self._queue.pop(0), self.entry + 1)
        return super().promote()

    def report(self, slot: Slot, score: Score) -> list[int]:
        if slot.rung < self.entry:  # the entry has moved up in the meantime
            self._rungs[slot.rung].running.remove(slot.trial_id)
            return [slot.trial_id, *self._complete_rungs()]
        rung = self._rungs[slot.rung]
        is_probe_here = slot.rung == self.entry and self._wants_probe and score.is_finite
        if is_probe_here:
            rung.running.remove(slot.trial_id)
            rung.reported += 1
            self._make_probe(slot.trial_id, score)
            return []
        out = super().report(slot, score)
        if slot.rung == self.entry + 1 and not self._is_settled and slot.trial_id in self._probes:
            self._num_judged += 1
            if score.is_finite:
                self._pairs.append((self._probes[slot.trial_id], score))
            if self._num_judged == self._num_probes:
                out += self._judge()
        return out

    def drop(self, trial_id: int) -> list[int]:
        if trial_id not in self._queue:
            return super().drop(trial_id)
        self._queue.remove(trial_id)  # a probe, which cannot be judged any more
        self._num_judged += 1
        judged = self._judge() if self._num_judged == self._num_probes else []
        return [trial_id, *judged, *self._complete_rungs()]

    def close(self) -> list[int]:
        self._is_settled = True
        return super().close()

    def raise_entry(self, entry: int) -> list[int]:
        """Start new trials at a higher rung from now on. Returns the trials below it, which are out now."""
        out = [*self._queue]
        for rung in self._rungs[self.entry : entry]:
            out += rung.keep_best(0)
        self._queue = []
        self.entry = entry
        self._is_settled = True
        return out + self._complete_rungs()

    @property
    def _wants_probe(self) -> bool:
        is_due = self._rungs[self.entry].promoted > 0 or not self._has_leader
        return is_due and not self._is_settled and len(self._probes) < self._num_probes

    def _may_be_noise(self, number: int) -> bool:
        """Return whether a rung gets probes: it is low enough for probes to be cheap."""
        if number + 1 >= len(self._rungs):
            return False
        longest = self._rungs[-1].resource // self.reduction_factor**2
        return self._rungs[number + 1].resource <= longest

    def _make_probe(self, trial_id: int, score: Score) -> None:
        self._probes[trial_id] = score
        self._queue.append(trial_id)

    def _judge(self) -> list[int]:
        """All probes have reported: keep the entry, or move it up. Returns the trials that are out now."""
        agreement = rank_agreement(self._pairs)
        if agreement is None or agreement >= self._least_agreement:
            self._is_settled = True
            return []
        out = self._rungs[self.entry].keep_best(0)
        self.entry += 1
        self._is_settled = not self._may_be_noise(self.entry)
        self._probes, self._pairs, self._num_judged = {}, [], 0
        if not self._is_settled:
            rung = self._rungs[self.entry]
            probes = sorted(rung.paused[: self._num_probes], key=lambda entry: entry[1])
            del rung.paused[: self._num_probes]
            for score, trial_id in probes:
                self._make_probe(trial_id, score)
        return out

    def _num_promotable(self, number: int) -> int:
        share = super()._num_promotable(number)
        return max(share, 1) if self._has_leader and number > self.entry else share

    def _is_complete(self, number: int) -> bool:
        return super()._is_complete(number) and not self._queue


@dataclass(eq=False, kw_only=True)
class AdaptiveAshaScheduler(AsyncScheduler):
    """ASHA that starts its trials at the lowest rung with an informative ranking.

    How much training is needed to rank two configurations differs between tables. One epoch is often mostly
    noise, and a search that stops trials on noise loses to random search. ASHA (`AshaScheduler`) is the
    fastest scheduler if its lowest rung is informative; Hyperband and its variants spend most of their budget
    on insurance against the opposite. This scheduler measures it instead, in two ways:

    - **Probes** detect noise at the lowest rungs, where it is common and probes are cheap: see
      `AdaptiveBracket`. On the learning curves of ten tables (LCBench, 52 epochs), the rank correlation
      with the end is -0.29 to 0.35 at epoch 1, 0.25 to 0.86 at epoch 2, and 0.50 to 0.95 at epoch 5.
    - **Controls** detect rungs that rank in the opposite order, which is rare but ruins a search: a few of
      the first trials are fully trained whatever their losses are (`ControlBracket`). If their ranking at a
      rung contradicts the ranking at the end, new trials start above that rung from then on, in the extreme
      with full training. Hyper-Tune (Li et al. 2022, arXiv:2201.06834) weights brackets for a similar reason.
    """

    num_probes: int = 12
    """Probes per rung, >= 5 or 0. At most max_trials / reduction_factor; if that is below 5, there are none.
    Without probes, the lowest rung is trusted."""
    least_agreement: float = 0.5  # minimum rank correlation with the next rung, -1..1; else a rung is skipped
    num_controls: int = 6  # >= 5 or 0. At most max_trials / reduction_factor; none if that is below 5
    control_share: float = 0.25
    """Maximum share of the resource that controls use while they start, 0..1. With `has_leader`, a control
    starts only when this share covers its whole training; without it, the first trial is a control."""
    has_leader: bool = False
    """Train the first trial that the lowest rung promotes to the end without waiting at the rungs between.
    With `max_trials`, only if two trials or more will reach the last rung: the leader must not take the place
    of a better trial."""
    least_final_agreement: float = -0.2
    """Minimum rank correlation of the controls with the end, -1..1; below, a rung and those below it are
    skipped. With six controls, about one sample in ten is below -0.2 if the true correlation is 0.4, and
    almost all are if it is -0.8."""

    def _open_brackets(self) -> Sequence[AsyncBracket | ControlBracket]:
        if self.num_probes != 0:
            require_integer("num_probes", self.num_probes, MIN_PAIRS)
        if self.num_controls != 0:
            require_integer("num_controls", self.num_controls, MIN_PAIRS)
        require_number("least_agreement", self.least_agreement, low=-1, high=1)
        require_number("control_share", self.control_share, low=0, high=1)
        require_number("least_final_agreement", self.least_final_agreement, low=-1, high=1)
        num_probes, num_controls = self.num_probes, self.num_controls if len(self.levels) > 1 else 0
        if self.max_trials is not None:
            num_probes = min(num_probes, self.max_trials // self.reduction_factor)
            num_controls = min(num_controls, self.max_trials // self.reduction_factor)
        self._num_controls = num_controls if num_controls >= MIN_PAIRS else 0
        num_finalists = None
        if self.max_trials is not None:
            num_finalists = self.max_trials // self.reduction_factor ** (len(self.levels) - 1)
        self._leads = self.has_leader and (num_finalists is None or num_finalists >= 2)
        self.bracket = AdaptiveBracket(
            self.levels,
            self.reduction_factor,
            self.max_trials,
            num_probes=num_probes,
            least_agreement=self.least_agreement,
            may_rise=num_probes >= MIN_PAIRS or self._num_controls > 0,
            has_leader=self._leads,
        )
        self.controls = ControlBracket(1, self.levels)
        return self.controls, self.bracket

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        out = super().report(slot, loss, violation=violation)
        is_control = slot.bracket == self.controls.number
        if is_control and slot.resource_to == self.max_resource and not self._closed:
            out += self._judge()
        return sorted(out)

    def _bracket_for_new_trial(self) -> AsyncBracket | ControlBracket:
        spent = self.controls.committed + self.bracket.committed
        due = self.controls.committed + (self.max_resource if self._leads else 0)
        wants_control = self.controls.started < self._num_controls and due <= self.control_share * spent
        return self.controls if wants_control else self.bracket

    def _judge(self) -> list[int]:
        """Skip the highest rung whose ranking contradicts the end, and all rungs below it."""
        for rung in reversed(range(self.bracket.entry, len(self.levels) - 1)):
            agreement = self.controls.agreement(rung)
            if agreement is not None and agreement < self.least_final_agreement:
                return self.bracket.raise_entry(rung + 1)
        return []
