"""Grid search: every combination of a few values of each parameter, once."""

from __future__ import annotations

import json

from spark_hpo.errors import SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.trial import Params


class GridSampler(Sampler):
    """Goes through the grid in order. Proposes the first point that no trial has started with.

    So the whole grid is covered, also when a study begins with configurations that somebody else chose,
    or resumes. A study must not start more than `size` trials.

    A trace, two options and three values:
        size -> 6;  ask(0) -> point 0; start(0, point 0);  ask(1) -> point 1; ...;  ask(6) -> SpaceError

    Args:
        space: what is tuned.
        seed: taken for the sake of the seam; a grid has no randomness.
        resolution: values for each number, at most; see `Uniform.grid` and `Normal.grid`. Options of a
            choice are all taken.
    """

    supports_multiple_objectives = True
    handles_constraints = True

    def __init__(self, space: Space, seed: int = 0, *, resolution: int = 5) -> None:
        require_integer("resolution", resolution, 1)
        self.space = space
        self.resolution = resolution
        self._points = space.grid_size(resolution)
        self.size = self._points
        if space.constraints:  # points that break one are left out
            self.size = sum(map(space.allows, space.grid(resolution)))
        self._started: set[str] = set()
        self._next = 0  # the first point that no trial has started with
        self._skip()

    def ask(self, trial_id: int) -> Params:
        """Propose the next point. Never changes what the sampler has learned.

        Raises:
            SpaceError: all points have been started.
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
        """Cross a point off the grid; parameters that are not on it change nothing."""
        self._started.add(_name(params))
        self._skip()

    def tell(
        self,
        trial_id: int,
        *,
        resource: int,
        loss: float,
        others: tuple[float, ...] = (),
        violation: float = 0.0,
    ) -> None:
        """Takes no notice: the grid stands."""

    def _skip(self) -> None:
        while self._next < self._points and not self._is_free(self._point(self._next)):
            self._next += 1

    def _is_free(self, params: Params) -> bool:
        return _name(params) not in self._started and self.space.allows(params)

    def _point(self, index: int) -> Params:
        return self.space.grid_point(self.resolution, index)


def _name(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
