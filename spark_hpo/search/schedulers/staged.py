"""Runs one scheduler after another, so that a study can continue with a larger budget of trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from spark_hpo.search.scheduler import Choose, Scheduler, Slot


@dataclass(slots=True)
class _Stage:
    scheduler: Scheduler
    first_trial: int  # of this stage; its scheduler numbers its trials from 0
    first_bracket: int
    max_trials: int | None
    started: int = 0
    is_closed: bool = False

    @property
    def is_full(self) -> bool:
        """True if it starts no more trials, whatever the limit."""
        return self.is_closed or self.started == self.max_trials


@dataclass(frozen=True, slots=True)
class _ShiftedChoice:
    """A choice among the trials of a stage, which numbers them from 0."""

    choose: Choose
    first_trial: int

    def __call__(self, trials: Sequence[int]) -> int:
        return self.choose([trial_id + self.first_trial for trial_id in trials]) - self.first_trial


@dataclass(eq=False)
class StagedScheduler(Scheduler):
    """Gives a scheduler its trials in stages: each stage is a new scheduler for the trials that were added.

    A scheduler plans for the number of trials that it was made for: when they have started, it completes its
    rungs, and lets checkpoints go that no rung can use any more. So it cannot be extended. As long as the
    number does not change there is one stage, which decides as its scheduler does.

    A trace, make = successive halving, 3 trials, eta = 3:
        limit_trials(3); 3 x next_slot() -> trials 0, 1, 2; ...; is_done() -> True
        limit_trials(6); is_done() -> False; next_slot() -> trial 3, in bracket 1
    """

    make: Callable[[int | None], Scheduler]  # makes a scheduler for a number of trials; None: no limit
    max_trials: int | None = None  # how many trials may start; None: until `close`

    def __post_init__(self) -> None:
        self._stages: list[_Stage] = []
        self._unused: Scheduler | None = self.make(self.max_trials)  # also to check the settings
        self._num_trials = 0
        self._num_brackets = 0
        self._is_closed = False
        self._guide: Choose | None = None
        self._out: list[int] = []  # since a stage was closed; returned with the next report
        self.max_resource = self._unused.max_resource
        self.stops_early = getattr(self._unused, "stops_early", Scheduler.stops_early)
        self.has_parents = getattr(self._unused, "has_parents", Scheduler.has_parents)
        self.num_rungs = getattr(self._unused, "num_rungs", None)
        self.warning = getattr(self._unused, "warning", None)
        self.handles_limits = getattr(self._unused, "handles_limits", Scheduler.handles_limits)

    def guide(self, choose: Choose) -> None:
        self._guide = choose
        for stage in self._stages:
            self._guide_stage(stage)

    def limit_trials(self, max_trials: int | None) -> None:
        """Change how many trials may start. Below the number of started trials, their rungs are completed."""
        if max_trials == self.max_trials:
            return
        self.max_trials = max_trials
        if not self._stages:
            self._unused = self.make(max_trials)
        elif not self._may_start and not self._stages[-1].is_full:
            self._close_stages()

    def next_slot(self) -> Slot | None:
        # Of the earliest stage that has one, or of a new stage.
        for stage in self._stages:
            if slot := self._slot_of(stage):
                return slot
        if self._is_closed or not self._may_start or (self._stages and not self._stages[-1].is_full):
            return None
        return self._slot_of(self._new_stage())

    def report(self, slot: Slot, loss: float, *, violation: float = 0.0) -> list[int]:
        stage = self._stage_of(slot.trial_id)
        known = {"violation": violation} if self.handles_limits else {}
        out = stage.scheduler.report(_shifted(slot, -stage.first_trial, -stage.first_bracket), loss, **known)
        return self._all_out(stage, out)

    def drop(self, trial_id: int) -> list[int]:
        stage = self._stage_of(trial_id)
        drop = getattr(stage.scheduler, "drop", None)  # a plugin may have none
        return self._all_out(stage, drop(trial_id - stage.first_trial) if drop else [])

    def close(self) -> list[int]:
        self._is_closed = True
        self._close_stages()
        out, self._out = self._out, []
        return sorted(out)

    def is_done(self) -> bool:
        if not self._stages:
            return self._is_closed
        if any(not stage.scheduler.is_done() for stage in self._stages):
            return False
        return self._is_closed or not self._may_start or not self._stages[-1].is_full

    @property
    def _may_start(self) -> bool:
        return self.max_trials is None or self._num_trials < self.max_trials

    def _stage_of(self, trial_id: int) -> _Stage:
        return next(stage for stage in reversed(self._stages) if stage.first_trial <= trial_id)

    def _all_out(self, stage: _Stage, out: Iterable[int]) -> list[int]:
        """Return the trials that a stage has let go, and those of stages that were closed before."""
        found, self._out = [*self._out, *(trial_id + stage.first_trial for trial_id in out)], []
        return sorted(found)

    def _close_stages(self) -> None:
        for stage in self._stages:
            stage.is_closed = True
            self._out += [trial_id + stage.first_trial for trial_id in stage.scheduler.close()]

    def _new_stage(self) -> _Stage:
        left = None if self.max_trials is None else self.max_trials - self._num_trials
        scheduler, self._unused = self._unused or self.make(left), None
        stage = _Stage(scheduler, self._num_trials, self._num_brackets, left)
        self._stages.append(stage)
        self._guide_stage(stage)
        return stage

    def _guide_stage(self, stage: _Stage) -> None:
        guide = getattr(stage.scheduler, "guide", None)  # a plugin may have none
        if guide is not None and self._guide is not None:
            guide(_ShiftedChoice(self._guide, stage.first_trial))

    def _slot_of(self, stage: _Stage) -> Slot | None:
        slot = stage.scheduler.next_slot()
        if slot is None:
            return None
        if slot.trial_id == stage.started:
            stage.started += 1
            self._num_trials += 1
            if not self._may_start and not stage.is_full:  # the limit was lowered
                self._close_stages()
        slot = _shifted(slot, stage.first_trial, stage.first_bracket)
        self._num_brackets = max(self._num_brackets, slot.bracket + 1)
        return slot


def _shifted(slot: Slot, trials: int, brackets: int) -> Slot:
    return replace(
        slot,
        trial_id=slot.trial_id + trials,
        bracket=slot.bracket + brackets,
        parent=None if slot.parent is None else slot.parent + trials,
    )
