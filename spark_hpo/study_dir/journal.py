"""The journal: append-only events in the study directory. Replaying them resumes the study."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType, TracebackType
from typing import Any, Self

from spark_hpo.errors import JournalError, StorageError
from spark_hpo.objective import Objective
from spark_hpo.study_dir.events import Ending, Event, EventKind, Outcome, drivers_of
from spark_hpo.study_dir.finals import Finals, FinalsLog
from spark_hpo.study_dir.journal_logs import VERSION, log_files, log_name, read_logs
from spark_hpo.study_dir.layout import parent_of
from spark_hpo.study_dir.lease import Lease
from spark_hpo.study_dir.storage import Log, Storage
from spark_hpo.trial import Assignment, Report, Split, Trial, TrialState

logger = logging.getLogger(__name__)


class Journal:
    """The state of a study: every decision and every result, in the order in which they happened.

    Each driver writes its own log, `journal/<epoch>`. The first event of a log has the number of events that
    its driver has read from each older log. Events that a driver adds after another one took over are beyond
    that number and are ignored, so no lock is needed to keep them out. A record that a crash has torn is the
    last one of its log and is skipped.

    Every method that records an event returns when the event is durable.
    """

    def __init__(
        self,
        storage: Storage,
        objective: Objective,
        lease: Lease | None = None,
        *,
        events: Sequence[Event] | None = None,
        driver: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the journal of a study.

        Args:
            lease: needed to write.
            events: of the journal, if they have been read already; for a reader without a lease.
            driver: facts about the driver for the report: versions, commit, command.
            clock: seconds since 1970.

        Raises:
            JournalError: a record before the last one is damaged, or was written by a newer version.
        """
        self._storage = storage
        self._clock = clock
        self._objective = objective
        self._lease = lease
        self._trials: dict[int, Trial] = {}
        self._changed: dict[int, None] = {}  # ids of trials, the latest change last
        self._states: Counter[TrialState] = Counter()
        self._finals = FinalsLog()
        self._sequence = 0
        self._log: Log | None = None
        self._is_closed = False
        self.tests: dict[int, Report] = {}  # evaluations on the test split, by trial
        self.finals: dict[int, Report] = {}  # final models of a cross-validation, by trial
        logs = read_logs(storage) if events is None else {}
        # The events of earlier drivers, for the replay.
        self.past: tuple[Event, ...] = ()
        self.follow(events or [event for epoch in sorted(logs) for event in logs[epoch]])
        if lease is not None:
            self._log = storage.log(log_name(lease.epoch))
            self._append(
                EventKind.OPENED,
                {
                    "version": VERSION,
                    "after": {str(epoch): len(events) for epoch, events in logs.items()},
                    **({"driver": dict(driver)} if driver else {}),
                },
            )

    @classmethod
    def open(
        cls,
        storage: Storage,
        objective: Objective,
        *,
        driver: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Journal:
        """Acquire the lease of a study, and read its journal.

        Args:
            driver, clock: as for the constructor.

        Raises:
            JournalError: as for the constructor.
            LeaseError: another driver holds the lease.
        """
        epochs = [epoch for epoch, _ in log_files(storage)]
        lease = Lease.acquire(storage, least_epoch=max(epochs, default=0) + 1)
        try:
            lease.keep_alive()
            return cls(storage, objective, lease, driver=driver, clock=clock)
        except BaseException:  # also an interrupt: nothing else would release the lease
            lease.release()
            raise

    def follow(self, events: Sequence[Event]) -> None:
        """Take events that drivers have written.

        Raises:
            JournalError: an event does not fit the earlier ones, or another version wrote it.
        """
        for event in events:
            try:
                self._apply(event)
            except (KeyError, TypeError, ValueError, AttributeError) as exc:
                raise JournalError(
                    f"{self._storage.url}/journal: cannot read event {event.sequence} ({event.kind}): "
                    f"{exc!r}. Install the version of spark_hpo that wrote it, or use another study_dir"
                ) from exc
        self.past += tuple(events)

    @property
    def storage(self) -> Storage:
        return self._storage

    @property
    def objective(self) -> Objective:
        return self._objective

    @property
    def sequence(self) -> int:
        return self._sequence

    @property
    def trials(self) -> Mapping[int, Trial]:
        return MappingProxyType(self._trials)

    @property
    def states(self) -> Mapping[TrialState, int]:
        """The number of trials in each state, in constant time."""
        return MappingProxyType(self._states)

    def changed_since(self, sequence: int) -> Iterable[Trial]:
        """The trials that an event after this one has changed, in the order of their ids."""
        latest_first = (self._trials[trial_id] for trial_id in reversed(self._changed))
        changed = takewhile(lambda trial: trial.changed_at > sequence, latest_first)
        return sorted(changed, key=lambda trial: trial.trial_id)

    @property
    def seconds(self) -> float:
        """Seconds that earlier drivers worked on the study, without the time between them."""
        return sum(driver.seconds for driver in drivers_of(self.past))

    def assigned(self, assignment: Assignment) -> None:
        self._append(EventKind.ASSIGNED, assignment.to_json())

    def reported(self, report: Report) -> None:
        self._append(EventKind.REPORTED, report.to_json())

    def fold_reported(self, report: Report) -> None:
        self._append(EventKind.FOLD, report.to_json())

    def lost(self, report: Report) -> None:
        self._append(EventKind.LOST, report.to_json())

    def settled(self, trial_ids: Iterable[int], state: TrialState) -> None:
        """Record the final state of trials, unless they are in it already or have failed."""
        changed = [i for i in trial_ids if self._trials[i].state not in (state, TrialState.FAILED)]
        if changed:
            self._append(EventKind.SETTLED, {"trials": changed, "state": state})

    def confirming(self, resources: Mapping[int, int], seeds: int, *, has_folds: bool = False) -> None:
        """Record the finalists.

        Args:
            resources: how far each is trained again, by trial; the best first.
            seeds: the number of other seeds.
            has_folds: each seed trains the folds of the trial.
        """
        chosen = [{"trial": trial_id, "resource": resource} for trial_id, resource in resources.items()]
        folds = {"folds": True} if has_folds else {}
        self._append(EventKind.CONFIRMING, {"finalists": chosen, "seeds": seeds, **folds})

    def repeated(self, report: Report) -> None:
        self._append(EventKind.REPEATED, report.to_json())

    @property
    def finalists(self) -> Finals | None:
        """The finalists; None: they are not chosen, or the search has continued since."""
        return self._finals.finals(self._objective)

    def reserved(self, plan: Mapping[str, Any]) -> None:
        """Record that the search has ended, and which trials are trained to the end; see `Reserve.plan`."""
        self._append(EventKind.RESERVE, plan)

    def skipped(self, trial_id: int) -> None:
        """Record that a promotion needs no assignment, because the trial has been trained to the end."""
        self._append(EventKind.SKIPPED, {"trial_id": trial_id})

    def slots(self, count: int, *, fit: int = 0, num_others: int = 0) -> None:
        """Record the number of assignments that fit at once from now on.

        Args:
            count: of these slots, the study's share.
            fit: slots of the application, if other studies share them.
            num_others: how many other studies do.
        """
        shared = {"of": fit, "shared_with": num_others} if num_others else {}
        self._append(EventKind.SLOTS, {"slots": count, **shared})

    def changed_budget(self, trials: int | None) -> None:
        """Record how many trials may start from now on, where that has changed. None: no limit."""
        self._append(EventKind.BUDGET, {"trials": trials})

    def steered(self, record: Mapping[str, Any]) -> Event:
        """Record the answer to a request, see `study/steering.py`."""
        return self._append(EventKind.STEERED, record)

    @property
    def was_closed(self) -> bool:
        """True if the driver before this one has recorded its end, or there was none."""
        return not self.past or self.past[-1].kind is EventKind.CLOSED

    def closed(self, reason: str) -> None:
        """Record that the search has finished, and by which part of the budget or which rule."""
        self._close_with(Ending(outcome=Outcome.FINISHED, reason=reason))

    def failed(self, error: BaseException) -> None:
        """Record the error or the interrupt that ends this driver, unless an ending is recorded already.

        Never raises: the error that is being handled matters more than a journal that cannot be written.
        """
        if self._is_closed or self._log is None:
            return
        try:
            self._close_with(Ending.of(error))
        except StorageError as exc:
            logger.warning("the journal does not record how this driver ended: %s", exc)

    def _close_with(self, ending: Ending) -> None:
        self._append(EventKind.CLOSED, ending.to_json())
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record the error that ends the driver, if there is one, and let the next driver in."""
        if error is not None:
            self.failed(error)
        self.close()

    def close(self) -> None:
        """Close the log and release the lease. Idempotent."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _append(self, kind: EventKind, data: Mapping[str, Any]) -> Event:
        if self._log is None or self._lease is None:
            raise JournalError(f"{self._storage.url}: the journal is open for reading only")
        self._lease.check()
        event = Event(self._sequence + 1, self._clock(), kind, data)
        self._sequence = event.sequence  # first, because an interrupt in here must not reuse the number
        # JSON has no NaN. Reports contain finite metrics only.
        self._log.append(json.dumps(event.to_json(), separators=(",", ":"), allow_nan=False))
        self._apply(event)
        return event

    def _apply(self, event: Event) -> None:
        self._sequence = event.sequence
        self._finals.add(event)
        match event.kind:
            case EventKind.ASSIGNED:
                assignment = event.assignment
                if assignment.split is Split.VALIDATION and assignment.repeat is None:
                    trial = self._trials.get(assignment.trial_id) or Trial(
                        trial_id=assignment.trial_id,
                        params=assignment.params,
                        state=TrialState.RUNNING,
                        bracket=assignment.bracket,
                        rung=assignment.rung,
                        started_at=event.time,
                        is_define_by_run=assignment.is_define_by_run,
                        parent=parent_of(assignment),
                        has_folds=assignment.fold is not None,
                    )
                    self._put(replace(trial, state=TrialState.RUNNING))
            case EventKind.REPORTED:
                report = event.report
                if report.split is Split.TEST:
                    self.tests[report.trial_id] = report
                elif report.split is Split.TRAIN:
                    self.finals[report.trial_id] = report
                else:
                    trial = self._trials[report.trial_id]
                    score = self._objective.score(report.scored_metrics)
                    self._put(trial.with_report(report, score=score, time=event.time))
            case EventKind.SETTLED:
                for trial_id in event.data["trials"]:
                    state = TrialState(event.data["state"])
                    self._put(replace(self._trials[trial_id], state=state))
            case EventKind.CLOSED:
                Ending.from_json(event.data)  # raises where the record is damaged
            case EventKind.FOLD:
                Report.from_json(event.data)  # raises where the record is damaged
            case (
                EventKind.LOST
                | EventKind.CONFIRMING
                | EventKind.REPEATED
                | EventKind.BUDGET
                | EventKind.RESERVE
                | EventKind.SKIPPED
                | EventKind.STEERED
                | EventKind.SLOTS
                | EventKind.OPENED
            ):
                pass

    def _put(self, trial: Trial) -> None:
        before = self._trials.get(trial.trial_id)
        if before is not None:
            self._states[before.state] -= 1
            del self._changed[trial.trial_id]
        self._states[trial.state] += 1
        self._changed[trial.trial_id] = None
        self._trials[trial.trial_id] = replace(trial, changed_at=self._sequence)
