"""Notices assignments whose ranks move no more, and collects where they stood."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment

logger = logging.getLogger(__name__)

_LOOKS = 5  # in a limit
_LONGEST_S, _SHORTEST_S = 30.0, 0.5  # between two looks
# Ranks watch themselves, and tell more when they end than this side can: they are given the time for it.
_GRACE = 0.5  # of the limit
_GRACE_S = 5.0


@dataclass(slots=True)
class _Sight:
    said: bytes | None  # what the ranks said last
    since: float  # when it was new
    has_begun: bool = False


class Supervisor:
    """Looks at what the ranks in flight say of their steps, a few times in a limit.

    It is the second line: a rank watches itself, but one that the system has stopped cannot, nor one whose
    machine is cut off.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        rank_timeout_s: float,
        start_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            rank_timeout_s: for a step.
            start_timeout_s: from submission to the first sign.
        """
        self._storage = storage
        self._rank_timeout_s = rank_timeout_s
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._interval = min(max(rank_timeout_s / _LOOKS, _SHORTEST_S), _LONGEST_S)
        self._looked = clock()
        self._sights: dict[tuple[int, int], _Sight] = {}

    def silent(self, running: Iterable[Assignment]) -> Iterator[tuple[Assignment, str]]:
        """The assignments to be given up, each with the reason in words."""
        now = self._clock()
        assignments = {(a.trial_id, a.attempt): a for a in running}
        self._sights = {key: sight for key, sight in self._sights.items() if key in assignments}
        for key in assignments:
            self._sights.setdefault(key, _Sight(None, now))
        if now - self._looked < self._interval:
            return
        self._looked = now
        limit = self._rank_timeout_s * (1 + _GRACE) + _GRACE_S
        for key, assignment in assignments.items():
            sight = self._sights[key]
            try:
                said = self._storage.read(layout.progress(*key))
            except StorageError as exc:
                logger.warning("the progress of %s cannot be read: %s", assignment, exc)
                said, sight.since = sight.said, now  # nothing is known: nobody is given up for it
            if said != sight.said:
                sight.said, sight.since, sight.has_begun = said, now, True
            silence = now - sight.since
            if sight.has_begun and silence > limit:
                yield assignment, f"its ranks have made no step in {silence:.0f} s (resources.rank_timeout_s)"
            elif not sight.has_begun and silence > self._start_timeout_s + limit:
                yield assignment, f"its ranks have not begun in {silence:.0f} s (resources.slot_timeout_s)"

    def stacks(self, assignment: Assignment) -> str:
        """Where the ranks of an assignment stood that has ended, as far as they said; told once."""
        prefix = f"{assignment.trial_id:06d}-{assignment.attempt}"
        told = []
        for name in self._storage.names(layout.PROGRESS):
            path = f"{layout.PROGRESS}/{name}"
            if name.startswith(f"{prefix}-rank-"):
                text = (self._storage.read(path) or b"").decode(errors="replace")
                told.append(f"rank {name.rpartition('-')[2]}: {text}")
            if name == prefix or name.startswith(f"{prefix}-"):
                self._storage.delete(path)
        return "\n".join(told)
