"""Random search."""

from __future__ import annotations

import numpy as np

from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params


class RandomSampler(Sampler):
    """Draws each proposal from the space. It depends only on the seed and the trial id."""

    supports_multiple_objectives = True
    handles_constraints = True

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, trial_id: int) -> Params:
        return self.space.sample(np.random.default_rng((self.seed, trial_id)))

    def start(self, trial_id: int, params: Params) -> None:
        """Ignored."""

    def tell(self, trial_id: int, **_: object) -> None:
        """Ignored."""
