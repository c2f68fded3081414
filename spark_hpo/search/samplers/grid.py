"""Grid search: every combination of a few values of each parameter."""

from __future__ import annotations

import copy
import json
from dataclasses import KW_ONLY, dataclass

from spark_hpo.errors import SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.trial import Params


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

    space: Space
    seed: int = 0  # ignored; a grid has no randomness
    _: KW_ONLY
    resolution: int = 5  # maximum number of values per number; see `Uniform.grid` and `Normal.grid`

    def __post_init__(self) -> None:
        require_integer("resolution", self.resolution, 1)
        self.size = self.space.grid_size(self.resolution)
        if self.space.constraints:
            self.size = sum(map(self.space.allows, self.space.grid(self.resolution)))
        self._points = filter(self.space.allows, self.space.grid(self.resolution))
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
        self._started.add(_name(params))
        while self._next is not None and _name(self._next) in self._started:
            self._next = next(self._points, None)


def _name(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
