"""The state of a study in a few numbers, which each event of its journal changes in constant time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from spark_hpo.config import ObjectiveConfig, SearchConfig, StoppingConfig
from spark_hpo.errors import JournalError
from spark_hpo.objective import NO_SCORE, Objective, Score
from spark_hpo.ranking import Contest
from spark_hpo.report.status import Spent, StudyState
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.events import Ending, Event, EventKind, Outcome, described, ending_of
from spark_hpo.study_dir.finals import FinalsLog
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.lease import Holder
from spark_hpo.study_dir.steered import Course, Steered
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, AssignmentKey, Split, TrialState, part_of

_LATEST = 8  # events that the page lists
_POINTS = 200  # that an open page may lack
_REPORTS = (EventKind.REPORTED, EventKind.FOLD, EventKind.REPEATED, EventKind.LOST)


@dataclass(frozen=True, slots=True)
class Step:
    """An improvement of the best value."""

    seconds: float  # in which a driver ran, until then
    resource: int  # epochs (or parts) that all trials trained until then
    value: float  # in the user's direction


@dataclass(frozen=True, slots=True)
class Point:
    """A result that has just arrived, for a picture that was drawn before."""

    sequence: int  # of its event
    seconds: float  # in which a driver ran, until then
    value: float
    rung: int
    label: str
    best: float  # value so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best trial so far, as it was reported."""

    trial_id: int
    value: float
    resource: int


@dataclass(eq=False)
class Tally:
    """What the list of studies and the top of a study's page show.

    It holds a few numbers per trial and neither events nor reports: about 8 MB for 10,000 trials.
    """

    definition: Definition
    settings: Settings | None
    objective: Objective = field(init=False)
    search: SearchConfig = field(init=False)
    price: float | None = field(init=False)  # per slot hour
    states: dict[int, TrialState] = field(default_factory=dict)
    running: dict[AssignmentKey, float] = field(default_factory=dict)  # when the attempt began
    steps: list[Step] = field(default_factory=list)
    slots: int | None = None
    resource: int = 0  # trained by all trials
    slot_s: float = 0.0  # of all attempts that ended
    lost: int = 0  # attempts
    drivers: int = 0
    sequence: int = 0  # of the last event
    steered: Steered = field(default_factory=Steered)
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=_POINTS))
    latest: deque[Event] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def __post_init__(self) -> None:
        config = self.definition.config
        try:
            self.objective = ObjectiveConfig.model_validate(config["objective"]).build()
            self.search = SearchConfig.model_validate(config["search"])
            self._contest: Contest[Best] = Contest(self.definition.choice)
            self.price = StoppingConfig.model_validate(config.get("stopping", {})).price_per_slot_hour
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            raise JournalError(f"study.json is damaged or of another version: {type(exc).__name__}") from None
        self._counts: Counter[TrialState] = Counter()
        self._rank: tuple[int, Score] = (0, NO_SCORE)
        self._finals = FinalsLog()
        self._begun: dict[AssignmentKey, tuple[int, str]] = {}  # resource_from and split
        self._resources: dict[int, int] = {}  # by trial, before the slot in flight
        self._with_folds: set[int] = set()
        self._worked = 0.0  # by earlier drivers
        self._opened = self._ended = 0.0  # of the last driver
        self._few: list[Event] = []  # that say how drivers ended

    @classmethod
    def begin(cls, storage: Storage) -> Tally:
        """Start with no events.

        Raises:
            ConfigError: there is no study.
            JournalError: its files are damaged.
        """
        return cls(Definition.require(storage), Settings.load(storage))

    @property
    def name(self) -> str:
        return str(self.definition.config.get("name", "study"))

    def amount(self, resource: int) -> str:
        """Return a resource with its unit: `27 epochs`."""
        return self.search.amount(resource)

    def described(self, assignment: Assignment) -> str:
        """Say what an assignment trains: `trial 17, epochs 2 to 3 of 27`."""
        return described(assignment, self.search)

    @property
    def is_closed(self) -> bool:
        """True if the last driver has recorded its end."""
        return bool(self._few) and self._few[-1].kind is EventKind.CLOSED

    def add(self, events: Iterable[Event]) -> None:
        """Take events in the order of the journal."""
        for event in events:
            self._add(event)
            self.sequence = event.sequence
            self._ended = max(self._ended, event.time)
            self.latest.append(event)

    def _add(self, event: Event) -> None:
        data = event.data
        self._finals.add(event)
        if event.kind is EventKind.OPENED:
            self._worked += self._ended - self._opened
            self._opened = self._ended = event.time
            self.drivers += 1
            self.running.clear()
            self._begun.clear()
        elif event.kind is EventKind.SLOTS:
            self.slots = int(data["slots"])
        elif event.kind is EventKind.ASSIGNED:
            self._start(event)
        elif event.kind in _REPORTS:
            self._report(event)
        elif event.kind is EventKind.SETTLED:
            for trial_id in data["trials"]:
                self._put(trial_id, TrialState(data["state"]))
                if data["state"] == TrialState.COMPLETED:
                    self._contest.complete(trial_id)
        elif event.kind is EventKind.STEERED:
            self.steered.apply(event)
        if event.kind in (EventKind.OPENED, EventKind.CLOSED):
            self._few.append(event)
        elif self._few and self._few[-1].kind is not EventKind.SLOTS:
            # One event that is neither stands for all: the driver has acted.
            self._few.append(Event(event.sequence, event.time, EventKind.SLOTS, {}))

    def _start(self, event: Event) -> None:
        trial_id, fold = key = _key(event)
        self.running[key] = event.time
        self._begun[key] = event.data["resource_from"], event.data["split"]
        if event.data["split"] == Split.VALIDATION and event.data.get("repeat") is None:
            self._put(trial_id, TrialState.RUNNING)
            if fold is not None:
                self._with_folds.add(trial_id)

    def _report(self, event: Event) -> None:
        data, key = event.data, _key(event)
        self.running.pop(key, None)
        begun, split = self._begun.pop(key, (self._resources.get(key[0], 0), data.get("split", "validation")))
        is_merged = event.kind is EventKind.REPORTED and key[0] in self._with_folds
        if not (is_merged and split == Split.VALIDATION):
            self.slot_s += data.get("seconds", 0.0)
        self.lost += event.kind is EventKind.LOST
        if event.kind is EventKind.REPEATED:
            self.resource += data["resource"] if data.get("fold") is None else 1
        if event.kind is not EventKind.REPORTED or split != Split.VALIDATION:
            return
        trial_id = key[0]
        from_scratch = begun == 0
        self.resource += data["resource"] - begun
        self._resources[trial_id] = data["resource"]
        has_failed, is_pruned = data.get("failure") is not None, data.get("is_pruned", False)
        self._put(
            trial_id,
            TrialState.FAILED if has_failed else TrialState.STOPPED if is_pruned else TrialState.PAUSED,
        )
        if has_failed or is_pruned:
            self._contest.lose(trial_id)
        else:
            self._score(event, trial_id, from_scratch=from_scratch)

    def _put(self, trial_id: int, state: TrialState) -> None:
        if (before := self.states.get(trial_id)) is not None:
            self._counts[before] -= 1
        self._counts[state] += 1
        self.states[trial_id] = state

    def _score(self, event: Event, trial_id: int, *, from_scratch: bool) -> None:
        metrics, resource = event.data["metrics"], event.data["resource"]
        score = self.objective.score(metrics)
        if not score.is_finite:
            self._contest.lose(trial_id)
            return
        value = float(metrics[self.objective.metric])
        rank = (-resource if trial_id in self._with_folds else 0, score)
        found = Best(trial_id=trial_id, value=value, resource=resource)
        self._contest.report(trial_id, (*rank, -resource, trial_id), found, from_scratch=from_scratch)
        if rank < self._rank:
            self._rank = rank
            if not score.violation:
                self.steps.append(Step(self.worked(event.time), self.resource, value))
        if not score.violation and self.steps:
            label = f"trial {trial_id}, {self.amount(resource)}"
            best, seconds = self.steps[-1].value, self.worked(event.time)
            self.points.append(Point(event.sequence, seconds, value, event.data["rung"], label, best))

    @property
    def best(self) -> Best | None:
        """The best trial so far."""
        winner = self._finals.winner(self.objective)
        return self._contest.best if winner is None else self._contest.at_best(winner)

    def worked(self, now: float) -> float:
        """Return the seconds that drivers worked until a moment, without the time between them."""
        return self._worked + max(0.0, now - self._opened) if self.drivers else 0.0

    @property
    def _out(self) -> int:
        return sum(count for state, count in self._counts.items() if state.is_out)

    def ending(self) -> Ending | None:
        """Return how the last driver ended."""
        return ending_of(self._few)

    def look(self, holder: Holder | None, forecast: Forecast | None = None) -> Look:
        """Return the study as it is now.

        Args:
            holder: the last driver.
            forecast: of that driver; None: it has written none.
        """
        is_running, now = holder is not None and holder.seems_alive(), time.time()
        seconds = self.worked(now if is_running and not self.is_closed else self._ended)
        is_paused = is_running and self.steered.course is Course.PAUSED
        left_s = None if forecast is None else forecast.left_s(now)
        counts = self._counts
        names = {} if is_running else {TrialState.RUNNING: "unfinished"}
        return Look(
            state=self._state(holder, is_running=is_running),
            is_paused=is_paused,
            trials={names.get(state, str(state)): counts[state] for state in TrialState if counts[state]},
            busy=len(self.running) if is_running else 0,
            slots=self.slots if is_running else None,
            seconds=seconds,
            slot_s=self.slot_s,
            money=None if self.price is None else self.slot_s / 3600 * self.price,
            budget=self._budget(seconds),
            seconds_left=left_s if is_running and not (self.is_closed or is_paused) else None,
        )

    def _state(self, holder: Holder | None, *, is_running: bool) -> StudyState:
        if is_running:
            return StudyState.RUNNING
        ending = self.ending()
        if ending is None:
            return StudyState.FAILED if holder is not None and holder.released else StudyState.DEAD
        if ending.outcome is Outcome.FAILED:
            return StudyState.FAILED
        is_interrupted = ending.outcome is Outcome.INTERRUPTED
        return StudyState.INTERRUPTED if is_interrupted else StudyState.FINISHED

    def _budget(self, seconds: float) -> tuple[Spent, ...]:
        config: Any = self.definition.config if self.settings is None else self.settings.config
        budget = config.get("budget") or {}
        spent: dict[str, tuple[str, float]] = {
            "trials": ("trials", self._out),
            "resource": (self.search.unit, self.resource),
        }
        spent["seconds"] = ("seconds", seconds)
        limits = {
            key: self.steered.limit(key, limit)
            for key in spent
            if isinstance(limit := budget.get(key), int | float | None)
        }
        return tuple(
            Spent(kind=kind, spent=float(amount), limit=float(limit))
            for key, (kind, amount) in spent.items()
            if (limit := limits.get(key)) is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A study at one moment."""

    state: StudyState
    is_paused: bool  # by a request; its driver waits
    trials: dict[str, int]  # by state
    busy: int  # slots
    slots: int | None  # None: not reported, or no driver runs
    seconds: float  # that drivers worked
    slot_s: float
    money: float | None  # None: there is no price
    budget: tuple[Spent, ...]
    seconds_left: float | None  # None: not known

    @property
    def num_trials(self) -> int:
        return sum(self.trials.values())


def _key(event: Event) -> AssignmentKey:
    return event.data["trial_id"], part_of(event.data.get("fold"), event.data.get("repeat"))
