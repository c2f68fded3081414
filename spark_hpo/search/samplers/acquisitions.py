"""Acquisition functions over a Gaussian process, as a sampler of Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import ndtr

from spark_hpo.search.explorers.gaussian_process import Array, Points, TimeVaryingProcess

_NUM_CANDIDATES = 500
_LOCAL_SHARE = 0.4  # of the candidates, which are near the best trials
_STEP = 0.1  # standard deviation of their distance, as a share of the range
_NUM_BEST = 3
_CONFIDENCE = 2.0  # deviations below the mean, for the confidence bound
_LEAST_GAIN = 0.01  # that counts as an improvement, in deviations of the losses


def _confidence_bound(process: TimeVaryingProcess, at: Points, pending: Points, **_: Any) -> Array:
    mean, deviation = process.predict(at, pending)
    return np.asarray(_CONFIDENCE * deviation - mean)


def _probability(process: TimeVaryingProcess, at: Points, pending: Points, best: float, **_: Any) -> Array:
    mean, deviation = process.predict(at, pending)
    return np.asarray(ndtr((best - _LEAST_GAIN - mean) / deviation))


def _thompson(
    process: TimeVaryingProcess, at: Points, pending: Points, rng: np.random.Generator, **_: Any
) -> Array:
    return -process.draw(at, rng)


ACQUISITIONS: Mapping[str, Callable[..., Array] | None] = {
    "ei": None,  # Optuna's own: the logarithm of the expected improvement
    "ucb": _confidence_bound,  # Srinivas et al. 2010, arXiv:0912.3995; of a loss, the lower bound
    "pi": _probability,  # Kushner 1964
    "thompson": _thompson,  # Thompson 1933
}


def acquisition_sampler(optuna: Any, name: str, *, seed: int, num_startup_trials: int) -> Any:
    """Build a sampler of Optuna that maximises an acquisition function over random and local candidates.

    Args:
        optuna: the module.
        name: one of `ACQUISITIONS`, but `ei`.
        seed: of the candidates and of the draws.
        num_startup_trials: trials that are drawn from the space before the model is used.
    """
    acquisition = ACQUISITIONS[name]
    assert acquisition is not None, "Optuna has a sampler of its own for it"

    class AcquisitionSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
        def __init__(self) -> None:
            self._independent = optuna.samplers.RandomSampler(seed=seed)
            self._rng = np.random.default_rng(seed)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            space: dict[str, Any] = optuna.search_space.intersection_search_space(
                study.get_trials(deepcopy=False)
            )
            return {name: kind for name, kind in space.items() if not kind.single()}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            states = optuna.trial.TrialState
            trials = study.get_trials(deepcopy=False)
            done = [t for t in trials if t.state is states.COMPLETE]
            if not search_space or len(done) < num_startup_trials:
                return {}
            running = [
                t for t in trials if t.state is states.RUNNING and search_space.keys() <= t.params.keys()
            ]
            encoding = _Encoding(search_space, optuna.distributions.CategoricalDistribution)
            known, pending = (encoding.points([t.params for t in each]) for each in (done, running))
            losses = np.array([t.value for t in done])
            targets = (losses - losses.mean()) / (losses.std() or 1.0)
            process = TimeVaryingProcess(known, targets, encoding.groups)
            best = [done[i].params for i in np.argsort(targets, kind="stable")[:_NUM_BEST]]
            candidates = encoding.candidates(best, self._rng)
            assert acquisition is not None, "as above"
            scores = acquisition(
                process, encoding.points(candidates), pending, best=float(targets.min()), rng=self._rng
            )
            return candidates[int(np.argmax(scores))]

        def sample_independent(self, study: Any, trial: Any, param_name: str, kind: Any) -> Any:
            return self._independent.sample_independent(study, trial, param_name, kind)

    return AcquisitionSampler()


class _Encoding:
    """Parameters as columns: a number from 0 to 1 is one column, a choice has one per option."""

    def __init__(self, search_space: Mapping[str, Any], categorical: Any) -> None:
        self._options = {
            name: len(kind.choices) if isinstance(kind, categorical) else 0
            for name, kind in search_space.items()
        }
        self.groups = tuple(
            group for group, count in enumerate(self._options.values()) for _ in range(max(count, 1))
        )

    def points(self, trials: list[Any]) -> Points:
        rows = [self._row(params) for params in trials]
        inputs = np.array(rows) if rows else np.empty((0, len(self.groups)))
        return Points(inputs=inputs, times=np.zeros(len(rows)))

    def candidates(self, best: list[Any], rng: np.random.Generator) -> list[dict[str, Any]]:
        """Return random parameters, and parameters near those of the best trials."""
        found = [
            {name: int(rng.integers(n)) if n else float(rng.random()) for name, n in self._options.items()}
            for _ in range(_NUM_CANDIDATES)
        ]
        change = 1 / len(self._options)
        for i in range(int(_LOCAL_SHARE * _NUM_CANDIDATES)):
            for name, count in self._options.items():
                value = best[i % len(best)][name]
                if not count:
                    found[i][name] = float(np.clip(value + rng.normal(scale=_STEP), 0.0, 1.0))
                elif rng.random() > change:
                    found[i][name] = int(value)
        return found

    def _row(self, params: Mapping[str, Any]) -> list[float]:
        row: list[float] = []
        for name, count in self._options.items():
            # Two options are as far apart as the ends of a range.
            row += (
                [math.sqrt(0.5) * (option == params[name]) for option in range(count)]
                if count
                else [float(params[name])]
            )
        return row
