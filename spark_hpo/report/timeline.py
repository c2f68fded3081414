"""The use of slots over time: how many were busy, and why the others were idle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.events import Driver, Event, EventKind
from spark_hpo.study_dir.steered import Course, Steered
from spark_hpo.trial import AssignmentKey, FailureKind, Split, part_of


class Use(StrEnum):
    """The use of a slot, or why it is not used."""

    BUSY = "busy"
    TESTING = "idle: testing the best trial"
    WAITING = "idle: waiting for the next report"
    DECIDING = "idle: the driver was deciding"
    RETRYING = "idle: waiting to retry a lost attempt"
    STARTING = "idle: the driver was starting"
    ENDING = "idle: finishing the last trials"
    PAUSED = "paused: left to other studies"
    GONE = "lost: the cluster had fewer slots than before"


@dataclass(frozen=True, slots=True)
class Segment:
    """A period in which the use of all slots stayed the same."""

    begin: float  # wall clock, seconds since 1970
    end: float
    slots: Mapping[Use, int]


@dataclass(frozen=True, slots=True)
class Gap:
    """A period between two drivers."""

    begin: float
    end: float
    was_interrupted: bool  # False: the driver before was killed or failed

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All slots of a study, from its first driver to its last."""

    segments: tuple[Segment, ...]
    gaps: tuple[Gap, ...]
    is_counted: bool  # False: an early journal, so slots are estimated by the most attempts at once

    @property
    def most(self) -> int:
        """The largest number of slots."""
        return max((sum(segment.slots.values()) for segment in self.segments), default=0)

    @property
    def totals(self) -> dict[Use, float]:
        """Slot seconds by use, without uses that did not occur."""
        totals = dict.fromkeys(Use, 0.0)
        for segment in self.segments:
            for use, count in segment.slots.items():
                totals[use] += count * (segment.end - segment.begin)
        return {use: seconds for use, seconds in totals.items() if seconds > 0}

    @property
    def busy_share(self) -> float | None:
        """Busy slot time as a share of the available slot time; None: no slot was available."""
        totals = self.totals
        available = sum(seconds for use, seconds in totals.items() if use not in (Use.GONE, Use.PAUSED))
        return totals.get(Use.BUSY, 0.0) / available if available else None


@lru_cache(maxsize=1)  # a picture and the words of one record ask for it
def timeline_of(record: StudyRecord) -> Timeline:
    """Return the use of all slots over time.

    The reason why a slot was idle follows from the next event: before an assignment the driver was deciding;
    before a report it was waiting for that report.
    """
    steered = Steered()
    counted = [any(event.kind is EventKind.SLOTS for event in driver.events) for driver in record.drivers]
    gaps = [
        Gap(before.ended, after.opened, before.closed == "interrupted")
        for before, after in pairwise(record.drivers)
        if after.opened > before.ended
    ]
    return Timeline(
        segments=tuple(segment for driver in record.drivers for segment in _segments(driver, steered)),
        gaps=tuple(gaps),
        is_counted=all(counted) and bool(counted),
    )


def _segments(driver: Driver, steered: Steered) -> Iterator[Segment]:
    slots = _first_count(driver.events)
    peak = slots
    running: dict[AssignmentKey, Split] = {}
    lost: set[AssignmentKey] = set()  # assignments that wait for the next attempt
    has_begun = False
    last_start = max((i for i, event in enumerate(driver.events) if _is_start(event)), default=-1)
    ends = [*(event.time for event in driver.events[1:]), driver.ended]
    coming = _coming(driver.events)
    moment = driver.opened
    for i, event in enumerate(driver.events):
        match event.kind:
            case EventKind.SLOTS:
                slots = int(event.data["slots"])
                peak = max(peak, slots)
            case EventKind.ASSIGNED:
                has_begun = True
                running[_key(event)] = Split(event.data["split"])
                lost.discard(_key(event))
            case EventKind.STEERED:
                steered.apply(event)
            case EventKind.REPORTED | EventKind.FOLD | EventKind.REPEATED | EventKind.LOST:
                running.pop(_key(event), None)
                if event.kind is EventKind.LOST and not _was_asked_to_stop(event):
                    lost.add(_key(event))
        end = max(moment, ends[i])
        if end > moment:
            busy = len(running)
            idle = max(0, slots - busy)
            retrying = min(idle, len(lost))
            if steered.course is Course.PAUSED:
                reason, retrying = Use.PAUSED, 0
            elif not has_begun:
                reason = Use.STARTING
            elif Split.TEST in running.values():
                reason = Use.TESTING
            elif driver.closed is not None and i >= last_start:
                reason = Use.ENDING
            else:
                reason = Use.DECIDING if coming[i] is EventKind.ASSIGNED else Use.WAITING
            gone = max(0, peak - max(slots, busy))
            uses = {Use.BUSY: busy, Use.RETRYING: retrying, reason: idle - retrying, Use.GONE: gone}
            yield Segment(moment, end, {use: count for use, count in uses.items() if count})
        moment = end


def _key(event: Event) -> AssignmentKey:
    return event.data["trial_id"], part_of(event.data.get("fold"), event.data.get("repeat"))


def _is_start(event: Event) -> bool:
    return event.kind is EventKind.ASSIGNED and event.data["split"] == Split.VALIDATION


def _was_asked_to_stop(event: Event) -> bool:
    failure = event.data.get("failure") or {}
    return bool(failure.get("kind") == FailureKind.INTERRUPTED)


def _coming(events: Sequence[Event]) -> list[EventKind | None]:
    """Return, for each event, the kind of the next event that starts or ends an attempt."""
    coming: list[EventKind | None] = []
    following: EventKind | None = None
    for event in reversed(events):
        coming.append(following)
        if event.kind in (
            EventKind.ASSIGNED,
            EventKind.REPORTED,
            EventKind.FOLD,
            EventKind.REPEATED,
            EventKind.LOST,
        ):
            following = event.kind
    return coming[::-1]


def _first_count(events: Sequence[Event]) -> int:
    """Return the slots at the beginning: as recorded or, in early journals, the most attempts at once."""
    for event in events:
        if event.kind is EventKind.SLOTS:
            return int(event.data["slots"])
    running: set[AssignmentKey] = set()
    most = 0
    for event in events:
        if event.kind is EventKind.ASSIGNED:
            running.add(_key(event))
        elif event.kind in (EventKind.REPORTED, EventKind.FOLD, EventKind.REPEATED, EventKind.LOST):
            running.discard(_key(event))
        most = max(most, len(running))
    return most
