"""Grid search: every combination of a few values of each parameter."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

from spark_hpo.errors import SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.trial import Params

_MOST_POINTS = 100_000  # of a grid whose ranges change


@dataclass(eq=False)
class GridSampler(Sampler):
    """Proposes the first point of the grid with which no trial has started.

    So the whole grid is covered, even if a study has enqueued configurations or resumes. A study must not
    start more than `size` trials. All options of a choice are used.

    A trace, two options and three values:
        size -> 6;  ask(0) -> point 0; start(0, point 0);  ask(1) -> point 1; ...;  ask(6) -> SpaceError
    """

    supports_multiple_objectives = True
    handles_constraints = True
    accepts_foreign = True

    space: Space
    seed: int = 0  # ignored; a grid has no randomness
    _: KW_ONLY
    resolution: int = 5  # maximum number of values per number; see `Uniform.grid` and `Normal.grid`
    first_space: Space | None = None
    """The space with which the study began, if its ranges have changed since. The grid keeps the points of
    that space that are inside the ranges, and gets the points of `space` that are outside of the first ones.
    If no point of the first space is inside, it is the grid of `space`."""

    def __post_init__(self) -> None:
        require_integer("resolution", self.resolution, 1)
        self.size = self.space.grid_size(self.resolution)
        self._points: Iterator[Params] = filter(self.space.allows, self.space.grid(self.resolution))
        self._free: set[str] | None = None  # points without a trial, if the ranges have changed
        if self.first_space is not None:
            points = self._of_changed_ranges(self.first_space)
            self.size, self._points = len(points), iter(points)
            self._free = {_name(point) for point in points}
        elif self.space.constraints:
            self.size = sum(map(self.space.allows, self.space.grid(self.resolution)))
        self._next = next(self._points, None)  # first point with which no trial has started
        self._started: set[str] = set()

    def ask(self, trial_id: int) -> Params:
        if self._next is None:
            raise SpaceError(
                f"is too small: all {self.size} points of the grid are tried before trial {trial_id}",
                key="resolution",
                value=self.resolution,
                cure=f"Limit the study to {self.size} trials, or increase the resolution",
            )
        return copy.deepcopy(self._next)  # the points of a grid share their parts

    def start(self, trial_id: int, params: Params) -> None:
        name = _name(params)
        if self._free is not None:
            assert self.size is not None, "of a grid"
            self.size += name not in self._free  # such a trial leaves all points to others
            self._free.discard(name)
        self._started.add(name)
        while self._next is not None and _name(self._next) in self._started:
            self._next = next(self._points, None)

    def _of_changed_ranges(self, first: Space) -> list[Params]:
        sizes = [space.grid_size(self.resolution) for space in (first, self.space)]
        if max(sizes) > _MOST_POINTS:
            raise SpaceError(
                f"makes a grid of {max(sizes)} points; ranges can change in one of at most {_MOST_POINTS}",
                key="resolution",
                value=self.resolution,
            )
        kept = [point for point in first.grid(self.resolution) if _fits(self.space, point)]
        added = [point for point in self.space.grid(self.resolution) if not (kept and _fits(first, point))]
        return [point for point in (*kept, *added) if self.space.allows(point)]


def _fits(space: Space, params: Params) -> bool:
    try:
        space.validate(params)
    except SpaceError:
        return False
    return True


def _name(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
