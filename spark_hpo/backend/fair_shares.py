"""Divides slots between studies: weighted max-min fairness, without clock or threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_CREDIT_LIMIT = 4  # of a study, in its own assignments of mean length
_MEMORY = 0.98  # how much of the mean length is kept when an assignment ends


def fair_shares(weights: Sequence[float], demands: Sequence[float], capacity: float = 1.0) -> list[float]:
    """Divide `capacity` by weight. What a study does not need goes to the others, by weight again.

    A trace: weights 1, 1, 2 and demands 0.1, 1, 1 -> 0.1, 0.3, 0.6

    Args:
        weights: one per study, positive.
        demands: the most that each study can use; may be infinite.

    Returns:
        One share per study, at most its demand. Their sum is the capacity, or less if all demands are met.
    """
    shares = [0.0] * len(weights)
    left = capacity
    # A study whose demand per weight is smallest is satisfied first.
    order = sorted(range(len(weights)), key=lambda i: demands[i] / weights[i])
    weight_left = math.fsum(weights)
    for i in order:
        part = left if i == order[-1] else left * min(1.0, weights[i] / weight_left)
        shares[i] = max(0.0, min(demands[i], part))
        left -= shares[i]
        weight_left -= weights[i]
    return shares


@dataclass(eq=False, kw_only=True, slots=True)
class Claim:
    """A study's claim to slots. Amounts are fractions of the application."""

    weight: float
    size: Fraction  # of one slot
    running: int = 0  # slots in use
    held: int = 0  # slots that are kept for an assignment of several
    wants: bool = False  # another assignment could start now
    credit: float = 0.0  # how much less than its share it has used, in fractions times seconds
    turn: int = 0  # the number of its latest assignment, counted over all studies

    @property
    def used(self) -> Fraction:
        return (self.running + self.held) * self.size


class FairQueue:
    """Decides which study starts the next assignment.

    It is the study that is farthest below its share. Shares are seldom whole numbers of assignments, so a
    study earns credit while it uses less than its share, and loses it while it uses more. Credit is limited:
    a study that had to wait is favoured for a few assignments only.

    An assignment starts only when all of its ranks fit. Until then, free slots are kept for the study whose
    turn it is, so that studies of fewer ranks do not starve it.

    A trace, of 2 slots, with A and B of equal weight:
        A starts 2; B wants one; an assignment of A ends: it is B's turn
    """

    def __init__(self) -> None:
        self.claims: list[Claim] = []
        self._now: float | None = None
        self._turns = 0
        # Their quotient is the mean length of assignments; both are discounted.
        self._busy_s, self._ended = 0.0, 0.0

    @property
    def free(self) -> Fraction:
        return 1 - sum((claim.used for claim in self.claims), Fraction(0))

    def advance(self, now: float) -> None:
        """Account for the time since the last call. Call it before claims change."""
        elapsed_s = 0.0 if self._now is None else max(0.0, now - self._now)
        self._now = now
        if not elapsed_s:
            return
        self._busy_s += elapsed_s * sum(claim.running for claim in self.claims)
        mean_s = self._mean_s()
        for claim, share in zip(self.claims, self._shares(), strict=True):
            limit = _CREDIT_LIMIT * float(claim.size) * mean_s
            claim.credit += (share - float(claim.used)) * elapsed_s
            claim.credit = min(limit, max(-limit, claim.credit))

    def update(self, claim: Claim, *, running: int, size: Fraction) -> None:
        """Note how many assignments of a study run now, and how large they are."""
        for _ in range(claim.running - running):
            self._busy_s *= _MEMORY
            self._ended = self._ended * _MEMORY + 1
        claim.running, claim.size = running, size

    def next(self) -> Claim | None:
        """Return the claim that is next, even if its assignment does not fit yet; None: no claim waits."""
        mean_s = self._mean_s()
        best: Claim | None = None
        best_key = (-math.inf, 0)
        for claim, share in zip(self.claims, self._shares(), strict=True):
            if not claim.wants or claim.size > 1:
                continue
            key = ((share - float(claim.used)) * mean_s + claim.credit, -claim.turn)
            if best is None or key > best_key:
                best, best_key = claim, key
        return best

    def fits(self, claim: Claim) -> bool:
        return claim.size <= self.free

    def hold(self, claim: Claim, *, slots: int) -> bool:
        """Use several slots if they are free; otherwise keep slots as they become free."""
        # Slots that are kept for another study are not in use: else two such studies would block each other.
        used = sum((other.running * other.size for other in self.claims), Fraction(0))
        if used + slots * claim.size > 1:
            claim.held = slots
            return False
        claim.running += slots
        return True

    def start(self, claim: Claim) -> None:
        """Start an assignment of a study."""
        self._turns += 1
        claim.running, claim.turn = claim.running + 1, self._turns

    def _mean_s(self) -> float:
        return self._busy_s / max(1.0, self._ended) or 1.0

    def _shares(self) -> list[float]:
        demands = [math.inf if claim.wants else float(claim.used) for claim in self.claims]
        return fair_shares([claim.weight for claim in self.claims], demands)
