"""Syne Tune in the same clock. Its NumPy is too new for petastorm: an environment of its own."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer.baselines import BOHB
from syne_tune.optimizer.scheduler import SchedulerDecision, TrialScheduler
from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving
from syne_tune.optimizer.schedulers.searchers.bore import Bore
from syne_tune.optimizer.schedulers.searchers.conformal import (
    conformal_quantile_regression_searcher as conformal,
)
from syne_tune.optimizer.schedulers.searchers.last_value_multi_fidelity_searcher import (
    LastValueMultiFidelitySearcher,
)

from spark_hpo.search.space.parameter import Choice, Uniform
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.found import Found
from tests.benchmarks.replay.run import Replay

logging.getLogger("syne_tune").setLevel(logging.ERROR)


class _Bore(Bore):
    """BORE that asks its classifier about all candidates at once: the same choice, in a tenth of the time."""

    def suggest(self, **kwargs: Any) -> Any:
        self._drawn: list[dict[str, Any]] = []
        config = super().suggest(**kwargs)
        if len(self._drawn) <= 1:
            return config
        rows = np.array([self._hp_ranges.to_ndarray(candidate) for candidate in self._drawn])
        return self._drawn[int(super()._loss(rows).argmin())]

    def _get_random_config(self) -> dict[str, Any]:
        self._drawn.append(super()._get_random_config())
        return self._drawn[-1]

    def _loss(self, x: Any) -> Any:
        return np.zeros(1)


def _asha(searcher: type, update_frequency: int = 1) -> Callable[..., TrialScheduler]:
    """ASHABORE and ASHACQR as `syne_tune.optimizer.baselines` builds them, with a searcher of its own."""

    def build(space: dict[str, Any], *, random_seed: int, **settings: Any) -> TrialScheduler:
        over_rungs = LastValueMultiFidelitySearcher(
            space, random_seed=random_seed, searcher=searcher, update_frequency=update_frequency
        )
        return AsynchronousSuccessiveHalving(space, searcher=over_rungs, random_seed=random_seed, **settings)

    return build


SCHEDULERS: Mapping[str, Callable[..., TrialScheduler]] = {
    "ASHABORE": _asha(_Bore),
    "ASHACQR": _asha(conformal.ConformalQuantileRegression, update_frequency=8),
    "BOHB": BOHB,
}
"""ASHACQR fits five ensembles anew for each trial, unless `update_frequency` says otherwise."""


def replay_syne_tune(
    name: str,
    build: Callable[..., TrialScheduler],
    benchmark: Benchmark,
    *,
    slots: int,
    seed: int,
    budget: float,
) -> Replay:
    """A scheduler of Syne Tune's: told of every epoch, it stops a trial at a rung or lets it go on."""
    end = benchmark.max_resource
    limit = budget * benchmark.reference.full_s
    found = Found(benchmark, limit)
    np.random.seed(seed)  # it draws brackets from NumPy's own generator
    parameters = {str(d.key[0]): d.parameter for d in benchmark.space.dimensions()}
    scheduler = build(
        {name: _parameter(parameter) for name, parameter in parameters.items()},
        metric="loss",
        time_attr="epoch",
        max_t=end,
        do_minimize=True,
        random_seed=seed,
    )
    asking_s, count, low_at = 0.0, 0, None
    drawn: set[int] = set()
    running: dict[int, tuple[Trial, Any, float]] = {}  # with its curve, and when it began
    events: list[tuple[float, int, int]] = []  # (end of an epoch, trial, epoch)
    began = time.perf_counter()

    def start(now: float) -> None:
        nonlocal asking_s, count, low_at
        before = time.perf_counter()
        suggestion = scheduler.suggest()
        asking_s += time.perf_counter() - before
        params = {name: _inside(parameters[name], value) for name, value in suggestion.config.items()}
        if benchmark.pool is not None:
            number = benchmark.pool.nearest(params, drawn)
            params = benchmark.pool.configurations[number]
            drawn.add(number)
            if low_at is None and 2 * len(drawn) >= len(benchmark.pool):
                low_at = now / limit
        trial = Trial(trial_id=count, config=dict(params), creation_time=datetime.now())
        scheduler.on_trial_add(trial)
        curve = benchmark.curve(count, params)
        running[count] = (trial, curve, now)
        heapq.heappush(events, (now + curve.seconds(0, 1), count, 1))
        count += 1

    for _ in range(slots):
        start(0.0)
    while events:
        now, trial_id, epoch = heapq.heappop(events)
        if found.is_over(now):
            break
        trial, curve, started_at = running[trial_id]
        if curve.diverges_at is not None and epoch >= curve.diverges_at:
            scheduler.on_trial_error(trial)
        else:
            result = {"loss": found.report(now, curve, epoch), "epoch": epoch}
            if epoch == end:
                scheduler.on_trial_complete(trial, result)
            elif scheduler.on_trial_result(trial, result) == SchedulerDecision.CONTINUE:
                heapq.heappush(events, (started_at + curve.seconds(0, epoch + 1), trial_id, epoch + 1))
                continue
            else:
                scheduler.on_trial_remove(trial)
        del running[trial_id]
        start(now)
    return Replay(
        task=benchmark.task,
        method=name,
        slots=slots,
        seed=seed,
        budget=budget,
        trained=found.trained,
        deployed=found.deployed,
        busy=1.0,  # a slot takes the next trial in the moment in which it is free
        trials=count,
        proposals_per_s=count / max(asking_s, 1e-9),
        driver_s=time.perf_counter() - began,
        pool_low_at=low_at,
    )


def _parameter(parameter: Any) -> Any:
    if isinstance(parameter, Choice):
        return choice([option.value for option in parameter.options])
    assert isinstance(parameter, Uniform)
    low, high = parameter.bounds()
    if parameter.integer:
        return (lograndint if parameter.log else randint)(int(low), int(high))
    return (loguniform if parameter.log else uniform)(low, high)


def _inside(parameter: Any, value: Any) -> Any:
    """The value as a plain number. Syne Tune's BOHB now and then leaves the range of logarithmic integers."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(parameter, Choice):
        return plain
    low, high = parameter.bounds()
    return type(plain)(min(max(plain, low), high))
