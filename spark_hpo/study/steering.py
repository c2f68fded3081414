"""Takes the requests of people who steer a running study."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from spark_hpo.errors import ConfigError
from spark_hpo.study.decider import Decider
from spark_hpo.study.dispatch import Dispatcher
from spark_hpo.study.end_of_search import EndOfSearch
from spark_hpo.study_dir.events import Event
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.requests import Inbox, Reply, Request, Verb
from spark_hpo.study_dir.steered import STOPPED_BY, Course, Steered, check_room, completed, raised
from spark_hpo.trial import Assignment, Params, Report, Trial, TrialState

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.5  # between two looks at the directory
_COURSE = (Verb.PAUSE, Verb.RESUME, Verb.STOP)


@dataclass(frozen=True, slots=True)
class _Effect:
    """What follows from a request, and what a replay needs to repeat."""

    message: str
    data: Mapping[str, Any]


@dataclass(eq=False)
class Steering:
    """Decides on requests, records them, and applies them; a replay applies the recorded ones again.

    The order of the steps lets the driver die between any two of them: the request is in the directory;
    STEERED is in the journal; the answer is written; the request is deleted. A request that is in the journal
    already is only answered again.

    A trace: take(...) reads `narrow lr=[1e-4,1e-2]` -> journal: STEERED; the sampler gets the new space
    """

    journal: Journal
    decider: Decider
    dispatcher: Dispatcher
    end: EndOfSearch  # with the budget of this driver
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.configured = self.end.budget
        self._steered = Steered()
        self._inbox = Inbox(self.journal.storage)
        self._looked_at: float | None = None

    @property
    def is_paused(self) -> bool:
        return self._steered.course is Course.PAUSED

    @property
    def dropped(self) -> set[int]:
        """Trials that are trained no further."""
        return self._steered.dropped

    def replay(self, event: Event) -> int | None:
        """Apply an event STEERED of an earlier driver.

        Returns:
            The number of trials that may start since then, if it has changed.
        """
        self._steered.apply(event)
        return self._apply_to_search(event.data.get("effect", {}))

    @property
    def max_trials(self) -> int | None:
        """The trials that may start since the budget or a grid has changed; None: neither has."""
        size = self.decider.num_configurations
        if self._steered.ranges and size is not None:
            return self._least_trials(size)
        return self.end.budget.trials if self.end.budget.trials != self.configured.trials else None

    def adopt(self) -> None:
        """Apply the limits and the stop that requests have brought, at the end of a replay too."""
        limits = {
            key: self._steered.limit(key, getattr(self.configured, key))
            for key in ("trials", "resource", "seconds")
        }
        self.end.budget = replace(self.configured, **limits)  # type: ignore[arg-type] # whole numbers stay so
        self.end.stopped_by_request = STOPPED_BY if self._steered.course is Course.STOPPED else None

    def open(self, *, lifts: bool) -> None:
        """Begin to take requests.

        Args:
            lifts: undo pause and stop, because the user has asked for the study to be resumed.
        """
        self._inbox.forget_old_answers()
        url = self.journal.storage.url
        if lifts and self._steered.course is not Course.ON:
            lifted = Request(id="", verb=Verb.RESUME, arguments={}, by="this driver")
            self._record(lifted, Reply.DONE, f"the study was {self._steered.course} and resumes", {})
        elif self._steered.course is not Course.ON:
            by = "" if self._steered.since is None else f" by {self._steered.since.data['by']}"
            logger.warning(
                "the study was %s%s and stays so; to resume it: spark-hpo resume %s",
                *(self._steered.course, by, url),
            )
        # They were meant for a driver that has ended since, unless it was killed before it could take them.
        if lifts or self.journal.was_closed:
            self.refuse("another driver has begun to work on the study", only=_COURSE)

    def refuse(self, reason: str, *, only: Sequence[Verb] = tuple(Verb)) -> None:
        """Refuse the requests that wait."""
        for asked in self._inbox.waiting():
            if asked.verb in only and not self._is_answered(asked):
                self._record(asked, Reply.REFUSED, reason, {})

    def take(self, best: Trial | None) -> None:
        """Take the requests that wait, if it is time to look.

        Args:
            best: the best trial so far.
        """
        now = self.clock()
        if self._looked_at is not None and now - self._looked_at < _INTERVAL_S:
            return
        self._looked_at = now
        for asked in self._inbox.waiting():
            if self._is_answered(asked):
                continue
            try:
                effect = self._effect(asked, best)
            except ConfigError as exc:
                self._record(asked, Reply.REFUSED, str(exc), {})
            else:
                self._record(asked, Reply.DONE, effect.message, effect.data)

    def cut(self) -> list[tuple[Assignment, Report]]:
        """Cancel the assignments of dropped trials. Returns them as pruned, for the study to record."""
        return self.dispatcher.cut(self.dropped) if self.dropped else []

    def _is_answered(self, asked: Request) -> bool:
        """Answer a request again that the journal has already, and return whether it has."""
        answer = self._steered.answered.get(asked.id)
        if answer is not None:
            self._inbox.answer(asked.id, *answer)
        return answer is not None

    def _record(self, asked: Request, reply: Reply, message: str, effect: Mapping[str, Any]) -> None:
        event = self.journal.steered(
            {
                "request": asked.id,
                "verb": asked.verb,
                "arguments": asked.arguments,
                "by": asked.by,
                "reply": reply,
                "message": message,
                **({"effect": effect} if effect else {}),
            }
        )
        was = self._steered.course
        self._steered.apply(event)
        self._apply_to_search(effect)
        self._apply_to_driver(was)
        if asked.id:
            self._inbox.answer(asked.id, reply, message)
        is_notable = asked.verb in _COURSE and reply is Reply.DONE  # to whoever watches the driver's terminal
        logger.log(
            logging.WARNING if is_notable else logging.INFO,
            "%s by %s: %s%s",
            asked.verb,
            asked.by,
            "" if reply is Reply.DONE else "refused: ",
            message,
        )

    def _apply_to_search(self, effect: Mapping[str, Any]) -> int | None:
        for trial_id in effect.get("vacated", ()):  # earlier versions left the places empty
            self.dispatcher.attempts.drop(trial_id)
        if "params" in effect:
            self.decider.steerable.add(effect["params"])
        if "ranges" in effect:
            self.decider.change_ranges(effect["ranges"])
        if "max_trials" in effect:
            self.decider.limit_trials(effect["max_trials"])
        return effect.get("max_trials")

    def _apply_to_driver(self, was: Course) -> None:
        self.adopt()
        if self.is_paused and was is not Course.PAUSED:
            self.dispatcher.suspend()
        elif was is Course.PAUSED and not self.is_paused:
            self.dispatcher.end_suspension()

    def _effect(self, asked: Request, best: Trial | None) -> _Effect:
        """Decide on a request.

        Raises:
            ConfigError: what it asks for is not possible; the message says why.
        """
        arguments = asked.arguments
        match asked.verb:
            case Verb.PAUSE:
                return self._pause()
            case Verb.RESUME:
                state = "was paused and resumes" if self.is_paused else "is not paused, and continues"
                if self._steered.course is Course.STOPPED:
                    state = "was being stopped, and continues"
                return _Effect(f"the study {state}", {})
            case Verb.STOP:
                return self._stop(now=arguments["now"] or self.is_paused)
            case Verb.ADD:
                params = self._completed(arguments["params"], arguments["like"], best)
                self._check_room(self.end.reason())
                return _Effect(f"one of the next trials gets {params}", {"params": params})
            case Verb.DROP:
                return self._drop(arguments["trial"])
            case Verb.EXTEND:
                return self._extend(arguments["budget"])
            case Verb.NARROW:
                return self._narrow(arguments["space"])

    def _pause(self) -> _Effect:
        if self._steered.course is Course.STOPPED:
            raise ConfigError("the search is being stopped")
        if self.is_paused:
            return _Effect("the study is paused already", {})
        count, grace_s = len(self.dispatcher.attempts.running), self.dispatcher.policy.grace_s
        saving = f"trials that save their state, within {grace_s:.3g} s: {count}"
        return _Effect(f"paused; {saving if count else 'no trial was running'}", {})

    def _stop(self, *, now: bool) -> _Effect:
        begun = {a.trial_id for a in (*self.dispatcher.attempts.running.values(), *self.dispatcher.waiting)}
        if not now:
            return _Effect(f"the search ends when the running trials have ended: {len(begun)}", {})
        effect = {"dropped": sorted(begun)} if begun else {}
        return _Effect(f"the search ends now; cancelled trials: {len(begun)}", effect)

    def _drop(self, trial_id: int) -> _Effect:
        trial = self._steered.check_drop(trial_id, self.journal.trials)
        effect = {"dropped": [trial_id]}
        if self.decider.waits(trial_id):
            effect["vacated"] = [trial_id]
        how = "is cancelled" if trial.state is TrialState.RUNNING else "will not be promoted"
        return _Effect(f"trial {trial_id} {how}; what it has reported stays", effect)

    def _extend(self, limits: Mapping[str, Any]) -> _Effect:
        changed: dict[str, Any] = {}
        parts: list[str] = []
        for key, amount in limits.items():
            now, configured = getattr(self.end.budget, key), getattr(self.configured, key)
            limit = raised(key, now, amount)
            changed[key] = [configured, limit]
            parts.append(f"budget.{key} is {limit} instead of {now}")
        effect: dict[str, Any] = {"budget": changed}
        if "trials" in changed:
            size, limit = self.decider.num_configurations, changed["trials"][1]
            if size is not None and limit > size:
                raise ConfigError(
                    f"cannot be more than {size}: the sampler has no more configurations",
                    key="budget.trials",
                    value=limit,
                )
            effect["max_trials"] = limit
        return _Effect("; ".join(parts), effect)

    def _narrow(self, ranges: Mapping[str, Any]) -> _Effect:
        every = {**self._steered.ranges, **ranges}
        size = self.decider.check_ranges(every)
        shown = ", ".join(f"{name} in {bounds}" for name, bounds in ranges.items())
        effect: dict[str, Any] = {"ranges": every}
        if size is not None:
            limit = effect["max_trials"] = self._least_trials(size)
            shown += f"; configurations that are left: {limit - self._num_trials}"
        return _Effect(f"from trial {self._num_trials} on: {shown}", effect)

    def _least_trials(self, size: int) -> int:
        """Return how many trials can start: the budget's, if the sampler has as many configurations."""
        limit = self.end.budget.trials
        return size if limit is None else min(limit, size)

    def _check_room(self, ending: str | None) -> None:
        """Check that another trial may start.

        Raises:
            ConfigError: the budget is spent.
        """
        check_room(self.end.budget.trials, self._num_trials + self.decider.steerable.num_added)
        if ending is not None:
            raise ConfigError(f"the search is ending ({ending})")

    def _completed(self, params: Mapping[str, Any], like: int | None, best: Trial | None) -> Params:
        """Return a configuration; missing values come from another trial, or from the best one."""
        return completed(self.decider.steerable.completed, params, like, self.journal.trials, best)

    @property
    def _num_trials(self) -> int:
        return len(self.journal.trials)
