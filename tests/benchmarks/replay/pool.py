"""A finite pool of configurations, and the sampler that keeps to it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from spark_hpo.search.explorer import Explorer
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.wrappers import WrappedSampler
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Uniform
from spark_hpo.trial import Params


class Pool:
    """The only configurations of a table. Their places are measured in the unit cube of the space."""

    def __init__(self, space: Space, configurations: Sequence[Params]) -> None:
        self.space = space
        self.configurations = tuple(configurations)
        self._numbers = {_key(params): i for i, params in enumerate(self.configurations)}
        self._places = np.array([self._place(params) for params in self.configurations])

    def __len__(self) -> int:
        return len(self.configurations)

    def number(self, params: Params) -> int:
        """Return the index of a configuration in the pool."""
        return self._numbers[_key(params)]

    def nearest(self, params: Params, drawn: set[int]) -> int:
        """The number of the nearest configuration that is not drawn yet; of any, once all are."""
        distances = ((self._places - self._place(params)) ** 2).sum(axis=1)
        if len(drawn) < len(self):
            distances[list(drawn)] = np.inf
        return int(np.argmin(distances))

    def _place(self, params: Params) -> list[float]:
        point = self.space.flatten(params)
        place = []
        for dimension in self.space.dimensions():
            parameter, value = dimension.parameter, point[dimension.key]
            if isinstance(parameter, Choice):  # every two options are as far apart as two ends
                place += [float(value == option) / np.sqrt(2) for option in range(len(parameter.options))]
            else:
                assert isinstance(parameter, Uniform)
                low, high = parameter.latent_bounds()
                place.append((parameter.latent(value) - low) / (high - low))
        return place


class PoolSampler(WrappedSampler):
    """Gives the nearest configuration not yet drawn for what another sampler proposes.

    The other sampler is told of the configuration that is run, not of the one that it has proposed.
    """

    def __init__(self, sampler: Sampler, pool: Pool) -> None:
        super().__init__(sampler)
        self._pool = pool
        self.drawn: set[int] = set()

    def ask(self, trial_id: int) -> Params:
        return self.nearest(super().ask(trial_id))

    def start(self, trial_id: int, params: Params) -> None:
        self.drawn.add(self._pool.number(params))
        super().start(trial_id, params)

    def nearest(self, wanted: Params) -> Params:
        """The configuration that is run in the place of another one."""
        return self._pool.configurations[self._pool.nearest(wanted, self.drawn)]


class PoolExplorer:
    """Gives the nearest configuration not yet drawn for what another explorer makes of a parent's.

    Args:
        sampler: of the same study; it knows what has been drawn.
    """

    def __init__(self, explorer: Explorer, sampler: PoolSampler) -> None:
        self._explorer = explorer
        self._sampler = sampler

    def explore(self, slot: Slot, parent: Params) -> Params:
        return self._sampler.nearest(self._explorer.explore(slot, parent))

    def start(self, slot: Slot, params: Params) -> None:
        self._explorer.start(slot, params)

    def tell(self, slot: Slot, loss: float) -> None:
        self._explorer.tell(slot, loss)


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
