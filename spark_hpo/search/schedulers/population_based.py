"""Population based training: bad members are replaced by copies of good ones."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.schedulers.bracket import check_resources
from spark_hpo.search.schedulers.rungs import interval_levels
from spark_hpo.search.settings import require_integer, require_number


@dataclass(slots=True)
class _Member:
    """A trial in the population: running, or ready to continue."""

    step: int = -1  # last step reported; -1: none
    resource: int = 0  # at the last report
    score: Score = NO_SCORE  # at the last report
    children: int = 0


@dataclass(eq=False)
class PopulationBasedScheduler(Scheduler):
    """Replaces bad members of a population by children of good ones.

    Jaderberg et al. 2017, arXiv:1711.09846. All members train at the same time, in steps of an interval. A
    member whose loss is among the worst `quantile` of all reports at its step is out and is replaced by a
    child: a new trial (`Slot.parent`) that continues from the parent's checkpoint with the parent's
    parameters, slightly changed by an `Explorer`. The parent is the member with the fewest children among the
    best `quantile`. So the parameters follow a schedule during the training: the weights of the best trial
    were trained with several values, and its parameters are the last ones.

    No member waits for another one. If a step has too few reports to determine the worst ones, a member is
    judged by its loss at the step before, because otherwise the fastest member would never be judged. Members
    that fail or are fully trained are replaced as long as `max_trials` allows. Slots beyond the size of the
    population stay idle.

    A trace, population_size 4, interval 3:
        next_slot() x 4 -> trials 0..3: 0 -> 3; report(3, worst of 4) -> [3]
        next_slot() -> trial 4, parent 1: 3 -> 6
    """

    handles_limits = True
    has_parents = True

    max_resource: int  # epochs of a fully trained trial, including those of its ancestors
    interval: int | None = None  # epochs per step; None: a tenth of max_resource, at least 1
    min_resource: int = 1  # epochs before the first decision
    population_size: int = 10  # number of members, >= 2
    quantile: float = 0.25  # share of the worst members to replace, and of the best to copy, 0..0.5
    max_trials: int | None = None  # number of trials to start, including children; None: until `close`

    def __post_init__(self) -> None:
        check_resources(self.min_resource, self.max_resource, 2, self.max_trials)
        require_integer("population_size", self.population_size, 2)
        require_number("quantile", self.quantile, above=0, high=0.5)
        self.levels = interval_levels(self.interval, self.min_resource, self.max_resource)
        self.num_rungs = len(self.levels)
        self.warning = self._warning()
        self._scores: list[list[Score]] = [[] for _ in self.levels]  # by step, ascending
        self._members: dict[int, _Member] = {}
        self._running: set[int] = set()
        self._ready: list[int] = []
        self._heirs = 0  # members to be replaced by a child
        self._num_trials = 0
        self._closed = False

    def _warning(self) -> str | None:
        """Return that the trials are too few for the population to change, or None."""
        if self.max_trials is None or self.max_trials >= 2 * self.population_size:
            return None
        num_exploits = self.max_trials - self.population_size
        allowed = (
            f"at most {num_exploits} exploit{'s' * (num_exploits > 1)}" if num_exploits > 0 else "no exploit"
        )
        return (
            f"{self.max_trials} trials with a population of {self.population_size} allow {allowed}, that is, "
            "bad members that are replaced by copies of good ones, so most members keep their first "
            f"parameters; raise budget.trials to {2 * self.population_size} or more, or lower "
            f"scheduler_settings.population_size to {max(2, self.max_trials // 2)}"
        )

    def next_slot(self) -> Slot | None:
        # The population is filled up first, so that members stay in step even with few slots.
        if self._closed or len(self._members) >= self.population_size:
            if not self._ready:
                return None
            trial_id = self._ready.pop(0)
            member = self._members[trial_id]
            return self._open(trial_id, member.step + 1, member.resource, None)
        parent = self._parent() if self._heirs else None
        self._heirs = max(0, self._heirs - 1)
        trial_id = self._num_trials
        self._num_trials += 1
        self._closed = self._num_trials == self.max_trials
        self._members[trial_id] = _Member()
        if parent is None:
            return self._open(trial_id, 0, 0, None)
        ahead = self._members[parent]
        ahead.children += 1
        return self._open(trial_id, ahead.step + 1, ahead.resource, parent)

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        trial_id = slot.trial_id
        self._running.remove(trial_id)
        member = self._members[trial_id]
        score = Score.of(loss, violation)
        if not score.is_finite:
            del self._members[trial_id]
            self._heirs += 1
            return [trial_id]
        insort(self._scores[slot.rung], score)
        if slot.resource_to == self.max_resource:
            del self._members[trial_id]
            return []
        before = member.step, member.score
        member.step, member.resource, member.score = slot.rung, slot.resource_to, score
        if self._is_behind((slot.rung, score), before) and self._may_replace(trial_id):
            del self._members[trial_id]
            self._heirs += 1
            return [trial_id]
        self._ready.append(trial_id)
        return []

    def drop(self, trial_id: int) -> list[int]:
        """Take out a member that waits for its next step; a child replaces it, as it does a failed one."""
        if trial_id not in self._ready:
            return []
        self._ready.remove(trial_id)
        del self._members[trial_id]
        self._heirs += 1
        return [trial_id]

    def close(self) -> list[int]:
        """Open no new trials from now on, and no children; members continue to `max_resource`."""
        self._closed = True
        return []

    def is_done(self) -> bool:
        return self._closed and not self._ready and not self._running

    def _open(self, trial_id: int, step: int, resource: int, parent: int | None) -> Slot:
        self._running.add(trial_id)
        return Slot(
            trial_id=trial_id,
            bracket=0,
            rung=step,
            resource_from=resource,
            resource_to=self.levels[step],
            parent=parent,
        )

    def _is_behind(self, *reports: tuple[int, Score]) -> bool:
        """Return whether a score is in the worst quantile of its step, and not the best one.

        Of a member's reports, the latest first, the first one whose step has enough reports decides.
        """
        for step, score in reports:
            scores = self._scores[step] if step >= 0 else []
            num_bottom = int(self.quantile * len(scores))
            if num_bottom:
                return len(scores) - bisect_right(scores, score) < num_bottom and score > scores[0]
        return False

    def _may_replace(self, trial_id: int) -> bool:
        parent = self._parent()
        return not self._closed and parent is not None and parent != trial_id

    def _parent(self) -> int | None:
        """Return the member with the fewest children among the best ones that have a checkpoint."""
        able = sorted((m.score, i) for i, m in self._members.items() if m.step >= 0)
        best = able[: max(1, int(self.quantile * len(able)))]
        return min((i for _, i in best), key=lambda i: self._members[i].children, default=None)
