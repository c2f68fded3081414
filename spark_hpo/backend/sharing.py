"""Shares the slots of an application, or of this machine, between the studies of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from spark_hpo.backend.base import Share, SharedSlots, Unshared
from spark_hpo.backend.fair_shares import Claim, FairQueue

_PATIENCE_S = 1.0  # how long free slots are kept for a study whose driver loop is busy


class SlotPool:
    """The studies that share one set of slots. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._queue = FairQueue()
        self._members: dict[Claim, Member] = {}

    @contextmanager
    def joined(self, slots: SharedSlots, *, weight: float) -> Iterator[Member]:
        """Take part with a weight, until the context ends."""
        member = Member(self, slots, Claim(weight=weight, size=slots.size()))
        with self._lock:
            self._queue.advance(self._clock())
            self._queue.claims.append(member.claim)
            self._members[member.claim] = member
            self._wake_all()
        try:
            yield member
        finally:
            with self._lock:
                self._queue.advance(self._clock())
                self._queue.claims.remove(member.claim)
                del self._members[member.claim]
                self._wake_all()

    @property
    def num_studies(self) -> int:
        return len(self._members)

    def part(self, claim: Claim) -> float:
        """The part of all slots that a claim has by its weight."""
        with self._lock:
            return claim.weight / sum(other.weight for other in self._queue.claims)

    def take(self, claim: Claim, running: int) -> bool:
        size = self._members[claim].slots.size()
        with self._lock:
            self._update(claim, running=running, size=size, wants=True)
            chosen = self._chosen()
            if chosen is not claim or not self._queue.fits(claim):
                self._wake(chosen)
                return False
            self._queue.start(claim)
            return True

    def hold(self, claim: Claim, running: int, slots: int) -> bool:
        with self._lock:
            if not claim.held and claim.running > running:
                claim.running -= 1  # `take` has counted one slot
            self._update(claim, running=running, size=claim.size, wants=False)
            return self._queue.hold(claim, slots=slots)

    def rest(self, claim: Claim, running: int) -> None:
        with self._lock:
            self._update(claim, running=running, size=claim.size, wants=False)
            self._wake(self._chosen())

    def _update(self, claim: Claim, *, running: int, size: Fraction, wants: bool) -> None:
        self._queue.advance(self._clock())
        self._queue.update(claim, running=running, size=size)
        claim.wants, claim.held = wants, 0
        self._members[claim].asked_at = None

    def _chosen(self) -> Claim | None:
        """Return the claim whose turn it is. A study that does not take its slots loses its turn."""
        now = self._clock()
        while (claim := self._queue.next()) is not None:
            asked_at = self._members[claim].asked_at
            if asked_at is None or now - asked_at <= _PATIENCE_S:
                return claim
            claim.wants = False  # until it asks again
        return None

    def _wake(self, claim: Claim | None) -> None:
        if claim is not None and self._queue.fits(claim) and self._members[claim].asked_at is None:
            self._members[claim].asked_at = self._clock()
            self._members[claim].slots.wake()

    def _wake_all(self) -> None:
        for member in self._members.values():
            member.slots.wake()


@dataclass(eq=False)
class Member:
    """A study in a pool: its `Share`."""

    pool: SlotPool
    slots: SharedSlots
    claim: Claim
    asked_at: float | None = None  # when it was offered a slot; None: no offer is open

    @property
    def num_studies(self) -> int:
        return self.pool.num_studies

    def num_slots(self, fit: int) -> int:
        # The error of a division must not cost a slot.
        return min(fit, max(1, int(fit * self.pool.part(self.claim) + 1e-9)))

    def take(self, running: int) -> bool:
        return self.pool.take(self.claim, running)

    def hold(self, running: int, slots: int) -> bool:
        return self.pool.hold(self.claim, running, slots)

    def rest(self, running: int) -> None:
        self.pool.rest(self.claim, running)


_pools: dict[str, SlotPool] = {}
_pools_lock = threading.Lock()


def num_sharing(key: str) -> int:
    """Return how many studies of this process share the slots of a key."""
    pool = _pools.get(key)
    return 0 if pool is None else pool.num_studies


@contextmanager
def open_share(slots: SharedSlots | None, *, weight: float) -> Iterator[Share]:
    """Share slots with the other studies of this process, until the context ends.

    Args:
        slots: as the backend declares them; None: no other study can use them.
        weight: relative to the weights of the other studies.
    """
    if slots is None:
        yield Unshared()
        return
    with _pools_lock:
        pool = _pools.setdefault(slots.key, SlotPool())
    with pool.joined(slots, weight=weight) as member:
        yield member
