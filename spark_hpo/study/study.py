"""The driver loop: asks the scheduler, hands assignments to the backend, writes the journal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from spark_hpo.backend.base import Backend
from spark_hpo.errors import CapacityError, JournalError, NoTrialSucceeded, TrialError
from spark_hpo.objective import Objective, Score
from spark_hpo.ranking import as_reported
from spark_hpo.search.scheduler import Slot
from spark_hpo.study.callback import Callback, Callbacks
from spark_hpo.study.dispatch import Dispatcher, DispatchPolicy
from spark_hpo.study.incumbents import Incumbents
from spark_hpo.study.progress import Budget, Progress
from spark_hpo.study.search import Search, result_for
from spark_hpo.study_dir.journal import EventKind, Journal
from spark_hpo.study_dir.retention import Retention
from spark_hpo.tracking.tracker import Tracker
from spark_hpo.trial import Assignment, Params, Report, Split, Trial, TrialState

logger = logging.getLogger(__name__)

_POLICY = DispatchPolicy()


class Study:
    """One search. The journal is its state: a new `Study` on the same journal goes on where it ended.

    A trace: run() -> "trials"; best -> Trial 17; test(best) -> {"accuracy": 0.97}
    """

    def __init__(
        self,
        *,
        journal: Journal,
        search: Search,
        backend: Backend,
        tracker: Tracker,
        budget: Budget,
        policy: DispatchPolicy = _POLICY,
        callbacks: Sequence[Callback] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._search = search
        self._sampler = search.sampler
        self._scheduler = search.scheduler
        self._explorer = search.explorer
        self._backend = backend
        self._tracker = tracker
        self._budget = budget
        self._policy = policy
        self._callbacks = Callbacks(callbacks)
        self._clock = clock
        self._idle_since: float | None = None
        self._stop_reason: str | None = None
        self._slots: dict[int, Slot] = {}  # open, by trial
        self._retention = Retention(journal.storage)
        self._dispatcher = Dispatcher(backend, journal, journal.storage, self._retention, policy, clock)
        self._incumbents = Incumbents(journal.objective, self._retention)
        self._is_resumed = False
        self.progress = Progress(running=self._dispatcher.running)
        self.stopped_by: str | None = None  # part of the budget, or rule; None: it runs, or broke off

    @property
    def objective(self) -> Objective:
        return self._journal.objective

    @property
    def best(self) -> Trial | None:
        """The trial with the best score that was ever reported, as it was then; its checkpoint is kept."""
        return self._incumbents.best

    @property
    def budget(self) -> Budget:
        """When it ends."""
        return self._budget

    @property
    def trials(self) -> Mapping[int, Trial]:
        """All trials by id, as the journal has them now."""
        return self._journal.trials

    @property
    def states(self) -> Mapping[TrialState, int]:
        """How many trials are in each state."""
        return self._journal.states

    def stop(self, reason: str) -> None:
        """Start nothing new; what is running is finished. For callbacks."""
        self._stop_reason = self._stop_reason or reason

    @property
    def files_left_out(self) -> tuple[str, ...]:
        """Files of the table that could not be read, with `data.on_bad_file: skip`."""
        return self._dispatcher.failures.without

    def resume(self) -> None:
        """Replay the journal, and delete the checkpoints that no trial needs any more. `run` calls it first.

        Raises:
            JournalError: the journal was written with other settings.
        """
        if self._is_resumed:
            return
        self._replay()
        self._retention.sweep(unfinished=self._dispatcher.waiting_trials())
        self._is_resumed = True

    def run(self) -> str:
        """Search until the budget is spent or a rule says stop, and return which part of it, or which rule.

        Raises:
            DataError: a rank has found the table wrong; every trial would.
            JournalError: the journal was written with other settings.
            KeyboardInterrupt: as was asked for; what was running is saved.
            LeaseError: another driver has taken over.
            NoTrialSucceeded: every trial has failed, or too many.
            StorageError: the study directory cannot be read or written.
        """
        self.resume()
        self._dispatcher.forget_signals()
        self._callbacks.on_study_start(self)
        try:
            self.stopped_by = self._loop()
            self._dispatcher.forget_signals()
        finally:
            self._callbacks.on_study_end(self)
        if self.best is None:
            failures = [trial.failure.message for trial in self._journal.trials.values() if trial.failure]
            if not failures and (stopped := self._journal.states[TrialState.STOPPED]):
                raise NoTrialSucceeded(
                    f"all {stopped} trials were pruned; let the first ones run to their end"
                )
            if not failures:
                raise NoTrialSucceeded("no trial could be run within the budget; raise it")
            raise NoTrialSucceeded(f"all {len(failures)} trials have failed; the first one: {failures[0]}")
        return self.stopped_by

    def _loop(self) -> str:
        began, spent_before = self._clock(), self._journal.seconds
        last = began
        try:
            while True:
                now = self._clock()
                self.progress.slot_seconds += (now - last) * self.progress.slots
                self.progress.seconds, last = spent_before + now - began, now
                stopped_by = self._spent()
                if stopped_by is None or self._dispatcher.has_waiting:
                    self._launch(only_waiting=stopped_by is not None)
                if not self.progress.running and stopped_by is not None and not self._dispatcher.has_waiting:
                    return stopped_by
                self._wait_for_slots(last)
                if (done := self._dispatcher.wait()) is not None:
                    self._take(*done)
                if self._dispatcher.is_interrupted:
                    for assignment, report in self._dispatcher.drain():
                        self._take(assignment, report)
                    raise KeyboardInterrupt
        except BaseException:  # an interrupt too: nothing may train on for a driver that is gone
            self._backend.close()
            raise

    def _wait_for_slots(self, now: float) -> None:
        """Note since when nothing runs because nothing fits: executors were lost, or others use them.

        Raises:
            CapacityError: for longer than `slot_timeout_s`.
        """
        if self.progress.running or (self.progress.slots and self._dispatcher.has_waiting):
            self._idle_since = None
            return
        assert self.progress.slots == 0, "with a free slot, a scheduler that is not done has work"
        if self._idle_since is None:
            self._idle_since = now
            logger.warning("the cluster has no free slot for a trial; waiting")
        if now - self._idle_since > self._policy.slot_timeout_s:
            raise CapacityError(
                f"no slot for a trial in {self._policy.slot_timeout_s:.0f} s: are there executors enough? "
                "The same command goes on when there are"
            )

    def test(self, trial: Trial) -> dict[str, float]:
        """Evaluate a trial's checkpoint on the test split, once: a second call returns the first's metrics.

        Returns:
            Metrics by name; empty when a training function reports none in an evaluation.

        Raises:
            DataError: the test split is wrong.
            TrialError: the evaluation failed.
        """
        known = self._journal.tests.get(trial.trial_id)
        if known is not None and known.resource == trial.resource:
            return dict(known.metrics)
        assignment = self._assignment(
            Slot(
                trial_id=trial.trial_id,
                bracket=trial.bracket,
                rung=trial.rung,
                resource_from=trial.resource,
                resource_to=trial.resource,
            ),
            trial,
        )
        assignment = replace(assignment, split=Split.TEST)
        try:
            report = self._dispatcher.run_alone(assignment)
        except BaseException:  # as in the search
            self._backend.close()
            raise
        failure = report.failure
        if failure is not None:
            self._journal.lost(report)
            raise TrialError(f"{assignment} failed: {failure.message}\n{failure.traceback}")
        self._journal.reported(report)
        return dict(report.metrics)

    def _launch(self, *, only_waiting: bool) -> None:
        there = self._backend.num_slots
        slots = min(there, self._policy.max_concurrent or there)
        if slots != self.progress.slots:
            logger.info("slots for trials: %d", slots)
            self.progress.slots = slots
            self._journal.slots(slots)
        while len(self.progress.running) < self.progress.slots:
            assignment = self._dispatcher.start_waiting()
            if assignment is None:
                slot = None if only_waiting else self._scheduler.next_slot()
                if slot is None:
                    return
                assignment = self._open(slot)
                self._dispatcher.start(assignment)
            self._tracker.sync(self._journal)
            logger.info("%s: started with %s", assignment, dict(assignment.params))
            trial = self._journal.trials[assignment.trial_id]
            if trial.ended_at is None and assignment.attempt == 1:
                self._callbacks.on_trial_start(self, trial)
            self._callbacks.on_assigned(self, assignment)
            if not only_waiting and self._spent() is not None:
                return

    def _open(self, slot: Slot) -> Assignment:
        self._slots[slot.trial_id] = slot
        trial = self._journal.trials.get(slot.trial_id)
        if trial is None:
            parent = None if slot.parent is None else self._journal.trials[slot.parent]
            params = self._propose(slot, parent)
            self._sampler.start(slot.trial_id, params)
            trial = Trial(
                trial_id=slot.trial_id,
                params=params,
                state=TrialState.RUNNING,
                bracket=slot.bracket,
                rung=slot.rung,
                checkpoint=None if parent is None else parent.checkpoint,
            )
            self._retention.keep(trial.trial_id, trial.checkpoint)  # a parent's, until it has its own
        if self._explorer is not None:
            self._explorer.start(slot, trial.params)
        return self._assignment(slot, trial)

    def _propose(self, slot: Slot, parent: Trial | None) -> Params:
        if parent is None:
            return self._sampler.ask(slot.trial_id)
        assert self._explorer is not None, "a scheduler with parents comes with an explorer"
        return self._explorer.explore(slot, parent.params)

    def _assignment(self, slot: Slot, trial: Trial) -> Assignment:
        return Assignment(
            trial_id=slot.trial_id,
            attempt=1,
            params=trial.params,
            bracket=slot.bracket,
            rung=slot.rung,
            resource_from=slot.resource_from,
            resource_to=slot.resource_to,
            checkpoint=trial.checkpoint,
            seed=int(np.random.SeedSequence((self._search.seed, slot.trial_id)).generate_state(1)[0]),
            without=self._dispatcher.failures.without,
            is_proposal=self._sampler.is_define_by_run,
        )

    def _take(self, assignment: Assignment, report: Report) -> None:
        """An assignment has ended for good."""
        failure = report.failure
        self.progress.busy_seconds = self._dispatcher.busy_seconds
        self._journal.reported(report)
        self.progress.run += 1
        out = self._settle(report)
        trial = self._journal.trials[report.trial_id]
        if failure is not None:
            logger.warning("%s failed: %s\n%s", assignment, failure.message, failure.traceback)
        elif report.is_pruned:
            logger.info("%s: pruned, %.1f s", assignment, report.seconds)
        else:
            metric = self.objective.metric
            logger.info("%s: %s = %.6g, %.1f s", assignment, metric, report.metrics[metric], report.seconds)
        self._tracker.sync(self._journal)
        self._callbacks.on_report(self, trial, report)
        for trial_id in out:
            self._callbacks.on_trial_end(self, self._journal.trials[trial_id])
        if failure is not None:
            self._dispatcher.failures.check(self._journal.trials.values())

    def _settle(self, report: Report) -> list[int]:
        """A report is in the journal: tell scheduler and sampler, and let go of checkpoints.

        Returns the trials that are out now.
        """
        slot = self._slots.pop(report.trial_id)
        self.progress.resource_spent += report.resource - slot.resource_from
        self.progress.failed += report.failure is not None
        score, others = self.objective.score(report.judged), self.objective.others(report.judged)
        for rule in self._search.stopping:
            rule.observe(
                resource=slot.resource_to, loss=score.loss, seconds=report.seconds, violation=score.violation
            )
        if report.params is not None and self._sampler.is_define_by_run:
            self._sampler.resolve_params(report.trial_id, report.params, report.notes)
        # A trial on its plateau counts at the resource that it was meant to reach: more would not change it.
        self._sampler.tell(
            report.trial_id,
            resource=slot.resource_to,
            others=others,
            **result_for(self._sampler, score),
        )
        if self._explorer is not None:
            self._explorer.tell(slot, **result_for(self._explorer, score))
        out = self._scheduler.report(slot, **result_for(self._scheduler, score))
        self._journal.settled(out, TrialState.STOPPED)
        finished = {*out, *([report.trial_id] if report.failure else [])}
        is_complete = report.trial_id not in finished and slot.resource_to == self._scheduler.max_resource
        if is_complete:
            self._journal.settled([report.trial_id], TrialState.COMPLETED)
            finished.add(report.trial_id)
        self._note_incumbent(report, score, is_complete=is_complete)
        self._retention.keep(report.trial_id, report.checkpoint)
        for trial_id in finished:
            self._retention.release(trial_id)
        if report.attempt > 1 or report.failure is not None:
            self._retention.tidy(report.trial_id)
        return sorted(finished)

    def _note_incumbent(self, report: Report, score: Score, *, is_complete: bool) -> None:
        # As it was reported: in a replay the journal has the trial as it was in the end.
        trial = as_reported(self._journal.trials[report.trial_id], report, score)
        self._incumbents.note(trial, is_complete=is_complete)

    def _spent(self) -> str | None:
        """Which part of the budget is spent, if any."""
        if self._stop_reason is not None:
            return self._stop_reason
        if self._scheduler.is_done():
            return "trials" if len(self._journal.trials) == self._budget.trials else "search_space"
        if self._budget.resource is not None:
            # Only where it is asked for: with a thousand slots this sum is most of the driver's time.
            committed = sum(a.resource_to - a.resource_from for a in self.progress.running.values())
            if self.progress.resource_spent + committed >= self._budget.resource:
                return "resource"
        if self._budget.seconds is not None and self.progress.seconds >= self._budget.seconds:
            return "seconds"
        return next((reason for rule in self._search.stopping if (reason := rule.reason())), None)

    def _replay(self) -> None:
        """Bring scheduler, sampler and explorer to where the earlier drivers left them."""
        open_assignments: dict[int, Assignment] = {}
        for event in self._journal.past:
            if event.kind is EventKind.ASSIGNED and event.assignment.split is Split.VALIDATION:
                assignment = event.assignment
                self._dispatcher.failures.replay(assignment)
                if assignment.trial_id not in open_assignments:
                    self._replay_slot(assignment)
                open_assignments[assignment.trial_id] = assignment
            elif event.kind is EventKind.REPORTED and (report := event.report).split is Split.VALIDATION:
                del open_assignments[report.trial_id]
                self._settle(report)
                self.progress.replayed += 1
        self._dispatcher.resume(list(open_assignments.values()))

    def _replay_slot(self, assignment: Assignment) -> None:
        slot = self._scheduler.next_slot()
        recorded = Slot(
            trial_id=assignment.trial_id,
            bracket=assignment.bracket,
            rung=assignment.rung,
            resource_from=assignment.resource_from,
            resource_to=assignment.resource_to,
            parent=None if slot is None else slot.parent,  # its checkpoint stands in the assignment
        )
        if slot != recorded:
            raise JournalError(
                f"the journal's next decision is {recorded}, but this scheduler decides {slot}: the study "
                "was made with other settings or another version; go on with those, or use another study_dir"
            )
        self._slots[slot.trial_id] = slot
        if slot.is_new:
            self._sampler.start(slot.trial_id, assignment.params)
            self._retention.keep(slot.trial_id, assignment.checkpoint)
        if self._explorer is not None:
            self._explorer.start(slot, assignment.params)
