"""Plans the end of a study with a limit of time, so that all that has to be trained ends before the limit."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spark_hpo.search.scheduler import Slot
from spark_hpo.study.decider import Decider
from spark_hpo.study.dispatch import Dispatcher
from spark_hpo.study.progress import Progress
from spark_hpo.study.reserve import Need

_MARGIN = 0.1  # of a planned time, for trainings that take longer than expected
_TICK_S = 1.0  # until the driver looks at the clock again
_LEAST_SHARE = 0.1  # of the expected time of an assignment, that one which takes longer still needs
_LARGEST_SHARE = 0.5  # of the limit that may be held back for more than the training of one trial


@dataclass(eq=False)
class TimeLimit:
    """Predicts, from the times that were seen, whether trainings end before the limit of a study.

    An assignment of the search is opened only if it ends early enough for the reserve: the best trials are
    trained to the end in the slots that become free, and after them the finalists with other seeds. A trial
    whose training no longer fits is not trained; the next one that fits takes its place in the reserve.
    """

    decider: Decider
    dispatcher: Dispatcher
    progress: Progress
    limit_s: Callable[[], float | None]  # requests may change it; None: there is none

    def __post_init__(self) -> None:
        self._next: tuple[int, Slot | None] | None = None  # see `_next_s`

    @property
    def left_s(self) -> float | None:
        """The seconds that are left; None: there is no limit."""
        limit_s = self.limit_s()
        return None if limit_s is None else limit_s - self.progress.seconds

    def fits(self, need: Need) -> bool:
        """Return whether a trial can be trained to the end in the time that is left."""
        left_s = self.left_s
        if left_s is None:
            return True
        ready_s = self._ends().get(need.trial_id, 0.0) if need.trial_id is not None else 0.0
        return ready_s + self.decider.speed.seconds(need.resource, need.trial_id) <= left_s

    def fits_all(self, seconds: Sequence[float]) -> bool:
        """Return whether trainings of these durations, begun now, end in the time that is left."""
        left_s = self.left_s
        return left_s is None or makespan([(0.0, s) for s in seconds], [0.0] * self._slots) <= left_s

    def has_room(self, repeats_s: Sequence[float], sequence: int) -> bool:
        """Return whether the search may open its next slot.

        Args:
            repeats_s: the durations of the trainings with other seeds that are still needed.
            sequence: a number that grows whenever the scheduler may have changed.
        """
        left_s = self.left_s
        if left_s is None:
            return True
        if left_s <= 0:
            return False
        longest_s = self.decider.speed.longest(self.decider.scheduler.max_resource)
        # What runs, the next slot, the reserve and the repeats, one after another: with many slots, a plan
        # for each slot would cost the driver much of its time.
        in_turn = 2 + self.decider.reserve.count + len(repeats_s)
        if in_turn * longest_s * (1 + _MARGIN) + _TICK_S <= left_s:
            return True
        if self._planned(longest_s, repeats_s) <= left_s:
            return True
        next_s = self._next_s(sequence)
        return next_s is None or self._planned(next_s, repeats_s) <= left_s

    def _planned(self, next_s: float, repeats_s: Sequence[float]) -> float:
        """Return the seconds until everything has ended if the search opens one more slot.

        Args:
            next_s: the duration of the assignment in that slot.
            repeats_s: as for `has_room`.
        """
        limit_s, ends = self.limit_s() or 0.0, self._ends()
        free_at = sorted([*ends.values(), *[0.0] * (self._slots - len(ends))])
        free_at[0] += next_s
        jobs: list[tuple[float, float]] = []
        for need in self.decider.needs(self.fits):
            ready_s = ends.get(need.trial_id, 0.0) if need.trial_id is not None else 0.0
            more = [*jobs, (ready_s, self.decider.speed.seconds(need.resource, need.trial_id))]
            if jobs and makespan(more, [0.0] * self._slots) > _LARGEST_SHARE * limit_s:
                break
            jobs = more
        reserve_s = makespan(jobs, [0.0] * self._slots)
        repeats = makespan([(0.0, s) for s in repeats_s], [0.0] * self._slots)
        repeats = min(repeats, max(0.0, _LARGEST_SHARE * limit_s - reserve_s))
        whole = max(makespan(jobs, free_at), max(free_at)) + repeats
        return whole * (1 + _MARGIN) + _TICK_S

    @property
    def _slots(self) -> int:
        return max(1, self.progress.slots)

    def _ends(self) -> dict[int, float]:
        """Return the seconds until the assignments in flight have ended, by trial."""
        running = self.decider.running(self.dispatcher.elapsed(self.dispatcher.clock()))
        ends = {}
        for trial_id, (slot, elapsed_s) in running.items():
            expected_s = self.decider.speed.seconds(slot.resource_to - slot.resource_from, trial_id)
            ends[trial_id] = max(expected_s - elapsed_s, _LEAST_SHARE * expected_s)
        return ends

    def _next_s(self, sequence: int) -> float | None:
        """Return the duration of what the scheduler would train next; None: nothing now."""
        if self._next is None or self._next[0] != sequence:
            # A copy, because the slot may not be opened.
            self._next = sequence, copy.deepcopy(self.decider.scheduler).next_slot()
        if (slot := self._next[1]) is None:
            return None
        known = slot.trial_id if slot.parent is None else slot.parent
        return self.decider.speed.seconds(slot.resource_to - slot.resource_from, known, cautious=True)


def makespan(jobs: Iterable[tuple[float, float]], free_at: Sequence[float]) -> float:
    """Return when the last job ends if the longest ones begin first.

    Args:
        jobs: when each can begin, and its duration, in seconds.
        free_at: when each slot becomes free.
    """
    slots, last = list(free_at), 0.0
    heapq.heapify(slots)
    for ready_s, duration_s in sorted(jobs, key=lambda job: -job[1]):
        end_s = max(ready_s, slots[0]) + duration_s
        heapq.heapreplace(slots, end_s)
        last = max(last, end_s)
    return last
