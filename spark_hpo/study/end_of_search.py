"""Decides when a search ends, and what is trained to the end after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spark_hpo.search.scheduler import Slot
from spark_hpo.study.confirmation import Confirmation
from spark_hpo.study.decider import Decider
from spark_hpo.study.dispatch import Dispatcher
from spark_hpo.study.progress import Budget, Progress
from spark_hpo.study.time_limit import TimeLimit
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import AssignmentKey, Trial

logger = logging.getLogger(__name__)

_LARGEST_SHARE = 0.5  # of a limit that the reserve may hold back, so that small budgets still search


@dataclass(eq=False)
class EndOfSearch:
    """Holds the limits of a study, and its reserve.

    The reserve is what the best trials need to be trained to the end. The search ends when that much is left
    of a limit; a limit of trials needs none, because training a trial further starts no new trial. What the
    best trials turn out not to need goes back to the search. Once a trial is trained by the reserve, the
    search stays ended until a limit changes, also for the next driver: the journal has the decision.
    """

    journal: Journal
    decider: Decider
    dispatcher: Dispatcher
    budget: Budget
    progress: Progress
    confirmation: Confirmation

    def __post_init__(self) -> None:
        self._stop_reason: str | None = None  # of a callback
        self.stopped_by_request: str | None = None  # the same, of a person, who may change their mind
        self._reserved: Mapping[str, Any] | None = None  # the last decision to use the reserve
        self._time = TimeLimit(self.decider, self.dispatcher, self.progress, lambda: self.budget.seconds)
        self._lacks_time = False  # for the finalists: the log says so
        self._left_out: int | None = None  # a trial for whose training there was no time, in the log already

    def stop(self, reason: str) -> None:
        """End the search, without training any trial further."""
        self._stop_reason = self._stop_reason or reason

    def replay(self, plan: Mapping[str, Any]) -> None:
        """Take the decision of an earlier driver to use the reserve."""
        self._reserved = plan

    def reason(self) -> str | None:
        """Return why no further slot of the search is opened; None: the search continues."""
        if (stopped := self._stop_reason or self.stopped_by_request) is not None:
            return stopped
        if self._reserved is not None and self._reserved["limits"] == self._limits:
            return str(self._reserved["reason"])
        budget, progress, decider = self.budget, self.progress, self.decider
        if decider.is_done:
            return "trials" if len(self.journal.trials) == budget.trials else "search_space"
        if budget.resource is not None:
            # Only if there is such a limit: with a thousand slots this sum is most of the driver's time.
            begun = [*progress.running.values(), *self.dispatcher.waiting]
            committed = sum(a.resource_to - a.resource_from for a in begun)
            held_back = self._held_back(self._reserve_resource(), budget.resource)
            if progress.resource_spent + committed + held_back >= budget.resource:
                return "resource"
        is_begun = bool(self.journal.trials)  # at least one trial is started
        if is_begun and not self._time.has_room(self._repeat_seconds(), self.journal.sequence):
            return "seconds"
        return decider.stopping_reason(sum(self._seconds_by_need()))

    @property
    def is_stopped(self) -> bool:
        """True if a callback or a person has asked for the end."""
        return (self._stop_reason or self.stopped_by_request) is not None

    def has_slot(self, reason: str) -> bool:
        """Return whether the reserve has a trial to train, now that the search has ended for this reason."""
        may_finish = not self.is_stopped and reason != "target"  # which was the user's aim
        if may_finish and self.decider.next_finish(self._time.fits) is not None:
            return True
        if may_finish and not self.decider.is_running:
            self._say_left_out()
        return False

    def has_repeat(self) -> bool:
        """Return whether a finalist waits for its training with another seed, after the reserve."""
        # Without a slot of the search or the reserve in flight, which might change the finalists.
        may_begin = not self.is_stopped and not self.decider.is_running
        if not may_begin or not self.confirmation.has_next(self._begun):
            return False
        if self._time.fits_all(self._repeat_seconds()):
            return True
        if not self._begun and not self._lacks_time:
            self._lacks_time = True
            logger.warning(
                "the time that is left does not suffice to train the finalists with other seeds; raise "
                "budget.seconds and run the study again"
            )
        return False

    def next_repeat(self) -> tuple[Trial, int, int | None] | None:
        """Return the next training of a finalist, see `Confirmation.next`; None: none waits."""
        return self.confirmation.next(self._begun) if self.has_repeat() else None

    @property
    def _begun(self) -> set[AssignmentKey]:
        return {*self.progress.running, *(assignment.key for assignment in self.dispatcher.waiting)}

    def next_slot(self, reason: str) -> Slot | None:
        """Open the next slot of the reserve; None: no candidate waits for one.

        Args:
            reason: why the search has ended.
        """
        if not self.has_slot(reason):
            return None
        if self._reserved is None or self._reserved["limits"] != self._limits:
            self._reserve(reason)
        return self.decider.next_finish(self._time.fits)

    def _say_left_out(self) -> None:
        """Log that there is no time to train the best trial to the end, once for each trial."""
        left_s, waiting = self._time.left_s, self.decider.reserve.unfinished()
        if left_s is None or not waiting or waiting[0] == self._left_out:
            return
        self._left_out = waiting[0]
        logger.warning(
            "no time is left to train trial %d, the best so far, to the end (%.4g s are left); raise "
            "budget.seconds and run the study again",
            waiting[0],
            max(0.0, left_s),
        )

    def _reserve(self, reason: str) -> None:
        """Record that the search has ended, and what the reserve trains."""
        needs = self.decider.needs(self._time.fits)
        trials = [need.trial_id for need in needs if need.trial_id is not None]
        resource = sum(need.resource for need in needs)
        each_s = self._finish_seconds()
        seconds = max(max(each_s), sum(each_s) / max(1, self.progress.slots))
        self._reserved = {
            "reason": reason,
            "limits": self._limits,
            "trials": trials,
            "resource": resource,
            "seconds": round(seconds, 3),
        }
        self.journal.reserved(self._reserved)
        names = f"trials {', '.join(map(str, trials))}" if len(trials) > 1 else f"trial {trials[0]}"
        logger.info(
            "the search has ended (%s); training %s, the best so far, to the end: resource %d, about %.4g s",
            reason,
            names,
            resource,
            seconds,
        )

    @property
    def _limits(self) -> dict[str, Any]:
        return asdict(self.budget)

    def _held_back(self, needed: float, limit: float) -> float:
        if not self.journal.trials:  # at least one trial is started
            return 0.0
        return min(needed, _LARGEST_SHARE * limit)

    def _reserve_resource(self) -> int:
        repeats = sum(resource for _, resource in self.confirmation.left())
        return sum(need.resource for need in self.decider.needs(self._time.fits)) + repeats

    def reserve_seconds(self) -> float:
        """Return the seconds that are needed after the search, without open slots.

        The best trials are trained to the end, and the finalists again with other seeds.
        """
        slots = max(1, self.progress.slots)
        finish, repeats = self._finish_seconds(), self._repeat_seconds()
        return sum(max(max(each), sum(each) / slots) for each in (finish, repeats) if each)

    def _seconds_by_need(self) -> list[float]:
        return [*self._finish_seconds(), *self._repeat_seconds()]

    def _finish_seconds(self) -> list[float]:
        return [
            self.decider.speed.seconds(need.resource, need.trial_id)
            for need in self.decider.needs(self._time.fits)
        ]

    def _repeat_seconds(self) -> list[float]:
        speed = self.decider.speed
        return [speed.seconds(resource, t, cautious=True) for t, resource in self.confirmation.left()]
