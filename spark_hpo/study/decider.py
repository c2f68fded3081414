"""Puts the search's questions and results in order, and remembers which slots are open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.objective import NO_SCORE, Choice, Objective, Score
from spark_hpo.search.sampler import Outcome
from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.steerable import Ranges, Steerable
from spark_hpo.study.forecast import Losses
from spark_hpo.study.guide import Guide
from spark_hpo.study.reserve import Fits, Need, Reserve
from spark_hpo.study.search import Search, result_for
from spark_hpo.study.speed import Speed
from spark_hpo.trial import Assignment, Params, Purpose, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The consequences of one report."""

    score: Score
    resource_spent: int  # epochs
    stopped: tuple[int, ...]  # trials that will not be promoted
    slot: Slot  # that the report ends
    is_complete: bool  # the reported trial has trained to the end
    ended: tuple[int, ...]  # trials that get no further assignment, ascending


class Decider:
    """Calls sampler, scheduler, explorer and stopping rules in the order that a replay repeats.

    No I/O: the same calls give the same decisions.

    A trace: next_slot() -> slot of trial 0; propose(slot) -> params; start(slot, params);
        tell(report of 0) -> Decision
    """

    def __init__(self, search: Search, objective: Objective, *, num_finished: int = 0) -> None:
        """Create it.

        Args:
            search: the deciding parts.
            objective: of the study.
            num_finished: how many of the best trials the reserve trains to the end.
        """
        self._search = search
        self._objective = objective
        self._explorer = search.explorer if self.has_parents else None
        self._open: dict[int, Slot] = {}  # slots by trial
        self._scores: dict[int, dict[int, Score]] = {}  # of the trials that the reserve has trained
        self.speed = Speed()
        self.losses = Losses()
        scheduler = search.scheduler
        self._guide = Guide(search.sampler)
        if hasattr(scheduler, "guide"):  # a plugin may have none
            scheduler.guide(self._guide)
        self.reserve = Reserve(
            # Finalists are compared after the same training, unless the user wants none to be completed.
            num_finished and max(num_finished, self.num_finalists),
            scheduler.max_resource,
            getattr(scheduler, "num_rungs", None),
        )

    @property
    def choice(self) -> Choice:
        """How the best trial is chosen."""
        return self._search.choice

    @property
    def num_finalists(self) -> int:
        """How many of the best trials are trained again with other seeds."""
        return 0 if self._search.confirm is None else self._search.confirm.top

    @property
    def is_done(self) -> bool:
        return self._search.scheduler.is_done()

    def stopping_reason(self, reserved_s: float = 0.0) -> str | None:
        """Return the first stopping rule that ends the search; None: the search continues.

        Args:
            reserved_s: slot seconds that are still needed after the search.
        """
        rules = self._search.stopping
        return next((reason for rule in rules if (reason := rule.reason(reserved_s=reserved_s))), None)

    @property
    def has_parents(self) -> bool:
        """True if new trials may start from the checkpoint of another trial."""
        return getattr(self._search.scheduler, "has_parents", Scheduler.has_parents)

    @property
    def num_configurations(self) -> int | None:
        """The number of trials after which there is nothing left to propose; None: no limit."""
        return self._search.sampler.size

    def limit_trials(self, max_trials: int | None) -> None:
        """Apply the budget of the next driver."""
        self._search.scheduler.limit_trials(max_trials)

    @property
    def steerable(self) -> Steerable:
        """The sampler, for changes by people.

        Raises:
            ConfigError: it takes none.
        """
        if self._search.steerable is None:
            raise ConfigError("the program passed its own sampler, so nobody else can add trials or ranges")
        return self._search.steerable

    def check_ranges(self, ranges: Ranges) -> int | None:
        """Check whether new trials may have other ranges.

        Returns:
            The number of trials after which there is nothing left to propose; None: no limit.

        Raises:
            ConfigError: the ranges are wrong, or the search cannot change them.
        """
        size = self.steerable.check_ranges(ranges)
        if self.has_parents:
            if self._search.steerable_explorer is None:
                raise ConfigError(
                    "the ranges cannot change, because new trials continue others, and the program passed "
                    "its own explorer"
                )
            self._search.steerable_explorer.check_ranges(ranges)
        return size

    def change_ranges(self, ranges: Ranges) -> None:
        """Replace the ranges with which the study began, for new trials."""
        self.steerable.change_ranges(ranges)
        if self.has_parents and self._search.steerable_explorer is not None:
            self._search.steerable_explorer.change_ranges(ranges)

    def next_slot(self, recorded: int | None = None) -> Slot | None:
        """Open the next slot.

        Args:
            recorded: the trial of that slot, in a replay.
        """
        with self._guide.replaying(recorded):
            return self._search.scheduler.next_slot()

    @property
    def is_running(self) -> bool:
        """True while a slot is in flight."""
        return bool(self._open)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, for forecasts, which play a copy."""
        return self._search.scheduler

    def running(self, elapsed_s: Mapping[int, float]) -> dict[int, tuple[Slot, float]]:
        """Return the slots in flight, by trial, each with the seconds since it began."""
        return {trial_id: (slot, elapsed_s.get(trial_id, 0.0)) for trial_id, slot in self._open.items()}

    def next_finish(self, fits: Fits) -> Slot | None:
        """Return the next slot of the reserve; None: no trial waits to be trained to the end."""
        return self.reserve.next_slot(self._open, fits)

    def needs(self, fits: Fits) -> list[Need]:
        """Return what the best trials need until they are fully trained, without their open slots."""
        return self.reserve.needs(self._open, fits)

    def is_finished(self, trial_id: int) -> bool:
        """Return whether the reserve has trained the trial, or trains it now."""
        return trial_id in self._scores

    def skip(self, slot: Slot) -> tuple[int, ...]:
        """Answer a slot of the scheduler for a trial that the reserve has trained or trains now.

        The scheduler gets the trial's value at the slot's resource or, if it was not measured there, the
        latest one before. A scheduler whose trials have children loses the trial instead, because there is
        no checkpoint at that resource from which a child could start.

        Returns:
            The trials that will not be promoted, ascending.
        """
        scores = self._scores[slot.trial_id]
        at = max((r for r in scores if r <= slot.resource_to), default=None)
        score = NO_SCORE if at is None or self.has_parents else scores[at]
        return self._without_finished(
            self._search.scheduler.report(slot, **result_for(self._search.scheduler, score))
        )

    def waits(self, trial_id: int) -> bool:
        """Return whether the trial has no slot in flight, so that `drop` can take it out."""
        return trial_id not in self._open

    def drop(self, trial_id: int) -> tuple[int, ...]:
        """Take a trial that waits out of the search. Returns the trials that will not be promoted."""
        return self._without_finished(self._search.scheduler.drop(trial_id))

    def propose(self, slot: Slot, parent: Params | None = None) -> Params:
        """Propose parameters for a new trial, from those of its parent if it has one."""
        if parent is None:
            return self._search.sampler.ask(slot.trial_id)
        assert self._explorer is not None, "a scheduler with parents comes with an explorer"
        return self._explorer.explore(slot, parent)

    def start(self, slot: Slot, params: Params, purpose: Purpose = Purpose.SEARCH) -> None:
        """Note that a slot runs with these parameters."""
        self._open[slot.trial_id] = slot
        if purpose is Purpose.FINISH:
            self._scores[slot.trial_id] = {slot.resource_from: self.reserve.last_score(slot.trial_id)}
            return
        if slot.is_new:
            self._search.sampler.start(slot.trial_id, params)
        if self._explorer is not None:
            self._explorer.start(slot, params)

    def restart(self, assignment: Assignment) -> Slot:
        """Replay the start of a slot from the journal. With folds, the assignment is that of its first one.

        Raises:
            JournalError: the scheduler would have opened another slot.
        """
        if assignment.purpose is Purpose.FINISH:
            return self._restart_finish(assignment)
        slot = self.next_slot(assignment.trial_id)
        recorded = Slot(
            trial_id=assignment.trial_id,
            bracket=assignment.bracket,
            rung=assignment.rung,
            resource_from=assignment.resource_from,
            # The journal has the folds one by one, and none that has not begun.
            resource_to=slot.resource_to if slot and assignment.fold else assignment.resource_to,
            parent=None if slot is None else slot.parent,  # the journal has only the parent's checkpoint
        )
        if slot != recorded:
            raise JournalError(
                f"the journal's next decision is {recorded}, but the scheduler decides {slot}: the study was "
                "started with other settings or another version. Use those, or a new study_dir"
            )
        self.start(slot, assignment.params)
        return slot

    def _restart_finish(self, assignment: Assignment) -> Slot:
        whole = assignment.fold is None
        slot = Slot(
            trial_id=assignment.trial_id,
            bracket=assignment.bracket,
            rung=assignment.rung,
            resource_from=assignment.resource_from,
            resource_to=assignment.resource_to if whole else self._search.scheduler.max_resource,
        )
        self.start(slot, assignment.params, Purpose.FINISH)
        return slot

    def tell(self, report: Report) -> Decision:
        """Pass a report to all parts of the search, and collect what follows from it."""
        search, slot = self._search, self._open.pop(report.trial_id)
        metrics = report.scored_metrics
        score, others = self._objective.score(metrics), self._objective.extra_losses(metrics)
        for rule in search.stopping:
            rule.observe(
                resource=slot.resource_to, loss=score.loss, seconds=report.seconds, violation=score.violation
            )
        if report.params is not None and self._search.sampler.is_define_by_run:
            self._search.sampler.resolve_params(report.trial_id, report.params, report.notes)
        search.sampler.note(report.trial_id, Outcome.of(report, resource_from=slot.resource_from))
        # Training that stopped early on a plateau counts at its target: more epochs would change nothing.
        self._search.sampler.tell(
            report.trial_id,
            resource=slot.resource_to,
            others=others,
            **result_for(self._search.sampler, score),
        )
        self.speed.note(report, report.resource - slot.resource_from)
        if score.is_finite:
            self.losses.note(report.trial_id, slot.resource_to, score.loss)
        if (known := self._scores.get(report.trial_id)) is not None:  # the reserve has trained it
            known.update((m.resource, self._objective.score(m.metrics)) for m in report.curve)
            known[slot.resource_to] = score
            stopped: tuple[int, ...] = (report.trial_id,) if report.is_pruned else ()
        else:
            if self._explorer is not None:
                self._explorer.tell(slot, **result_for(self._explorer, score))
            stopped = self._without_finished(
                search.scheduler.report(slot, **result_for(search.scheduler, score))
            )
        ended = {*stopped, *([report.trial_id] if report.failure else [])}
        is_complete = report.trial_id not in ended and slot.resource_to == search.scheduler.max_resource
        return Decision(
            score=score,
            slot=slot,
            resource_spent=report.resource - slot.resource_from,
            stopped=stopped,
            is_complete=is_complete,
            ended=tuple(sorted({*ended, report.trial_id} if is_complete else ended)),
        )

    def _without_finished(self, trials: Iterable[int]) -> tuple[int, ...]:
        """Return the trials without those that the reserve has trained, which a scheduler cannot stop."""
        return tuple(trial_id for trial_id in trials if trial_id not in self._scores)

    def check_progress(self) -> None:
        """Check a scheduler that has opened no slot although none is in flight.

        Raises:
            ConfigError: the scheduler is not done either, so the study would wait for ever.
        """
        if not self.is_done:
            kind = type(self._search.scheduler)
            raise ConfigError(
                "must open a slot, or be done, when no slot is in flight",
                key="search.scheduler",
                value=f"{kind.__module__}.{kind.__qualname__}",
                cure="Fix next_slot or is_done of this scheduler",
            )
