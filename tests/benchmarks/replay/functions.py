"""Functions whose optimum is known, as benchmarks: Counting Ones, and Hartmann with cheap imitations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from spark_hpo.objective import Mode, Objective
from spark_hpo.search.space import Space
from spark_hpo.trial import Params
from tests.benchmarks.replay.benchmark import Scaled
from tests.benchmarks.replay.pool import Pool
from tests.support.simulated import Curve

_LOSS = Objective(metric="loss", mode=Mode.MIN)


@dataclass(frozen=True, kw_only=True)
class CountingOnes(Scaled):
    """How many ones there are among binary parameters, plus the sum of probabilities, which are sampled.

    Falkner et al. 2018, arXiv:1807.01774, section 5.1: each probability is estimated from b coin tosses,
    b from 9 to 729. Here b is `samples` at the maximum resource, and in proportion below. The loss is
    divided by the number of parameters: its optimum is -1, at all ones.
    """

    seed: int = 0
    num_binary: int = 8
    num_continuous: int = 8
    max_resource: int = 27
    samples: int = 729  # at max_resource
    pool: Pool | None = None
    objective: Objective = _LOSS

    optimum = -1.0

    @property
    def task(self) -> str:
        return f"counting_ones_{self.num_binary}_{self.num_continuous}"

    @cached_property
    def space(self) -> Space:
        binary = {f"c{i}": {"type": "choice", "options": [0, 1]} for i in range(self.num_binary)}
        continuous = {
            f"x{i}": {"type": "uniform", "low": 0.0, "high": 1.0} for i in range(self.num_continuous)
        }
        return Space.from_config({**binary, **continuous})

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The tosses of a trial add up: a higher resource takes over those of the lower one.

        What no search sees is the value without chance.
        """
        rng = np.random.default_rng((self.seed, trial_id))
        probabilities = np.array([params[f"x{i}"] for i in range(self.num_continuous)], float)
        resource = np.arange(1, self.max_resource + 1)
        tosses = self.samples * resource // self.max_resource
        heads = rng.binomial(np.diff(tosses, prepend=0)[:, None], probabilities).cumsum(axis=0)
        ones = sum(params[f"c{i}"] for i in range(self.num_binary))
        value = ones + (heads / tosses[:, None]).sum(axis=1)
        size = self.num_binary + self.num_continuous
        exact = np.full(self.max_resource, -(ones + probabilities.sum()) / size)
        return Curve(metrics={"loss": -value / size}, elapsed_s=resource.astype(float), unseen=exact)


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A3 = np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]])
_P3 = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])
_A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


@dataclass(frozen=True, kw_only=True)
class Hartmann(Scaled):
    """The Hartmann function of 3 or 6 parameters in [0, 1], with cheap imitations of it.

    Kandasamy et al. 2017, arXiv:1703.06240, appendix: at fidelity z in [0, 1] the weights alpha of its
    four wells are smaller by `bias` (1 - z); they write 0.1 for it. Here z is resource / max_resource. All
    wells lose the same, so a large bias wipes out the shallow ones first, then turns them into hills:
    low rungs mislead. `noise` (1 - z) is the standard deviation of what is added, so the last resource is
    exact. Its minimum there is -3.86278 (3 parameters) and -3.32237 (6).
    """

    dimensions: int  # 3 or 6
    seed: int = 0
    max_resource: int = 27
    bias: float = 0.1
    noise: float = 0.0
    pool: Pool | None = None
    objective: Objective = _LOSS

    @property
    def optimum(self) -> float:
        return {3: -3.86278, 6: -3.32237}[self.dimensions]

    @property
    def task(self) -> str:
        return f"hartmann{self.dimensions}_bias{self.bias:g}_noise{self.noise:g}"

    @cached_property
    def space(self) -> Space:
        return Space.from_config(
            {f"x{i}": {"type": "uniform", "low": 0.0, "high": 1.0} for i in range(self.dimensions)}
        )

    def values(self, x: npt.NDArray[np.float64], z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The function without noise at one place [dimensions], for each fidelity."""
        a, p = (_A3, _P3) if self.dimensions == 3 else (_A6, _P6)
        wells = np.exp(-(a * (x - p) ** 2).sum(axis=1))
        return np.asarray(-(_ALPHA - self.bias * (1 - z[:, None])) @ wells)

    def curve(self, trial_id: int, params: Params) -> Curve:
        """Each epoch of a trial has noise of its own. What no search sees is the function at its end."""
        resource = np.arange(1, self.max_resource + 1)
        z = resource / self.max_resource
        x = np.array([params[f"x{i}"] for i in range(self.dimensions)], float)
        noise = np.random.default_rng((self.seed, trial_id)).normal(size=self.max_resource)
        values = self.values(x, z)
        loss = values + self.noise * (1 - z) * noise
        exact = np.full(self.max_resource, values[-1])
        return Curve(metrics={"loss": loss}, elapsed_s=resource.astype(float), unseen=exact)
