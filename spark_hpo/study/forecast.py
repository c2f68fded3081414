"""Forecasts the time that a study still needs, by playing its scheduler to the end."""

from __future__ import annotations

import copy
import heapq
import math
import random
from bisect import bisect_left, insort
from collections.abc import Mapping

from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.study.speed import Speed

_SEED = 0
_LEAST_SHARE = 0.1  # of the expected time of an assignment, that one which takes longer still needs


class Losses:
    """The losses so far by resource, from which a forecast draws those of the trials to come.

    A trial keeps its rank: one that was among the best tenth at a resource is so at the next one too.
    """

    def __init__(self) -> None:
        self._by_resource: dict[int, list[float]] = {}  # ascending
        self._last: dict[int, tuple[int, float]] = {}  # by trial: resource and loss

    def note(self, trial_id: int, resource: int, loss: float) -> None:
        """Take a finite loss."""
        insort(self._by_resource.setdefault(resource, []), loss)
        self._last[trial_id] = resource, loss

    def rank(self, trial_id: int) -> float | None:
        """Return the share of better losses at the latest resource of the trial, 0 to 1; None: not known."""
        if trial_id not in self._last:
            return None
        resource, loss = self._last[trial_id]
        known = self._by_resource[resource]
        return (bisect_left(known, loss) + 0.5) / len(known)

    def draw(self, rank: float, resource: int) -> float:
        """Return the loss of that rank at a resource, or at the highest one below that has losses."""
        levels = [level for level in self._by_resource if level <= resource]
        if not levels:
            return rank
        known = self._by_resource[max(levels)]
        place = rank * (len(known) - 1)
        low = int(place)
        high = min(low + 1, len(known) - 1)
        return known[low] + (place - low) * (known[high] - known[low])


def seconds_left(
    scheduler: Scheduler | None,
    running: Mapping[int, tuple[Slot, float]],
    *,
    speed: Speed,
    losses: Losses,
    num_slots: int,
    max_resource: float = math.inf,
) -> float:
    """Play the scheduler to its end, at the speed that was seen.

    Args:
        scheduler: as it is now; a copy is played. None: only what runs is completed.
        running: the slots in flight, by trial, and the seconds since they began.
        speed: of the assignments so far.
        losses: so far.
        num_slots: assignments at the same time.
        max_resource: that may be trained from now on, with what runs.

    Returns:
        Seconds until no assignment runs.
    """
    scheduler, rng = copy.deepcopy(scheduler), random.Random(_SEED)
    ranks: dict[int, float] = {}
    clock, committed = 0.0, 0
    ends: list[tuple[float, int, Slot]] = []  # a heap: second, number of the slot, slot
    for number, (slot, elapsed_s) in enumerate(running.values()):
        units = slot.resource_to - slot.resource_from
        committed += units
        expected_s = speed.seconds(units, slot.trial_id)
        # An assignment that takes longer than expected ends soon.
        heapq.heappush(ends, (max(expected_s - elapsed_s, _LEAST_SHARE * expected_s), number, slot))
    number = len(ends)
    while True:
        while scheduler is not None and len(ends) < num_slots and committed < max_resource:
            opened = scheduler.next_slot()
            if opened is None:
                break
            number += 1
            units = opened.resource_to - opened.resource_from
            committed += units
            known = opened.trial_id if opened.parent is None else opened.parent
            heapq.heappush(ends, (clock + speed.seconds(units, known), number, opened))
        if not ends:
            return clock
        clock, _, slot = heapq.heappop(ends)
        if scheduler is not None:
            if slot.trial_id not in ranks:
                known_rank = losses.rank(slot.trial_id)
                ranks[slot.trial_id] = rng.random() if known_rank is None else known_rank
            scheduler.report(slot, losses.draw(ranks[slot.trial_id], slot.resource_to))
