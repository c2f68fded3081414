"""The driver loop: fills slots, dispatches assignments, and records their reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from spark_hpo.backend.base import Backend
from spark_hpo.errors import NoTrialSucceeded, TrialError
from spark_hpo.objective import Objective
from spark_hpo.ranking import with_final
from spark_hpo.search.scheduler import Slot
from spark_hpo.study.assigner import Assigner
from spark_hpo.study.attempts import Attempts
from spark_hpo.study.callback import Callback, call_each
from spark_hpo.study.confirmation import Confirmation
from spark_hpo.study.decider import Decider
from spark_hpo.study.dispatch import Dispatcher, DispatchPolicy, pruned
from spark_hpo.study.end_of_search import EndOfSearch
from spark_hpo.study.failures import Failures
from spark_hpo.study.folds import Folds
from spark_hpo.study.idleness import Idleness
from spark_hpo.study.progress import Budget, Progress
from spark_hpo.study.replay import Replay
from spark_hpo.study.search import Search
from spark_hpo.study.slots import Slots
from spark_hpo.study.steering import Steering
from spark_hpo.study.time_left import TimeLeft
from spark_hpo.study.trial_log import TrialLog
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.journal import Journal
from spark_hpo.tracking.tracker import Tracker
from spark_hpo.trial import (
    Assignment,
    Purpose,
    Report,
    Split,
    Trial,
    TrialState,
)

_POLICY = DispatchPolicy()


class Study:
    """One search. Its state is the journal: a new `Study` with the same journal resumes it.

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
        lifts_pause: bool = False,
    ) -> None:
        """
        Args:
            lifts_pause: undo an earlier request to pause or to stop.
        """
        self.progress = Progress()
        self.stopped_by: str | None = None
        self._journal = journal
        self._first_max_trials, self._max_trials = search.first_max_trials, search.max_trials
        self._has_folds = search.has_folds
        self._log = TrialLog(journal.objective.metric, search.described)
        self._backend = backend
        self._tracker = tracker
        self._callbacks = tuple(callbacks)
        self._clock = clock
        self._decider = Decider(search, journal.objective, num_finished=budget.finish)
        self._failures = Failures(policy.failures)
        self._assigner = Assigner(self._decider, self._failures, search.seed, search.sampler.is_define_by_run)
        self._attempts = Attempts(journal, self._decider, self.progress, policy.ranks)
        self._dispatcher = Dispatcher(backend, self._attempts, self._failures, journal.storage, policy, clock)
        self._slots = Slots(
            backend, journal, self.progress, share=policy.share, max_concurrent=policy.max_concurrent
        )
        self._confirmation = Confirmation(journal, self._attempts.incumbents, search)
        self._end = EndOfSearch(
            journal, self._decider, self._dispatcher, budget, self.progress, self._confirmation
        )
        self._steering = Steering(journal, self._decider, self._dispatcher, self._end, clock=clock)
        self._lifts_pause = lifts_pause
        self._time_left = TimeLeft(self._decider, self._dispatcher, self._end, self.progress, clock)
        self._folds = Folds()
        self._finals: dict[int, Assignment] = {}  # begun by an earlier driver and not ended, by trial
        self._idleness = Idleness(
            self._decider, self._dispatcher, self._slots, self.progress, policy.slot_timeout_s
        )
        self._is_resumed = False

    @property
    def definition(self) -> Definition:
        return Definition.require(self._journal.storage)

    @property
    def budget(self) -> Budget:
        return self._end.budget

    @property
    def objective(self) -> Objective:
        return self._journal.objective

    @property
    def best(self) -> Trial | None:
        """The best trial by the rule of `search.best`, as it was when it was best, or the finalist with the
        best mean over several seeds. Its checkpoint is kept."""
        return self._confirmation.winner or self._attempts.incumbents.best

    @property
    def trials(self) -> Mapping[int, Trial]:
        return self._journal.trials

    @property
    def seconds_left(self) -> float | None:
        return self._time_left.seconds()

    @property
    def states(self) -> Mapping[TrialState, int]:
        return self._journal.states

    @property
    def is_paused(self) -> bool:
        return self._steering.is_paused

    @property
    def excluded_files(self) -> tuple[str, ...]:
        """Files of the table that could not be read and are skipped (`data.on_bad_file: skip`)."""
        return self._failures.excluded_files

    def stop(self, reason: str) -> None:
        self._end.stop(reason)

    def resume(self) -> None:
        """Replay the journal, and delete checkpoints that no trial needs any more. `run` calls it first.

        Raises:
            JournalError: the journal was written with other settings.
        """
        if self._is_resumed:
            return
        unfinished = self._replay()
        self._dispatcher.resume(unfinished)
        self._attempts.sweep([assignment.key for assignment in (*unfinished, *self._finals.values())])
        for trial_id in self._folds:
            slot, params = self._folds.slot(trial_id), self.trials[trial_id].params
            self._dispatcher.enqueue(
                self._assigner.of_fold(slot, params, fold) for fold in self._folds.waiting(trial_id)
            )
        self._is_resumed = True

    def run(self) -> str:
        """Search until the budget is spent, a stopping rule applies, or a callback calls `stop`.

        Returns:
            The limit of the budget, the rule, or the callback's reason.

        Raises:
            CapacityError: no slot was free for `slot_timeout_s`.
            DataError: the table is damaged.
            JournalError: the journal was written with other settings.
            KeyboardInterrupt: an interrupt was requested; running trials have saved their state.
            LeaseError: another driver has taken over.
            NoTrialSucceeded: all trials have failed, or too many.
            StorageError: the study directory cannot be read or written.
        """
        self.resume()
        self._dispatcher.delete_signals()
        self._steering.open(lifts=self._lifts_pause)
        call_each(self._callbacks, Callback.on_study_start, self)
        try:
            for trial_id in self._folds:  # the driver before may have died before it could conclude them
                self._conclude_folds(trial_id)
            self.stopped_by = self._loop()
            self.refuse_requests()
            self._dispatcher.delete_signals()
        finally:
            call_each(self._callbacks, Callback.on_study_end, self)
        if self.best is None:
            raise NoTrialSucceeded(self._why_none_succeeded())
        return self.stopped_by

    def refuse_requests(self) -> None:
        """Answer the requests that came too late, after the end of the search."""
        self._steering.refuse(f"the search has ended ({self.stopped_by})")

    def test(self, trial: Trial) -> dict[str, float]:
        """Evaluate a trial's checkpoint on the test split, unless the journal has the result already.

        Returns:
            Metrics by name; empty when a training function reports none in an evaluation.

        Raises:
            DataError: the test split is damaged.
            TrialError: the evaluation failed.
        """
        known = self._journal.tests.get(trial.trial_id)
        if known is not None and known.resource == trial.resource:
            return dict(known.metrics)
        return dict(self._run_alone(self._assigner.after_search(trial, Split.TEST, trial.resource)).metrics)

    def train_final(self, trial: Trial) -> Trial:
        """Train the final model of a cross-validation, on all training rows, unless the journal has it.

        Returns:
            The trial with the checkpoint of that model; without folds, the same trial.

        Raises:
            DataError: the table is damaged.
            TrialError: the training failed.
        """
        if trial.has_folds and with_final(trial, self._journal.finals) is trial:
            assignment = self._assigner.after_search(trial, Split.TRAIN, 0)
            begun = self._finals.pop(trial.trial_id, None)
            if begun is not None:
                assignment = replace(assignment, attempt=begun.attempt + 1)
            self._run_alone(assignment)
        return with_final(trial, self._journal.finals)

    def _run_alone(self, assignment: Assignment) -> Report:
        try:
            report = self._dispatcher.run_alone(assignment)
        except BaseException:  # also an interrupt: no trial may train on without a driver
            self._backend.close()
            raise
        self._attempts.finish_alone(report)
        if report.failure is not None:
            raise TrialError(f"{assignment} failed: {report.failure.message}\n{report.failure.traceback}")
        return report

    def _loop(self) -> str:
        began, spent_before = self._clock(), self._journal.seconds
        last = began
        try:
            while True:
                now = self._clock()
                is_paused = self._steering.is_paused
                if is_paused:  # other studies have the slots, and the time of this one does not pass
                    began, last = began + now - last, now
                # More assignments run than the study has slots when other studies leave theirs.
                slots = max(self.progress.slots, self._dispatcher.used_slots)
                self.progress.slot_seconds += (now - last) * slots
                self.progress.seconds, last = spent_before + now - began, now
                self._steering.take(self.best)
                for assignment, report in self._steering.cut():
                    if assignment.fold is not None:
                        self._folds.begin(assignment.trial_id, assignment.fold)
                    self._finish(assignment, report)
                self._dispatcher.check_suspension()
                is_paused = self._steering.is_paused
                stopped_by = self._end.reason()
                may_open = stopped_by is None or self._end.has_slot(stopped_by) or self._end.has_repeat()
                if not is_paused and (may_open or self._dispatcher.waiting or self._dispatcher.held):
                    self._launch(stopped_by)
                else:
                    self._slots.rest(self._dispatcher.used_slots)
                is_idle = not self.progress.running and not self._dispatcher.waiting
                if is_idle and stopped_by is not None and not may_open and not is_paused:
                    return stopped_by
                if is_paused:
                    self._idleness.end()
                else:
                    self._idleness.check(now)
                if (done := self._dispatcher.wait()) is not None:
                    self._finish(*done)
                if self._dispatcher.is_interrupted:
                    for assignment, report in self._dispatcher.drain():
                        self._finish(assignment, report)
                    raise KeyboardInterrupt
        except BaseException:  # also an interrupt: no trial may train on without a driver
            self._backend.close()
            raise

    def _launch(self, stopped_by: str | None) -> None:
        """Start assignments until no slot is free, or there is nothing to start.

        Args:
            stopped_by: why the search has ended; None: it continues.
        """
        dispatcher = self._dispatcher
        self._slots.count()
        dispatcher.start_held()
        while dispatcher.held is None and self._slots.take(dispatcher.used_slots):
            assignment = dispatcher.start_waiting()
            if assignment is None:
                slot = self._decider.next_slot() if stopped_by is None else self._end.next_slot(stopped_by)
                if slot is None and stopped_by is not None and self._start_repeat():
                    continue
                if slot is None:
                    self._slots.rest(dispatcher.used_slots)
                    return
                purpose = Purpose.SEARCH if stopped_by is None else Purpose.FINISH
                if purpose is Purpose.SEARCH and self._decider.is_finished(slot.trial_id):
                    self._attempts.skip(slot)
                    continue
                assignment, *others = self._open(slot, purpose)
                dispatcher.enqueue(others)
                if slot.trial_id in self._steering.dropped:  # the scheduler promotes a dropped trial
                    self._attempts.begin(assignment)
                    if assignment.fold is not None:
                        self._folds.begin(assignment.trial_id, assignment.fold)
                    self._finish(assignment, pruned(assignment))
                    continue
                dispatcher.start(assignment)
            if assignment.repeat is not None:  # another attempt
                continue
            if assignment.fold is not None:
                self._folds.begin(assignment.trial_id, assignment.fold)
            self._tracker.sync(self._journal)
            self._log.started(assignment, layout.parent_of(assignment))
            trial = self.trials[assignment.trial_id]
            if trial.ended_at is None and assignment.attempt == 1 and assignment.fold in (None, 1):
                call_each(self._callbacks, Callback.on_trial_start, self, trial)
            call_each(self._callbacks, Callback.on_assigned, self, assignment)
            if stopped_by is None and self._end.reason() is not None:
                if dispatcher.held is None:
                    self._slots.rest(dispatcher.used_slots)
                return

    def _start_repeat(self) -> bool:
        """Start the training of a finalist with another seed. Returns False if none waits."""
        found = self._end.next_repeat()
        if found is None:
            return False
        assignment = self._assigner.of_repeat(*found)
        self._dispatcher.start(assignment)
        self._log.started(assignment, None)
        return True

    def _open(self, slot: Slot, purpose: Purpose) -> list[Assignment]:
        """Open a slot. Returns its assignments: one, or one per fold."""
        trial = self.trials.get(slot.trial_id)
        if trial is not None:
            params, checkpoint = trial.params, trial.checkpoint
            if purpose is Purpose.FINISH and checkpoint is not None and not self._has(checkpoint):
                slot, checkpoint = replace(slot, resource_from=0), None  # deleted when it was not needed
        elif slot.parent is not None:
            parent = self.trials[slot.parent]
            params = self._decider.propose(slot, parent.params)
            checkpoint = self._attempts.left_at.get(slot.parent, parent.checkpoint)
        else:
            params, checkpoint = self._decider.propose(slot), None
        self._decider.start(slot, params, purpose)
        if not self._has_folds:
            return [self._assigner.of_slot(slot, params, checkpoint)]
        return [self._assigner.of_fold(slot, params, fold) for fold in self._folds.open(slot)]

    def _has(self, checkpoint: str) -> bool:
        folder, _, name = checkpoint.rpartition("/")
        return name in self._journal.storage.names(folder)

    def _finish(self, assignment: Assignment, report: Report) -> None:
        """Record an assignment that has ended for good, and report it to the user."""
        if assignment.repeat is not None:
            self._attempts.finish_repeat(report)
            self._log.ended(assignment, report)
            return
        if assignment.fold is None:
            self._announce(assignment, report, self._attempts.finish(report))
            return
        self._attempts.finish_fold(report)
        self._folds.add(report)
        self._log.ended(assignment, report)
        if not report.scored_metrics:
            self._dispatcher.drop(report.trial_id)
        self._tracker.sync(self._journal)
        self._conclude_folds(report.trial_id)

    def _conclude_folds(self, trial_id: int) -> None:
        """Record the report of a slot when its last fold has ended."""
        merged = self._folds.merged(trial_id)
        if merged is not None:
            slot = self._folds.slot(trial_id)
            self._folds.close(trial_id)
            assignment = self._assigner.of_slot(slot, self.trials[trial_id].params, None)
            self._announce(assignment, merged, self._attempts.conclude(merged))

    def _announce(self, assignment: Assignment, report: Report, ended: Sequence[int]) -> None:
        """Report a trial that has ended its rung to the user."""
        self._log.ended(assignment, report)
        self._tracker.sync(self._journal)
        call_each(self._callbacks, Callback.on_report, self, self.trials[report.trial_id], report)
        for trial_id in ended:
            call_each(self._callbacks, Callback.on_trial_end, self, self.trials[trial_id])
        if report.failure is not None:
            self._failures.check(self.trials.values())

    def _why_none_succeeded(self) -> str:
        failures = [trial.failure.message for trial in self.trials.values() if trial.failure]
        if failures:
            who = f"all {len(failures)} trials have" if len(failures) > 1 else "the only trial has"
            return f"{who} failed; the first failure: {failures[0]}"
        if stopped := self.states[TrialState.STOPPED]:
            return f"all {stopped} trials were pruned; let the first ones run to their end"
        return "no trial could be run within the budget; raise it"

    def _replay(self) -> list[Assignment]:
        """Bring the search to the state in which earlier drivers left it.

        Returns:
            The last attempts of assignments that were in flight.
        """
        replay = Replay(
            decider=self._decider,
            attempts=self._attempts,
            failures=self._failures,
            folds=self._folds,
            steering=self._steering,
            end=self._end,
            max_trials=self._first_max_trials,
        )
        for event in self._journal.past:
            replay.take(event)
        self._finals = replay.finals
        self._steering.adopt()
        self._max_trials = self._steering.max_trials or self._max_trials
        if replay.max_trials != self._max_trials:
            self._journal.changed_budget(self._max_trials)
            self._decider.limit_trials(self._max_trials)
        return list(replay.in_flight.values())
