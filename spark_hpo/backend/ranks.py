"""The number of ranks of an assignment, which may grow with its rung."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RanksByRung:
    """Ranks by rung. A slot has room for an assignment of the lowest rung; wider ones take several slots.

    A trace: RanksByRung.of({0: 1, 2: 4}): ranks(1) -> 1; ranks(2) -> 4; ranks(3) -> 4; slots(3) -> 4
    """

    steps: tuple[tuple[int, int], ...]
    """(lowest rung, ranks), both ascending, from rung 0. All are multiples of the first number of ranks."""

    @classmethod
    def of(cls, world_size: int | Mapping[int, int]) -> RanksByRung:
        by_rung = {0: world_size} if isinstance(world_size, int) else world_size
        return cls(tuple(sorted(by_rung.items())))

    @property
    def fewest(self) -> int:
        return self.steps[0][1]

    @property
    def most(self) -> int:
        return self.steps[-1][1]

    def ranks(self, rung: int) -> int:
        return max(ranks for lowest, ranks in self.steps if lowest <= rung)

    def slots(self, rung: int) -> int:
        """The slots that an assignment of this rung takes."""
        return self.ranks(rung) // self.fewest


ONE_RANK = RanksByRung.of(1)
