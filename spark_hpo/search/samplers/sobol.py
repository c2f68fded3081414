"""Quasi-random search: a Sobol sequence, which leaves smaller gaps than random draws."""

from __future__ import annotations

import warnings

import numpy as np

from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

_BLOCK = 256  # points drawn at a time; a power of 2


class SobolSampler(Sampler):
    """Proposes point number `trial_id` of a scrambled Sobol sequence over all parameters of the space.

    Sobol 1967; scrambled as in Owen 1998, by SciPy. A parameter that a choice has turned off keeps its
    axis of the sequence, so the others stay evenly spread. Nothing is learned; in a few dimensions it is
    the better random search, and a good start for a model.
    """

    supports_multiple_objectives = True

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed
        self._axes = Axes(space)
        self._points: Array = np.empty((0, len(self._axes)))

    def ask(self, trial_id: int) -> Params:
        """Propose the trial's point of the sequence. Never changes what the sampler has learned."""
        if trial_id >= len(self._points) and len(self._axes):
            self._points = self._sequence(trial_id // _BLOCK + 1)
        uniform = self._points[trial_id] if len(self._axes) else np.empty(0)
        return self._axes.params(self._axes.from_unit(uniform))

    def start(self, trial_id: int, params: Params) -> None:
        """Takes no notice."""

    def tell(
        self,
        trial_id: int,
        *,
        resource: int,
        loss: float,
        others: tuple[float, ...] = (),
        violation: float = 0.0,
    ) -> None:
        """Takes no notice."""

    def _sequence(self, num_blocks: int) -> Array:
        from scipy.stats import qmc  # half a second, which no other method has to spend

        engine = qmc.Sobol(len(self._axes), scramble=True, seed=np.random.default_rng(self.seed))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # not a power of 2: the balance of a whole sequence is not claimed
            points: Array = engine.random(num_blocks * _BLOCK)
        return points
