"""The state of a study as requests have changed it, from the events of its journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from spark_hpo.errors import ConfigError
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.requests import Reply, Verb
from spark_hpo.trial import Params, Trial

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

    def check_drop(self, trial_id: int, trials: Mapping[int, Trial]) -> Trial:
        """Return the trial, if it can be dropped.

        Raises:
            ConfigError: there is no such trial, or it gets no further assignment anyway.
        """
        trial = trials.get(trial_id)
        if trial is None:
            raise ConfigError(f"there is no trial {trial_id}; the study has trials 0 to {len(trials) - 1}")
        if trial.state.is_out or trial_id in self.dropped:
            state = "dropped" if trial_id in self.dropped else trial.state
            raise ConfigError(f"trial {trial_id} is {state} already")
        return trial


def raised(key: str, now: float | None, amount: str | float) -> float | int:
    """Return the new limit of a budget.

    Args:
        key: of the limit, such as `trials`.
        now: the present limit.
        amount: the new one, or a text such as `+50`.

    Raises:
        ConfigError: there is no limit, or it would be lower.
    """
    if now is None:
        raise ConfigError("has no limit", key=f"budget.{key}")
    text = str(amount).removeprefix("+")
    number = int(text) if text.isdecimal() else float(text)
    limit = now + number if str(amount).startswith("+") else number
    if limit <= now:
        raise ConfigError(
            f"is {now} now, and can only be raised",
            key=f"budget.{key}",
            value=amount,
            cure="To end the search earlier: spark-hpo stop",
        )
    return limit


def check_room(limit: float | None, taken: int) -> None:
    """Check that another trial may start.

    Raises:
        ConfigError: all trials of the budget are taken.
    """
    if limit is not None and taken >= limit:
        raise ConfigError(
            f"all {limit} trials of the budget are taken",
            cure="First extend budget.trials, for example by +1",
        )


def completed(
    complete: Callable[..., Params],
    params: Mapping[str, Any],
    like: int | None,
    trials: Mapping[int, Trial],
    best: Trial | None,
) -> Params:
    """Return a configuration; missing values come from the trial `like`, or from the best one.

    Args:
        complete: takes values, and other parameters that have the missing ones, as `Steerable.completed`.

    Raises:
        ConfigError: the configuration does not fit the space, or there is no trial `like`.
    """
    if like is not None:
        if like not in trials:
            raise ConfigError(f"there is no trial {like}")
        return complete(params, like=trials[like].params)
    try:
        return complete(params, like=None)
    except ConfigError:
        if best is None:
            raise
        return complete(params, like=best.params)
