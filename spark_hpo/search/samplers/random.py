"""Random search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params


@dataclass(eq=False)
class RandomSampler(Sampler):
    """Draws each proposal from the space. It depends only on the seed and the trial id."""

    supports_multiple_objectives = True
    handles_constraints = True

    space: Space
    seed: int

    def ask(self, trial_id: int) -> Params:
        return self.space.sample(np.random.default_rng((self.seed, trial_id)))
