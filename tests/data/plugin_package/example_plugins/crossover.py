import math

import numpy as np

from spark_hpo import Params, Sampler, Space


class CrossoverSampler(Sampler):
    """Copies each parameter from one of the best trials so far, or draws it from the space."""

    def __init__(self, space: Space, seed: int, *, num_parents: int = 5) -> None:
        self.space, self.seed, self.num_parents = space, seed, num_parents
        self._params: dict[int, Params] = {}
        self._ranks: dict[int, tuple[int, float]] = {}  # (-resource, loss) by trial

    def ask(self, trial_id: int) -> Params:
        rng = np.random.default_rng((self.seed, trial_id))
        drawn = self.space.sample(rng)
        best = sorted(self._ranks, key=self._ranks.__getitem__)[: self.num_parents]
        if not best:
            return drawn
        parent = self._params[best[rng.integers(len(best))]]
        return {name: parent[name] if rng.random() < 0.7 else value for name, value in drawn.items()}

    def start(self, trial_id: int, params: Params) -> None:
        self._params[trial_id] = params

    def tell(self, trial_id: int, *, resource: int, loss: float, **_: object) -> None:
        if math.isfinite(loss):  # a failed trial has no finite loss
            self._ranks[trial_id] = (-resource, loss)
