"""Problems on which a part of the configurations fails: functions with a region, and cuts of real curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spark_hpo.search.sampler import Outcome, Sampler
from spark_hpo.search.samplers.wrappers import WrappedSampler
from spark_hpo.search.space import Space
from spark_hpo.trial import FailureKind, Params, RankUse
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.derived import Derived
from tests.benchmarks.replay.functions import Hartmann
from tests.benchmarks.replay.methods import Method
from tests.support.simulated import Curve

Rule = Callable[[Params, float], bool]
"""Whether a configuration with this loss at the end fails."""

_NUM_DRAWS = 1_000  # configurations that set the size of a region
_MEMORY_NOISE, _MEMORY_SEED = 0.03, 17  # deviation of what trials need, as a share


@dataclass(frozen=True, kw_only=True)
class Failing(Derived):
    """A benchmark of which some configurations fail at once. The others set the scale of regret."""

    fails: Rule
    name: str

    @property
    def task(self) -> str:
        return self.name

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of the benchmark; that of a configuration that fails has no values."""
        curve = self.of.curve(trial_id, params)
        if curve.diverges_at is not None or not self.fails(params, self.loss(params)):
            return curve
        return replace(curve, metrics={name: np.full(len(v), np.nan) for name, v in curve.metrics.items()})


_SCORES: Mapping[str, Callable[[Params], float]] = {
    "sum": lambda params: params["x0"] + params["x1"],
    "corner": lambda params: min(params["x0"], params["x2"]),
    "union": lambda params: max(params["x0"], params["x1"]),
    "side": lambda params: params["x1"],
}
"""A configuration fails above a threshold of one of these, as a large model on a large batch does."""


def failing_functions(shares: tuple[float, ...] = (0.15, 0.35, 0.55)) -> list[Benchmark]:
    """Hartmann functions with a region of this share of the space that fails."""
    return [
        _with_region(Hartmann(dimensions=dimensions, bias=0.5, noise=0.1), kind, share)
        for dimensions, kind in ((3, "sum"), (3, "union"), (6, "sum"), (6, "corner"), (6, "side"))
        for share in shares
    ]


def _with_region(function: Hartmann, kind: str, share: float) -> Benchmark:
    score = _SCORES[kind]
    draws = np.random.default_rng(0).random((_NUM_DRAWS, function.dimensions))
    scores = [score({f"x{i}": float(x) for i, x in enumerate(draw)}) for draw in draws]
    threshold = float(np.quantile(scores, 1 - share))
    task = f"hartmann{function.dimensions}_{kind}_{share:g}"
    return Failing(of=function, fails=lambda params, loss: score(params) > threshold, name=task)


@dataclass(frozen=True, kw_only=True)
class Crowded(Derived):
    """A benchmark of which the configurations that need too much memory fail at once.

    With GPUs, all trials report the limit and the memory that they used. Without, the system kills a rank
    that needs too much, which reports nothing.
    """

    needs: Callable[[Params], float]  # bytes
    limit: float
    has_gpus: bool
    name: str

    @property
    def task(self) -> str:
        return self.name

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of the benchmark, with the memory; that of a configuration that fails has no values."""
        noise = 1 + _MEMORY_NOISE * float(np.random.default_rng((_MEMORY_SEED, trial_id)).standard_normal())
        need, curve = self.needs(params) * noise, self.of.curve(trial_id, params)
        used = {"memory_bytes": int(need)}
        if self.has_gpus:
            used = {"gpu_memory_bytes": int(min(need, self.limit)), "gpu_memory_total_bytes": int(self.limit)}
        if need <= self.limit:
            return replace(curve, usage=(RankUse(rank=0, seconds=1.0, **used),))
        return replace(
            curve,
            metrics={name: np.full(len(v), np.nan) for name, v in curve.metrics.items()},
            usage=(RankUse(rank=0, seconds=1.0, **used),) if self.has_gpus else (),
            kind=FailureKind.MEMORY,
        )


def memory_of_network(params: Params) -> float:
    """The bytes of a transformer: libraries, weights with the state of Adam, and activations."""
    width, depth, batch = 128 * 2 ** (4 * params["x0"]), 2 + 10 * params["x1"], 8 * 2 ** (4 * params["x2"])
    return float(5e8 + 200 * width**2 * depth + 1e4 * batch * width * depth)


def crowded_functions(shares: tuple[float, ...] = (0.2, 0.5)) -> list[Benchmark]:
    """Hartmann functions of which this share of the space needs too much memory."""
    return [
        _crowded(Hartmann(dimensions=dimensions, bias=0.5, noise=0.1), share, has_gpus)
        for dimensions in (3, 6)
        for has_gpus in (True, False)
        for share in shares
    ]


def _crowded(function: Hartmann, share: float, has_gpus: bool) -> Benchmark:
    draws = np.random.default_rng(0).random((_NUM_DRAWS, function.dimensions))
    needs = [memory_of_network({f"x{i}": float(x) for i, x in enumerate(draw)}) for draw in draws]
    return Crowded(
        of=function,
        needs=memory_of_network,
        limit=float(np.quantile(needs, 1 - share)),
        has_gpus=has_gpus,
        name=f"hartmann{function.dimensions}_{'gpu' if has_gpus else 'rank'}_memory_{share:g}",
    )


_CUTS = (
    ("alexnet_imagenet", "alexnet_imagenet", None),
    ("alexnet_imagenet", "alexnet_imagenet", -0.0011),  # at chance: one in a thousand classes
    ("taskset", "imdb_patch128_LSTM128_avg_bs64", 0.7),  # worse than chance: log 2
    ("taskset", "imdb_patch32_GRU128_bs128", 0.7),
    ("taskset", "imdb_patch32_IRNN64_relu_last_bs128", None),
    ("taskset", "imdb_patch32_VRNN64_relu_avg_bs128", None),
    ("taskset", "imdb_patch32_VRNN64_relu_avg_bs128", 0.7),
)
"""(folder, task, loss from which a configuration fails; None: those that diverge)."""


def failing_curves(curves: Path) -> list[Benchmark]:
    """Measured curves: 12 to 62 % of the configurations diverge, or end at the level of chance."""
    return [_cut(curves / folder, task, loss) for folder, task, loss in _CUTS]


def _cut(folder: Path, task: str, threshold: float | None) -> Benchmark:
    (benchmark,) = open_benchmarks(folder, [task])
    if threshold is None:
        return Failing(of=benchmark, fails=lambda params, loss: False, name=f"{task}_diverging")
    return Failing(of=benchmark, fails=lambda params, loss: loss >= threshold, name=f"{task}_at_chance")


class Counted:
    """A method, and the trials of its latest search that failed, in the order of their ends."""

    def __init__(self, method: Method) -> None:
        self.name = method.name
        self.build_scheduler = method.build_scheduler
        self.build_explorer = method.build_explorer
        self._method = method
        self.failed: list[int] = []

    def build_sampler(self, space: Space, seed: int) -> Sampler:
        self.failed = []
        return _CountingSampler(self._method.build_sampler(space, seed), self.failed)

    def failures(self, num_trials: int) -> int:
        """Return how many of the first trials failed."""
        return sum(trial_id < num_trials for trial_id in self.failed)


class _CountingSampler(WrappedSampler):
    def __init__(self, sampler: Sampler, failed: list[int]) -> None:
        super().__init__(sampler)
        self._failed = failed

    def note(self, trial_id: int, outcome: Outcome) -> None:
        super().note(trial_id, outcome)
        if outcome.failure is not None:
            self._failed.append(trial_id)
