"""Replays the journal of a study, which brings its parts to the state in which earlier drivers left them."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark_hpo.study.attempts import Attempts
from spark_hpo.study.decider import Decider
from spark_hpo.study.end_of_search import EndOfSearch
from spark_hpo.study.failures import Failures
from spark_hpo.study.folds import Folds
from spark_hpo.study.steering import Steering
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.trial import Assignment, AssignmentKey, Report, Split


@dataclass(eq=False, kw_only=True)
class Replay:
    """Takes the events of a journal in their order.

    A trace: take(ASSIGNED trial 3 to 9 epochs) -> in_flight has it; take(REPORTED trial 3) -> it has not
    """

    decider: Decider
    attempts: Attempts
    failures: Failures
    folds: Folds
    steering: Steering
    end: EndOfSearch
    max_trials: int | None
    """The trials that may start: at first those of the first driver, and then what the events say."""
    in_flight: dict[AssignmentKey, Assignment] = field(default_factory=dict)
    """The last attempts of assignments without a report."""
    finals: dict[int, Assignment] = field(default_factory=dict)
    """The trainings of final models without a report, by trial."""

    def take(self, event: Event) -> None:
        """
        Raises:
            JournalError: the journal was written with other settings.
        """
        match event.kind:
            case EventKind.BUDGET:
                self.max_trials = event.data["trials"]
                self.decider.limit_trials(self.max_trials)
            case EventKind.STEERED:
                self.max_trials = self.steering.replay(event) or self.max_trials
            case EventKind.ASSIGNED if event.assignment.split is Split.VALIDATION:
                self._assigned(event.assignment)
            case EventKind.ASSIGNED if event.assignment.is_final:
                self.finals[event.assignment.trial_id] = event.assignment
            case EventKind.FOLD:
                del self.in_flight[event.report.key]
                self.folds.add(event.report)
                self.attempts.replay_fold()
            case EventKind.RESERVE:
                self.end.replay(event.data)
            case EventKind.REPEATED:
                del self.in_flight[event.report.key]
                self.attempts.replay_repeat(event.report)
            case EventKind.SKIPPED:
                self.attempts.replay_skip(event.data["trial_id"])
            case EventKind.REPORTED:
                self._reported(event.report)

    def _assigned(self, assignment: Assignment) -> None:
        self.failures.replay(assignment)
        is_open = assignment.key in self.in_flight or assignment.trial_id in self.folds
        self.in_flight[assignment.key] = assignment
        if assignment.repeat is not None:
            return
        slot = None if is_open else self.attempts.replay_begin(assignment)
        if assignment.fold is not None:
            if slot is not None:
                self.folds.open(slot)
            self.folds.begin(assignment.trial_id, assignment.fold)

    def _reported(self, report: Report) -> None:
        if report.split is Split.TRAIN:
            self.finals.pop(report.trial_id, None)
            self.attempts.replay_final(report)
        elif report.split is Split.VALIDATION:
            if report.trial_id in self.folds:
                self.folds.close(report.trial_id)
            else:
                del self.in_flight[report.key]
            self.attempts.replay_finish(report)
