"""Puts the search's questions and results in order, and remembers which slots are open."""

from __future__ import annotations

from dataclasses import dataclass

from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.objective import Objective, Score
from spark_hpo.search.scheduler import Slot
from spark_hpo.study.search import Search, result_for
from spark_hpo.trial import Assignment, Params, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The consequences of one report."""

    score: Score
    resource_spent: int  # epochs
    stopped: tuple[int, ...]  # trials that will not be promoted
    is_complete: bool  # the reported trial has trained to the end
    ended: tuple[int, ...]  # trials that get no further assignment, ascending


class Decider:
    """Calls sampler, scheduler, explorer and stopping rules in the order that a replay repeats.

    No I/O: the same calls give the same decisions.

    A trace: next_slot() -> slot of trial 0; propose(slot) -> params; start(slot, params);
        tell(report of 0) -> Decision
    """

    def __init__(self, search: Search, objective: Objective) -> None:
        self._search = search
        self._objective = objective
        self._open: dict[int, Slot] = {}  # slots by trial

    @property
    def is_done(self) -> bool:
        return self._search.scheduler.is_done()

    @property
    def stopping_reason(self) -> str | None:
        """The first stopping rule that ends the search; None: the search continues."""
        return next((reason for rule in self._search.stopping if (reason := rule.reason())), None)

    def limit_trials(self, max_trials: int | None) -> None:
        """Apply the budget of the next driver."""
        self._search.scheduler.limit_trials(max_trials)

    def next_slot(self) -> Slot | None:
        return self._search.scheduler.next_slot()

    def propose(self, slot: Slot, parent: Params | None = None) -> Params:
        """Propose parameters for a new trial, from those of its parent if it has one."""
        if parent is None:
            return self._search.sampler.ask(slot.trial_id)
        assert self._search.explorer is not None, "a scheduler with parents comes with an explorer"
        return self._search.explorer.explore(slot, parent)

    def start(self, slot: Slot, params: Params) -> None:
        """Note that a slot runs with these parameters."""
        self._open[slot.trial_id] = slot
        if slot.is_new:
            self._search.sampler.start(slot.trial_id, params)
        if self._search.explorer is not None:
            self._search.explorer.start(slot, params)

    def restart(self, assignment: Assignment) -> Slot:
        """Replay the start of a slot from the journal. With folds, the assignment is that of its first one.

        Raises:
            JournalError: the scheduler would have opened another slot.
        """
        slot = self.next_slot()
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

    def tell(self, report: Report) -> Decision:
        """Pass a report to all parts of the search, and collect what follows from it."""
        search, slot = self._search, self._open.pop(report.trial_id)
        metrics = report.scored_metrics
        score, others = self._objective.score(metrics), self._objective.extra_losses(metrics)
        for rule in search.stopping:
            rule.observe(
                resource=slot.resource_to, loss=score.loss, seconds=report.seconds, violation=score.violation
            )
        if report.params is not None and search.sampler.is_define_by_run:
            search.sampler.resolve_params(report.trial_id, report.params, report.notes)
        # Training that stopped early on a plateau counts at its target: more epochs would change nothing.
        search.sampler.tell(
            report.trial_id, resource=slot.resource_to, others=others, **result_for(search.sampler, score)
        )
        if search.explorer is not None:
            search.explorer.tell(slot, **result_for(search.explorer, score))
        stopped = search.scheduler.report(slot, **result_for(search.scheduler, score))
        ended = {*stopped, *([report.trial_id] if report.failure else [])}
        is_complete = report.trial_id not in ended and slot.resource_to == search.scheduler.max_resource
        return Decision(
            score=score,
            resource_spent=report.resource - slot.resource_from,
            stopped=tuple(stopped),
            is_complete=is_complete,
            ended=tuple(sorted({*ended, report.trial_id} if is_complete else ended)),
        )

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
