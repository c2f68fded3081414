"""Predicts what configurations cost, how long they train and what memory they need, from earlier trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from spark_hpo.search.sampler import Outcome
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import FailureKind, Params

_MIN_TRIALS = 5  # with a known cost, before anything is predicted
_MAX_TRIALS = 300  # the latest
_RIDGE = 0.3  # as if the slope of each feature had been seen to be 0 in a third of a trial
_BASE_SHARE = 0.9  # of the least memory that a trial has used
_PRIOR_DEVIATION = 0.3  # of the log of a cost from its prediction, as if seen in one trial
_MIN_DEVIATION = 0.03  # a measurement is not more exact
_ROUNDS = 20  # in which bounds are replaced by what is expected above them


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The most memory that trials have needed: of a GPU or, without GPUs, of a rank.

    Logarithms are of what exceeds `base`, which all trials need for libraries, whatever their parameters are.
    """

    logs: Mapping[int, float]  # by trial; of trials in `unfit`, the limit
    unfit: frozenset[int]  # trials that ran out of memory, or whose batches did not fit and were halved
    log_limit: float  # of the memory that a trial can have
    base: float  # bytes


@dataclass(slots=True)
class _Measured:
    """The memory of trials on one kind of device."""

    bytes: dict[int, int] = field(default_factory=dict)  # the most, by trial
    limit: int | None = None  # the smallest one

    def note(self, trial_id: int, outcome: Outcome) -> None:
        if outcome.memory_bytes:
            self.bytes[trial_id] = max(outcome.memory_bytes, self.bytes.get(trial_id, 0))
        if outcome.memory_limit_bytes:
            self.limit = min(outcome.memory_limit_bytes, self.limit or outcome.memory_limit_bytes)


class Costs:
    """Adds up the resource and the time of trials, and keeps the most memory of each.

    A trace, with enough trials: note(0, 3 units in 6 s); note(0, 6 units in 12 s); log_times() -> {0: log 2}
    """

    def __init__(self) -> None:
        self._spent: dict[int, tuple[int, float]] = {}  # by trial
        self._ranks, self._gpus = _Measured(), _Measured()
        self._unfit: set[int] = set()

    def note(self, trial_id: int, outcome: Outcome) -> None:
        """Take an assignment.

        One that has failed says nothing, because it may have ended early, or waited. But one that has failed
        because of its memory needs more than there is.
        """
        has_too_little = outcome.failure is FailureKind.MEMORY
        if outcome.failure is None and outcome.units > 0 and outcome.seconds > 0:
            units, seconds = self._spent.get(trial_id, (0, 0.0))
            self._spent[trial_id] = units + outcome.units, seconds + outcome.seconds
        if has_too_little or outcome.num_halved:
            self._unfit.add(trial_id)
        if has_too_little or outcome.failure is None:
            (self._gpus if outcome.is_gpu_memory else self._ranks).note(trial_id, outcome)

    def log_times(self) -> dict[int, float]:
        """Return the log of the seconds per unit of the resource, by trial; empty with too few trials."""
        if len(self._spent) < _MIN_TRIALS:
            return {}
        latest = list(self._spent.items())[-_MAX_TRIALS:]
        return {trial_id: float(np.log(seconds / units)) for trial_id, (units, seconds) in latest}

    @property
    def num_unfit(self) -> int:
        """Number of trials that needed more memory than there is."""
        return len(self._unfit)

    def memory(self) -> Memory | None:
        """Return the memory of the latest trials; None: too few of those that had enough are measured.

        If a trial has used a GPU, the memory of GPUs counts, and otherwise that of ranks. What a trial needs
        that did not fit is only known to be more than the limit. This is the smallest limit of a device, or
        the most that a trial has used, whichever is more: the limit of a device may be unknown, and trials
        may exceed their share of a machine's memory.
        """
        used = self._gpus if self._gpus.bytes else self._ranks
        if len(used.bytes.keys() - self._unfit) < _MIN_TRIALS:
            return None
        base = _BASE_SHARE * min(used.bytes.values())
        log_limit = float(np.log(max(*used.bytes.values(), used.limit or 0) - base))
        latest = sorted(used.bytes.keys() | self._unfit)[-_MAX_TRIALS:]
        unfit = self._unfit.intersection(latest)
        logs = {i: log_limit if i in unfit else float(np.log(used.bytes[i] - base)) for i in latest}
        return Memory(logs=logs, unfit=frozenset(unfit), log_limit=log_limit, base=base)


class CostModel:
    """A ridge regression of the log of a cost on the parameters.

    Costs multiply: twice the layers, half the batch, and so on. On the scales of `Axes`, where a logarithmic
    parameter is linear, a product of powers is a linear function. Squares catch what is not one.

    Some costs are censored: only a lower bound is known, such as the memory of a device that was too small.
    They are replaced by their expectation above the bound, given the parameters, and the model is fitted
    again, several times (expectation maximization; Tobin 1958, "Estimation of Relationships for Limited
    Dependent Variables").
    """

    def __init__(
        self, axes: Axes, rows: Array, logs: Array, is_bound: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Fit it.

        Args:
            axes: of the space.
            rows: positions of trials, [trials, axes].
            logs: log of the cost of each, [trials].
            is_bound: which costs are higher than these; None: none.
        """
        self._axes = axes
        features = self._features(rows)
        self._centre = features.mean(axis=0)
        self._centred = features - self._centre
        self._gram = self._centred.T @ self._centred + _RIDGE * np.eye(features.shape[1])
        self._leverage = self._leverage_of(self._centred)
        self._fit(logs, 0.0)
        if is_bound is not None and is_bound.any():
            self._fit_bounds(logs, is_bound)

    def predict(self, rows: Array) -> Array:
        """Return the log of the cost at configurations, [rows]."""
        return np.asarray(self._mean + (self._features(rows) - self._centre) @ self._slopes)

    def above(self, log_cost: float, rows: Array) -> Array:
        """Return the probability that configurations cost more, [rows]."""
        leverage = self._leverage_of(self._features(rows) - self._centre)
        deviation = self._deviation * np.sqrt(1 + leverage)
        return np.asarray(ndtr((self.predict(rows) - log_cost) / deviation))

    def above_without_own(self, log_cost: float) -> Array:
        """Return `above` for each trial of the fit, as it would be without this trial, [trials]."""
        rest = 1 - self._leverage
        mean = self._logs - (self._logs - self._fitted) / rest
        return np.asarray(ndtr((mean - log_cost) / (self._deviation / np.sqrt(rest))))

    def _fit(self, logs: Array, unknown: float) -> None:
        """Fit the costs. `unknown` is the sum of the variances of those that are not known."""
        self._logs = logs
        self._mean = float(logs.mean())
        self._slopes = np.linalg.solve(self._gram, self._centred.T @ (logs - self._mean))
        self._fitted = self._mean + self._centred @ self._slopes
        squares = float(((logs - self._fitted) ** 2).sum()) + unknown + _PRIOR_DEVIATION**2
        freedom = len(logs) - float(self._leverage.sum()) + 1
        self._deviation = max(float(np.sqrt(squares / freedom)), _MIN_DEVIATION)

    def _fit_bounds(self, bounds: Array, is_bound: npt.NDArray[np.bool_]) -> None:
        logs = bounds.copy()
        for _ in range(_ROUNDS):
            z = (bounds[is_bound] - self._fitted[is_bound]) / self._deviation
            hazard = np.exp(-0.5 * z * z - log_ndtr(-z)) / np.sqrt(2 * np.pi)
            logs[is_bound] = self._fitted[is_bound] + self._deviation * hazard
            variances = self._deviation**2 * np.maximum(1 - hazard * (hazard - z), 0)
            self._fit(logs.copy(), float(variances.sum()))

    def _leverage_of(self, centred: Array) -> Array:
        """Return how much a cost at these features would pull the prediction there, 0..1 in the fit."""
        inner = np.linalg.solve(self._gram, centred.T)
        return np.asarray(1 / len(self._centred) + (centred * inner.T).sum(axis=1))

    def _features(self, rows: Array) -> Array:
        columns: list[Array] = [np.empty((len(rows), 0))]  # a space may have no parameters
        for i, axis in enumerate(self._axes.axes):
            if axis.options:
                columns += [(rows[:, i] == option).astype(float) for option in range(axis.options)]
            else:
                centred: Array = np.nan_to_num(2 * rows[:, i] - 1)  # -1..1; 0 where it is inactive
                columns += [centred, centred**2]
        return np.column_stack(columns)


class CostPredictor:
    """Predicts what configurations cost from the costs of the latest trials."""

    def __init__(self, axes: Axes, costs: Costs, trials: Mapping[int, Params]) -> None:
        """Fit it.

        Args:
            axes: of the space.
            costs: of the trials.
            trials: their parameters, by trial.
        """

        def rows(ids: Iterable[int]) -> Array:
            return np.array([axes.row_of_any(trials[trial_id]) for trial_id in ids])

        self._times = self._memory = None
        if times := costs.log_times():
            self._times = CostModel(axes, rows(times), np.array(list(times.values())))
        if (memory := costs.memory()) is not None:
            is_bound = np.array([trial_id in memory.unfit for trial_id in memory.logs])
            self._memory = CostModel(axes, rows(memory.logs), np.array(list(memory.logs.values())), is_bound)
            self._base = memory.base

    def seconds(self, rows: Array) -> Array | None:
        """Return the seconds per unit of the resource, [rows]; None: too few trials are known."""
        return None if self._times is None else np.exp(self._times.predict(rows))

    def memory_bytes(self, rows: Array) -> Array | None:
        """Return the most memory of a GPU or, without GPUs, of a rank, [rows]; None: as for `seconds`."""
        return None if self._memory is None else self._base + np.exp(self._memory.predict(rows))
