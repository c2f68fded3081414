"""Random search, and quasi-random search with a Sobol sequence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

_BLOCK = 256  # points drawn at a time; a power of 2


@dataclass(eq=False)
class RandomSampler(Sampler):
    """Draws each proposal from the space. It depends only on the seed and the trial id."""

    supports_multiple_objectives = True
    handles_constraints = True
    accepts_foreign = True

    space: Space
    seed: int

    def ask(self, trial_id: int) -> Params:
        return self.space.sample(np.random.default_rng((self.seed, trial_id)))


@dataclass(eq=False)
class SobolSampler(Sampler):
    """Proposes point number `trial_id` of a scrambled Sobol sequence over all parameters of the space.

    Sobol 1967; scrambled as in Owen 1998, by SciPy. Inactive parameters keep their axes of the sequence, so
    the other axes stay evenly covered. Learns nothing. Covers a space of few dimensions better than random
    search.
    """

    supports_multiple_objectives = True
    accepts_foreign = True

    space: Space
    seed: int

    def __post_init__(self) -> None:
        self._axes = Axes(self.space)
        self._points: Array = np.empty((0, len(self._axes)))

    def ask(self, trial_id: int) -> Params:
        if trial_id >= len(self._points) and len(self._axes):
            self._points = self._sequence(trial_id // _BLOCK + 1)
        uniform = self._points[trial_id] if len(self._axes) else np.empty(0)
        return self._axes.params(self._axes.from_unit(uniform))

    def _sequence(self, num_blocks: int) -> Array:
        from scipy.stats import qmc  # takes half a second to import

        engine = qmc.Sobol(len(self._axes), scramble=True, seed=np.random.default_rng(self.seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # balance needs a power of 2, which is not required here
            points: Array = engine.random(num_blocks * _BLOCK)
        return points
