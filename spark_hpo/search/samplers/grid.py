"""Grid search: every combination of a few values of each parameter."""

from __future__ import annotations

import json

from spark_hpo.errors import SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.trial import Params


class GridSampler(Sampler):
    """Proposes the first point of the grid with which no trial has started.

    So the whole grid is covered, even if a study has enqueued configurations or resumes. A study must not
    start more than `size` trials.

    A trace, two options and three values:
        size -> 6;  ask(0) -> point 0; start(0, point 0);  ask(1) -> point 1; ...;  ask(6) -> SpaceError

    Args:
        space: the search space.
        seed: ignored; a grid has no randomness.
        resolution: maximum number of values per number; see `Uniform.grid` and `Normal.grid`. All options
            of a choice are used.
    """

    supports_multiple_objectives = True
    handles_constraints = True

    def __init__(self, space: Space, seed: int = 0, *, resolution: int = 5) -> None:
        require_integer("resolution", resolution, 1)
        self.space = space
        self.resolution = resolution
        self._points = space.grid_size(resolution)
        self.size = self._points
        if space.constraints:  # points that violate one are left out
            self.size = sum(map(space.allows, space.grid(resolution)))
        self._started: set[str] = set()
        self._next = 0  # first point with which no trial has started
        self._skip()

    def ask(self, trial_id: int) -> Params:
        """Propose the next point. Does not change what was learned.

        Raises:
            SpaceError: trials have started with all points.
        """
        if self._next == self._points:
            raise SpaceError(
                f"is too small: all {self.size} points of the grid are tried before trial {trial_id}",
                key="resolution",
                value=self.resolution,
                cure=f"Limit the study to {self.size} trials, or increase the resolution",
            )
        return self._point(self._next)

    def start(self, trial_id: int, params: Params) -> None:
        self._started.add(_name(params))
        self._skip()

    def tell(self, trial_id: int, **_: object) -> None:
        """Ignored."""

    def _skip(self) -> None:
        while self._next < self._points and not self._is_free(self._point(self._next)):
            self._next += 1

    def _is_free(self, params: Params) -> bool:
        return _name(params) not in self._started and self.space.allows(params)

    def _point(self, index: int) -> Params:
        return self.space.grid_point(self.resolution, index)


def _name(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
