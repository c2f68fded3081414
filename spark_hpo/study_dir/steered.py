"""The state of a study as requests have changed it, from the events of its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.requests import Reply, Verb

STOPPED_BY = "request"
"""Why a search has ended that somebody has stopped."""


class Course(StrEnum):
    """Whether a study searches. Only a request, or `spark-hpo resume`, leads back to `ON`."""

    ON = "on"
    PAUSED = "paused"
    STOPPED = "stopped"


_COURSES = {Verb.PAUSE: Course.PAUSED, Verb.RESUME: Course.ON, Verb.STOP: Course.STOPPED}


@dataclass(frozen=True, slots=True)
class _Limit:
    configured: float | None  # by the driver that took the request
    changed: float


@dataclass(eq=False)
class Steered:
    """The changes that requests have made so far. The same events give the same state."""

    course: Course = Course.ON
    since: Event | None = None  # the event that set the course; None: nobody has
    dropped: set[int] = field(default_factory=set)  # trials
    all_ranges: list[dict[str, list[Any]]] = field(default_factory=list)  # of the space; the last ones hold
    answered: dict[str, tuple[Reply, str]] = field(default_factory=dict)  # by the id of the request

    def __post_init__(self) -> None:
        self._limits: dict[str, _Limit] = {}

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        steered = cls()
        for event in events:
            if event.kind is EventKind.STEERED:
                steered.apply(event)
        return steered

    def apply(self, event: Event) -> None:
        """Take an event STEERED into account."""
        data = event.data
        reply, verb, effect = Reply(data["reply"]), Verb(data["verb"]), data.get("effect", {})
        if data["request"]:
            self.answered[data["request"]] = reply, str(data["message"])
        if reply is not Reply.DONE:
            return
        if verb in _COURSES:
            self.course, self.since = _COURSES[verb], event
        self.dropped.update(effect.get("dropped", ()))
        if "ranges" in effect:
            self.all_ranges.append(dict(effect["ranges"]))
        for key, (configured, changed) in effect.get("budget", {}).items():
            self._limits[key] = _Limit(configured, changed)

    @property
    def ranges(self) -> Mapping[str, list[Any]]:
        """The ranges that differ from those with which the study began."""
        return self.all_ranges[-1] if self.all_ranges else {}

    def limit(self, key: str, configured: float | None) -> float | None:
        """Return a limit of the budget: the changed one, unless the configuration has changed since."""
        limit = self._limits.get(key)
        return configured if limit is None or limit.configured != configured else limit.changed
