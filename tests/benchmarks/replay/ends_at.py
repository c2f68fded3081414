"""A stopping rule for searches on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class EndsAt:
    """Ends a search at a time. A limit of the study would keep trials from starting that end after it."""

    clock: Callable[[], float]
    limit_s: float

    def observe(self, *, resource: int, loss: float, seconds: float, violation: float = 0.0) -> None:
        """Has nothing to learn."""

    def reason(self, *, reserved_s: float = 0.0) -> str | None:
        return "time" if self.clock() >= self.limit_s else None
