"""The events of the journal, and the work of each driver that they record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from spark_hpo.config import SearchConfig
from spark_hpo.errors import StudyInterrupted
from spark_hpo.redact import redact
from spark_hpo.trial import Assignment, Report

_MOST_MESSAGE = 2_000  # characters of an error


class EventKind(StrEnum):
    """The kinds of events. `study/attempts.py` writes those about assignments and trials."""

    OPENED = "opened"  # a driver has started; has the facts about it, and which older events it has read
    ASSIGNED = "assigned"  # an assignment is about to be submitted
    REPORTED = "reported"  # an assignment has ended for good; with folds, all folds of a slot have
    FOLD = "fold"  # the assignment of one fold has ended for good
    LOST = "lost"  # an attempt has ended without a result; another one follows
    SETTLED = "settled"  # trials are stopped or completed
    BUDGET = "budget"  # the number of trials that may start has changed
    CONFIRMING = "confirming"  # the finalists are chosen, which are trained again with other seeds
    REPEATED = "repeated"  # the training of a finalist with another seed has ended for good
    RESERVE = "reserve"  # the budget is spent, and the best trials are trained to the end
    SKIPPED = "skipped"  # the scheduler promoted a trial that has been trained to the end already
    STEERED = "steered"  # a request was answered; has the request, the answer, and what follows from it
    SLOTS = "slots"  # the number of assignments that fit at once has changed
    CLOSED = "closed"  # a driver has ended; see `Ending`


class Outcome(StrEnum):
    """The outcome of a driver's work."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of one driver's work."""

    outcome: Outcome
    reason: str  # finished: the part of the budget or the stopping rule; failed: the type of the error
    message: str = ""  # of the error

    @classmethod
    def of(cls, error: BaseException) -> Ending:
        """The ending of a driver that an error or an interrupt stops."""
        if isinstance(error, KeyboardInterrupt | StudyInterrupted):
            return cls(outcome=Outcome.INTERRUPTED, reason=str(Outcome.INTERRUPTED))
        message = redact(str(error))[:_MOST_MESSAGE]
        return cls(outcome=Outcome.FAILED, reason=type(error).__name__, message=message)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Ending:
        reason = str(record["reason"])
        # Earlier versions wrote the reason only.
        usual = Outcome.INTERRUPTED if reason == Outcome.INTERRUPTED else Outcome.FINISHED
        return cls(
            outcome=Outcome(record.get("outcome", usual)),
            reason=reason,
            message=str(record.get("message", "")),
        )

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"reason": self.reason}
        if self.outcome is not Outcome.FINISHED:
            record["outcome"] = self.outcome
        return {**record, "message": self.message} if self.message else record


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal."""

    sequence: int  # 1, 2, 3, ... over the whole study
    time: float  # wall clock of the driver, seconds since 1970
    kind: EventKind
    data: Mapping[str, Any]

    @property
    def assignment(self) -> Assignment:
        return Assignment.from_json(self.data)

    @property
    def report(self) -> Report:
        return Report.from_json(self.data)

    @property
    def ending(self) -> Ending:
        return Ending.from_json(self.data)

    def to_json(self) -> dict[str, Any]:
        return {"sequence": self.sequence, "time": self.time, "event": self.kind, **self.data}


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The work of one driver on a study."""

    opened: float  # wall clock, seconds since 1970
    ended: float  # when it closed the journal, or its last event; now, if it is running
    closed: str | None  # why the search ended; None: running, killed, or ended by an error
    facts: Mapping[str, Any]  # versions, git_commit and command; empty in journals of early versions
    events: tuple[Event, ...]
    paused_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of its work, without that in which the study was paused."""
        return max(0.0, self.ended - self.opened - self.paused_s)


def drivers_of(events: Sequence[Event], now: float | None = None) -> Iterator[Driver]:
    """Yield the drivers whose events these are, in the order of their work.

    Args:
        now: wall clock, if the last driver is running.
    """
    opened = [i for i, event in enumerate(events) if event.kind is EventKind.OPENED]
    is_paused = False
    for begin, end in pairwise([*opened, len(events)]):
        some = tuple(events[begin:end])
        last = some[-1]
        is_closed = last.kind is EventKind.CLOSED
        has_failed = is_closed and last.ending.outcome is Outcome.FAILED
        # Clocks of different machines may disagree, so the last event need not have the latest time.
        ended = max(event.time for event in some)
        if end == len(events) and now is not None and not is_closed:
            ended = max(ended, now)
        paused_s, since = 0.0, some[0].time if is_paused else None
        for event in some:
            if event.kind is EventKind.STEERED and event.data["reply"] == "done":
                if event.data["verb"] == "pause":
                    since = event.time if since is None else since
                elif event.data["verb"] in ("resume", "stop") and since is not None:
                    paused_s, since = paused_s + event.time - since, None
        is_paused = since is not None
        paused_s += 0.0 if since is None else ended - since
        yield Driver(
            paused_s=paused_s,
            opened=some[0].time,
            ended=ended,
            closed=last.ending.reason if is_closed and not has_failed else None,
            facts=some[0].data.get("driver", {}),
            events=some,
        )


def ending_of(events: Iterable[Event]) -> Ending | None:
    """The end of a study's last driver; None when that driver was killed, or still runs.

    A driver that starts no assignment leaves the study as it was: if it fails, for instance because its
    configuration is refused, the ending of the driver before it still holds, and a finished study stays
    finished when such a driver is interrupted.
    """
    latest: Ending | None = None
    ending: Ending | None = None
    has_acted = False

    def settled() -> Ending | None:
        if has_acted:
            return ending
        if ending is None or (latest is not None and ending.outcome is Outcome.FAILED):
            return latest
        is_over = latest is not None and latest.outcome is Outcome.FINISHED
        return latest if is_over and ending.outcome is Outcome.INTERRUPTED else ending

    for event in events:
        if event.kind is EventKind.OPENED:
            latest, ending, has_acted = settled(), None, False
        elif event.kind is EventKind.CLOSED:
            ending = event.ending
        else:
            has_acted = True
    return settled()


def described(assignment: Assignment, search: SearchConfig) -> str:
    """Say what an assignment trains: `trial 17, epochs 2 to 3 of 27`, `trial 17, fold 1 of 5`."""
    if assignment.is_evaluation or assignment.is_final or assignment.repeat is not None:
        return str(assignment)
    begin, end = assignment.resource_from, assignment.resource_to
    if assignment.fold is not None:
        begin, end = assignment.fold - 1, assignment.fold
    return f"trial {assignment.trial_id}, {search.span(begin, end)}"
