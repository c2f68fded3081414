"""The content of a study directory: the source of all reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from spark_hpo.config import ObjectiveConfig, SearchConfig, StoppingConfig
from spark_hpo.errors import JournalError
from spark_hpo.objective import Choice, Objective
from spark_hpo.ranking import Contest, as_reported, by_score, with_final
from spark_hpo.redact import redact
from spark_hpo.search.space import Space
from spark_hpo.search.space.ranges import widest
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.events import (
    Driver,
    Ending,
    Event,
    EventKind,
    Outcome,
    described,
    drivers_of,
    ending_of,
)
from spark_hpo.study_dir.finals import Finals
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.steered import Steered
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, AssignmentKey, Report, Split, Trial, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt of an assignment: in flight, reported or lost."""

    assignment: Assignment
    began: float  # wall clock, seconds since 1970
    ended: float | None = None  # None: in flight, or its driver died
    report: Report | None = None
    is_lost: bool = False  # another attempt followed
    is_merged: bool = False  # stands for the folds of a slot


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyRecord:
    """The content of a study directory at one moment."""

    url: str  # of the study directory
    definition: Definition
    objective: Objective
    search: SearchConfig
    stopping: StoppingConfig
    choice: Choice = field(default_factory=Choice)  # of the best trial
    space: Space  # the smallest one that contains all trials
    trials: Mapping[int, Trial]
    tests: Mapping[int, Report]  # by trial: its evaluation on the test split
    finals: Mapping[int, Report] = field(default_factory=dict)  # by trial: its final model, after folds
    drivers: Sequence[Driver]
    is_running: bool
    finalists: Finals | None = None  # trained again with other seeds; None: not chosen
    constant: ConstantAnswer | None = None  # None: not known, as before the end of the search
    known_attempts: Sequence[Attempt] | None = None  # of a `StudyReader`; None: they follow from the events

    @classmethod
    def read(
        cls, storage: Storage, *, is_running: bool | None = None, journal: Journal | None = None
    ) -> StudyRecord:
        """Read the study in a directory without a lease, so its driver may write meanwhile.

        Args:
            is_running: whether a driver is running; None: read the lease.
            journal: of the study, if it has been read already.

        Raises:
            ConfigError: there is no study.
            JournalError: its files are damaged.
        """
        definition = Definition.require(storage)
        config = definition.config
        try:
            objective = ObjectiveConfig.model_validate(config["objective"]).build()
            search = SearchConfig.model_validate(config["search"])
            stopping = StoppingConfig.model_validate(config.get("stopping", {}))
            space = Space.from_json(config["space"])
            choice = definition.choice
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as exc:
            raise JournalError(
                f"{storage.url}/study.json is damaged or of another version: {type(exc).__name__}; "
                "install the spark_hpo that wrote it"
            ) from None  # the cause would show values, which may be credentials
        journal = journal or Journal(storage, objective)
        is_running = is_held(storage) if is_running is None else is_running
        return cls(
            url=redact(storage.url),
            definition=definition,
            objective=objective,
            search=search,
            stopping=stopping,
            choice=choice,
            space=widest(space, Steered.of(journal.past).all_ranges),
            trials=dict(journal.trials),
            tests=dict(journal.tests),
            finals=dict(journal.finals),
            finalists=journal.finalists,
            drivers=tuple(drivers_of(journal.past, time.time() if is_running else None)),
            is_running=is_running,
            constant=ConstantAnswer.load(storage),
        )

    @property
    def first_space(self) -> Space:
        """The space with which the study began."""
        return Space.from_json(self.definition.config["space"])

    @cached_property
    def steered(self) -> Steered:
        """The changes that people have made to the study while it ran."""
        return Steered.of(event for driver in self.drivers for event in driver.events)

    @property
    def name(self) -> str:
        return str(self.definition.config.get("name", "study"))

    @property
    def seed(self) -> int:
        return int(self.definition.config.get("seed", 0))

    @property
    def value_name(self) -> str:
        """The name of the value that trials are ranked by."""
        return self.objective.metric + (" with its penalties" if self.objective.penalties else "")

    @property
    def unit(self) -> str:
        """The unit of a resource, in the plural."""
        return self.search.unit

    def amount(self, resource: int) -> str:
        """Return a resource with its unit: `1 epoch`, `27 epochs`."""
        return self.search.amount(resource)

    def described(self, assignment: Assignment) -> str:
        """Say what an assignment trains: `trial 17, epochs 2 to 3 of 27`."""
        return described(assignment, self.search)

    @property
    def ending(self) -> str | None:
        """Why the search ended; None: it runs, an error has ended it, or its driver was killed."""
        if self.is_running:
            return self.drivers[-1].closed if self.drivers else None
        ending = self._last_ending
        return None if ending is None or ending.outcome is Outcome.FAILED else ending.reason

    @property
    def error(self) -> str | None:
        """The error that ended the last driver; None: no error is in the journal."""
        ending = None if self.is_running else self._last_ending
        if ending is None or ending.outcome is not Outcome.FAILED:
            return None
        return redact(f"{ending.reason}: {ending.message}")

    @cached_property
    def _last_ending(self) -> Ending | None:
        return ending_of(event for driver in self.drivers for event in driver.events)

    @cached_property
    def _all_attempts(self) -> Sequence[Attempt]:
        if self.known_attempts is not None:
            return self.known_attempts
        log = AttemptLog()
        log.add(event for driver in self.drivers for event in driver.events)
        return log.attempts

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts, in the order in which they began."""
        return tuple(attempt for attempt in self._all_attempts if not attempt.is_merged)

    @cached_property
    def reported(self) -> tuple[Attempt, ...]:
        """Attempts that were not lost and reported on the validation split, in the order of the reports.

        The folds of a slot count as one attempt, with the report of the slot.
        """
        done = [a for a in self._all_attempts if a.report is not None and not a.is_lost and _is_training(a)]
        return tuple(sorted(done, key=lambda attempt: attempt.ended or 0.0))

    @property
    def _confirmed(self) -> int | None:
        return None if self.finalists is None else self.finalists.winner

    @property
    def has_confirmed(self) -> bool:
        """True if the best trial has won against other finalists, with other seeds."""
        return self._confirmed is not None

    @cached_property
    def contest(self) -> Contest[Trial]:
        """The results of all trials, without those of other seeds."""
        contest: Contest[Trial] = Contest(self.choice)
        for attempt in self.reported:
            assert attempt.report is not None, "it has reported"
            trial_id, score = attempt.report.trial_id, self.objective.score(attempt.report.scored_metrics)
            if not score.is_finite:
                contest.lose(trial_id)
                continue
            trial = as_reported(self.trials[trial_id], attempt.report, score)
            from_scratch = attempt.assignment.resource_from == 0
            contest.report(trial_id, by_score(trial), trial, from_scratch=from_scratch)
        for trial in self.trials.values():
            if trial.state is TrialState.COMPLETED:
                contest.complete(trial.trial_id)
        return contest

    @cached_property
    def ranking(self) -> tuple[Trial, ...]:
        """Each trial as it was when it was best (a promotion may make it worse).

        The study's best trial is first: by its rule or, if finalists were trained with other seeds, the
        winner. The others follow by value, however long they were trained.
        """
        best = self._confirmed
        if best is None and self.contest.best is not None:
            best = self.contest.best.trial_id
        ranking = sorted(self.contest.by_value(), key=lambda trial: trial.trial_id != best)
        return tuple(with_final(trial, self.finals) for trial in ranking)

    @property
    def best_id(self) -> int | None:
        """The id of the best trial; None: no trial has succeeded yet."""
        return self.ranking[0].trial_id if self.ranking else None

    @cached_property
    def at_best(self) -> tuple[Trial, ...]:
        """All trials by id, each as it was when it was best; as it is now if it has no value."""
        best = {trial.trial_id: trial for trial in self.ranking}
        return tuple(best.get(trial_id, self.trials[trial_id]) for trial_id in sorted(self.trials))

    def worked(self, moment: float) -> float:
        """Return the seconds that drivers worked until a moment, without the time between them."""
        return sum(max(0.0, min(moment, driver.ended) - driver.opened) for driver in self.drivers)

    @property
    def seconds(self) -> float:
        return sum(driver.seconds for driver in self.drivers)


def _is_training(attempt: Attempt) -> bool:
    return attempt.assignment.split is Split.VALIDATION and attempt.assignment.part is None


class AttemptLog:
    """The attempts of a journal, in the order in which they began."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._open: dict[AssignmentKey, int] = {}  # index into `attempts`
        self._folds: dict[int, Attempt] = {}  # the first one of the slot in flight, by trial

    def add(self, events: Iterable[Event]) -> None:
        """Take events in the order of the journal."""
        for event in events:
            if event.kind is EventKind.ASSIGNED:
                self._begin(event)
            elif event.kind in (EventKind.REPORTED, EventKind.FOLD, EventKind.REPEATED, EventKind.LOST):
                self._end(event)

    def _begin(self, event: Event) -> None:
        assignment = event.assignment
        self._open[assignment.key] = len(self.attempts)
        self.attempts.append(Attempt(assignment=assignment, began=event.time))
        if assignment.fold is not None and assignment.repeat is None:
            self._folds.setdefault(assignment.trial_id, self.attempts[-1])

    def _end(self, event: Event) -> None:
        report = event.report
        if (index := self._open.pop(report.key, None)) is not None:
            is_lost = event.kind is EventKind.LOST
            self.attempts[index] = replace(
                self.attempts[index], ended=event.time, report=report, is_lost=is_lost
            )
        elif (first := self._folds.pop(report.trial_id, None)) is not None:
            self.attempts.append(_merged(first, event))


def _merged(first: Attempt, event: Event) -> Attempt:
    assignment = replace(
        first.assignment, fold=None, resource_to=max(first.assignment.resource_to, event.report.resource)
    )
    return replace(first, assignment=assignment, ended=event.time, report=event.report, is_merged=True)
