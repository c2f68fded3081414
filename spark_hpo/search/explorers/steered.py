"""An explorer whose ranges people change while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spark_hpo.errors import ConfigError
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Uniform
from spark_hpo.search.space.ranges import nearest, with_ranges
from spark_hpo.search.steerable import Ranges
from spark_hpo.trial import Params


@dataclass(eq=False)
class SteeredExplorer(Explorer):
    """Delegates to an explorer, and replaces it by one of another space when the ranges change.

    The new explorer is told all that the old one was told. A number outside of its range is told, and is
    inherited by a child, as the nearest end of the range, from where the explorer moves it.

    A trace: change_ranges({"lr": [1e-4, 1e-2]}); explore(slot, parent {"lr": 0.1}) -> {"lr": 0.008}
    """

    explorer: Explorer
    space: Space  # with which the study begins
    make: Callable[[Space], Explorer]  # makes the explorer of a space with other ranges

    def __post_init__(self) -> None:
        self.handles_limits = getattr(self.explorer, "handles_limits", Explorer.handles_limits)
        self.changes = getattr(self.explorer, "changes", Explorer.changes)
        self._space = self.space
        self._calls: list[Callable[[], None]] = []

    def check_ranges(self, ranges: Ranges) -> None:
        parameters = {
            ".".join(map(str, dimension.path)): dimension.parameter for dimension in self.space.dimensions()
        }
        for name in ranges:
            is_number = isinstance(parameters.get(name), Uniform)
            if name in parameters and (name not in (self.changes or ()) or not is_number):
                able = [n for n in sorted(self.changes or ()) if isinstance(parameters[n], Uniform)]
                raise ConfigError(
                    "cannot get another range, because new trials continue others and keep their value of it",
                    key=name,
                    cure=f"Ranges that can change: {', '.join(able) or 'none'}",
                )

    def change_ranges(self, ranges: Ranges) -> None:
        self._space = with_ranges(self.space, ranges)
        self.explorer = self.make(self._space)
        for call in self._calls:
            call()

    def explore(self, slot: Slot, parent: Params) -> Params:
        return self.explorer.explore(slot, self._inside(parent))

    def start(self, slot: Slot, params: Params) -> None:
        self._call(lambda: self.explorer.start(slot, self._inside(params)))

    def tell(self, slot: Slot, loss: float, **known: Any) -> None:
        self._call(lambda: self.explorer.tell(slot, loss, **known))

    def _inside(self, params: Params) -> Params:
        return params if self._space is self.space else nearest(self._space, params)

    def _call(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        call()
