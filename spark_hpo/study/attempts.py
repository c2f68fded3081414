"""Records the beginning and the end of every attempt at an assignment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from types import MappingProxyType

from spark_hpo.backend.base import ONE_RANK, RanksByRung
from spark_hpo.errors import JournalError
from spark_hpo.objective import BestRule
from spark_hpo.ranking import as_reported
from spark_hpo.search.scheduler import Slot
from spark_hpo.study.decider import Decider
from spark_hpo.study.incumbents import Incumbents
from spark_hpo.study.progress import Progress
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.retention import BEST, Owner, Retention, Role
from spark_hpo.trial import Assignment, AssignmentKey, Purpose, Report, Split, TrialState


class Attempts:
    """The attempts in flight, and the only writer of ASSIGNED, LOST, FOLD, REPORTED and SETTLED.

    The driver may die between any two steps, so their order matters:

        begin:   ASSIGNED; fence off earlier attempts          then the backend may run the assignment
        lose:    LOST                                          then another attempt may begin
        finish:  REPORTED; decide; SETTLED; delete checkpoints then nothing of the assignment is left

    A slot of several folds has an assignment for each; `finish_fold` ends one, with the event FOLD, and
    `conclude` is the second half of `finish`, for the merged report of all.

    An event is durable before anything follows from it. So no attempt runs that the journal does not have,
    and no checkpoint is deleted before the report that replaces it is safe. A driver that resumes repeats
    `finish` from the decision on: it writes the SETTLED that is missing, and deletes what was left over.
    """

    def __init__(
        self, journal: Journal, decider: Decider, progress: Progress, ranks: RanksByRung = ONE_RANK
    ) -> None:
        self._journal = journal
        self._decider = decider
        self._progress = progress
        self._ranks = ranks
        self._running: dict[AssignmentKey, Assignment] = {}
        progress.running = MappingProxyType(self._running)
        self.used_slots = 0
        """The slots of the attempts in flight."""
        self._kept: dict[Role, frozenset[int]] = defaultdict(frozenset)  # trials, see `_keep_only`
        self.left_at: dict[int, str | None] = {}
        """By trial that the reserve trains: the checkpoint at which the scheduler left it."""
        self._retention = Retention(journal.storage)
        # A trial that is trained on may become the best one with an earlier checkpoint.
        self._keeps_peaks = decider.choice.rule is BestRule.TRAINED
        self._incumbents = Incumbents(journal.objective, self._retention, decider.choice)

    @property
    def running(self) -> Mapping[AssignmentKey, Assignment]:
        return self._running

    @property
    def incumbents(self) -> Incumbents:
        """The best trials so far."""
        return self._incumbents

    def begin(self, assignment: Assignment) -> None:
        if assignment.split is Split.VALIDATION and assignment.repeat is None:
            self._keep_for_children(assignment)
            # A new trial may start from its parent's checkpoint, and needs it until it has its own.
            self._retention.keep(Owner(Role.TRIAL, assignment.trial_id), assignment.checkpoint)
        self._journal.assigned(assignment)
        if assignment.attempt > 1:
            # From now on only this attempt may save checkpoints of the trial.
            fence = layout.fence(assignment.trial_id, assignment.rung, assignment.part)
            self._journal.storage.write(fence, str(assignment.attempt).encode())
        self._remove(assignment.key)
        self._running[assignment.key] = assignment
        self.used_slots += self._ranks.slots(assignment.rung)

    def lose(self, report: Report) -> None:
        """End an attempt that another one will follow."""
        self._end(report)
        self._journal.lost(report)

    def finish(self, report: Report) -> tuple[int, ...]:
        """End the assignment. Returns the trials that get no further one, ascending."""
        self._end(report)
        self._progress.run += 1
        return self.conclude(report)

    def skip(self, slot: Slot) -> None:
        """Answer a slot for a trial that the reserve has trained, instead of beginning an assignment."""
        self._journal.skipped(slot.trial_id)
        self._stop(self._decider.skip(slot))

    def drop(self, trial_id: int) -> None:
        """Take a trial that waits out of the search. Its place goes to another one."""
        self._stop(self._decider.drop(trial_id))

    def finish_repeat(self, report: Report) -> None:
        """End the training of a finalist with another seed. Nobody needs its model."""
        self._end(report)
        self._journal.repeated(report)
        self._progress.run += 1
        self._spend_repeat(report)
        self._retention.tidy(*report.key)

    def replay_repeat(self, report: Report) -> None:
        self._progress.replayed += 1
        self._spend_repeat(report)

    def _spend_repeat(self, report: Report) -> None:
        """Count what a training with another seed has used; the resource of a fold is its number."""
        self._progress.resource_spent += report.resource if report.fold is None else 1

    def finish_fold(self, report: Report) -> None:
        """End the assignment of one fold."""
        self._end(report)
        self._journal.fold_reported(report)
        self._progress.run += 1
        if report.attempt > 1 or report.failure is not None or report.is_pruned:
            self._retention.tidy(*report.key)

    def conclude(self, report: Report) -> tuple[int, ...]:
        """Record the report of a slot. Returns the trials that get no further assignment, ascending."""
        self._journal.reported(report)
        return self._settle(report)

    def finish_alone(self, report: Report) -> None:
        """End an assignment after the search: an evaluation on the test split, or a final model.

        Its time is not that of the search, whose slots are counted.
        """
        self._remove(report.key)
        if report.failure is not None:
            self._journal.lost(report)
            return
        self._journal.reported(report)
        if report.split is Split.TRAIN:
            self.replay_final(report)
            self._retention.tidy(report.trial_id)

    def replay_skip(self, trial_id: int) -> None:
        slot = self._decider.next_slot(trial_id)
        if slot is None or slot.trial_id != trial_id:
            raise JournalError(
                f"the journal skips a slot of trial {trial_id}, but the scheduler decides {slot}"
            )
        self._stop(self._decider.skip(slot))

    def replay_begin(self, assignment: Assignment) -> Slot:
        self._keep_for_children(assignment)
        self._retention.keep(Owner(Role.TRIAL, assignment.trial_id), assignment.checkpoint)
        return self._decider.restart(assignment)

    def replay_finish(self, report: Report) -> None:
        self._settle(report)
        self._progress.replayed += not self._journal.trials[report.trial_id].has_folds

    def replay_fold(self) -> None:
        self._progress.replayed += 1

    def replay_final(self, report: Report) -> None:
        """Keep the checkpoint of a final model until there is a better trial."""
        self._retention.keep(BEST, report.checkpoint)

    def sweep(self, unfinished: Collection[AssignmentKey]) -> None:
        """Delete the checkpoints that nothing needs. Ends a replay, which deletes none.

        Args:
            unfinished: assignments whose next attempt continues from what the last one has saved.
        """
        self._retention.sweep(unfinished)

    def _end(self, report: Report) -> None:
        self._remove(report.key)
        self._progress.busy_seconds += report.seconds * self._ranks.slots(report.rung)

    def _remove(self, key: AssignmentKey) -> None:
        """Remove an attempt from those in flight, if it is one: what waits for another attempt is not."""
        assignment = self._running.pop(key, None)
        if assignment is not None:
            self.used_slots -= self._ranks.slots(assignment.rung)

    def _stop(self, stopped: Collection[int]) -> None:
        self._journal.settled(stopped, TrialState.STOPPED)
        for trial_id in stopped:
            self._retention.keep(Owner(Role.TRIAL, trial_id), None)
            self._retention.keep(Owner(Role.PEAK, trial_id), None)

    def _keep_candidates(self) -> None:
        """Keep the checkpoints from which the reserve would train on, and those of the finalists."""
        candidates, trials = self._decider.reserve.unfinished(), self._journal.trials
        self._keep_only(Role.CANDIDATE, {t: trials[t].checkpoint for t in candidates})
        if self._keeps_peaks:
            self._keep_only(Role.CANDIDATE_PEAK, {t: self._peak(t) for t in candidates})
        finalists = self._incumbents.finalists(self._decider.num_finalists)
        self._keep_only(Role.FINALIST, {trial.trial_id: trial.checkpoint for trial in finalists})

    def _peak(self, trial_id: int) -> str | None:
        """Return the best checkpoint of a trial."""
        at_best = self._incumbents.at_best(trial_id)
        return None if at_best is None else at_best.checkpoint

    def _keep_only(self, role: Role, checkpoints: Mapping[int, str | None]) -> None:
        """Keep these checkpoints, by trial, and release the others of the role."""
        for trial_id, checkpoint in checkpoints.items():
            self._retention.keep(Owner(role, trial_id), checkpoint)
        for trial_id in self._kept[role] - checkpoints.keys():
            self._retention.keep(Owner(role, trial_id), None)
        self._kept[role] = frozenset(checkpoints)

    def _keep_for_children(self, assignment: Assignment) -> None:
        """Keep the checkpoint at which the scheduler left a trial, if other trials may start from it."""
        if assignment.purpose is Purpose.FINISH and self._decider.has_parents:
            self.left_at[assignment.trial_id] = assignment.checkpoint
            self._retention.keep(Owner(Role.PARENT, assignment.trial_id), assignment.checkpoint)

    def _settle(self, report: Report) -> tuple[int, ...]:
        decision = self._decider.tell(report)
        self._journal.settled(decision.stopped, TrialState.STOPPED)
        if decision.is_complete:
            self._journal.settled([report.trial_id], TrialState.COMPLETED)
        # The trial as of this report: in a replay the journal has its last state.
        trial = as_reported(self._journal.trials[report.trial_id], report, decision.score)
        self._incumbents.note(trial, decision.slot, is_complete=decision.is_complete)
        self._decider.reserve.note(trial, decision.slot)
        self._retention.keep(Owner(Role.TRIAL, report.trial_id), report.checkpoint)
        if self._keeps_peaks:
            self._retention.keep(Owner(Role.PEAK, report.trial_id), self._peak(report.trial_id))
        self._keep_candidates()
        for trial_id in decision.ended:
            self._retention.keep(Owner(Role.TRIAL, trial_id), None)
            self._retention.keep(Owner(Role.PEAK, trial_id), None)
        if report.attempt > 1 or report.failure is not None or report.is_pruned:
            self._retention.tidy(report.trial_id)
        self._progress.resource_spent += decision.resource_spent
        self._progress.failed += report.failure is not None
        return decision.ended
