"""Other libraries in the same clock: the same space and first trials, each at its documented settings."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from hyperopt import STATUS_FAIL, STATUS_OK, Trials, hp, tpe
from hyperopt.base import JOB_STATE_DONE, JOB_STATE_RUNNING, Domain
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.samplers._tpe import _truncnorm
from optuna.trial import TrialState
from scipy import special

from spark_hpo.search.explorer import Explorer
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.schedulers.synchronous import FullScheduler
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Uniform
from spark_hpo.trial import Params
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.found import Found
from tests.benchmarks.replay.run import Replay

optuna.logging.set_verbosity(optuna.logging.ERROR)
# Optuna's own work value by value in Python, and take nearly all of its time: SciPy's are the same functions.
_truncnorm._log_ndtr = special.log_ndtr
_truncnorm._ndtri_exp = special.ndtri_exp

Peer = Callable[..., Replay]
_HYPEROPT_STARTUP = 20  # tpe.suggest's own
_OPTUNA_STARTUP = 10  # TPESampler's and GPSampler's own


@dataclass(frozen=True, slots=True)
class FullTraining:
    """A peer's sampler; every trial is trained to the end, K in flight."""

    name: str
    sampler: Callable[[Space, int], Sampler]

    def build_sampler(self, space: Space, seed: int) -> Sampler:
        return self.sampler(space, seed)

    def build_scheduler(self, max_resource: int) -> Scheduler:
        return FullScheduler(max_resource)

    def build_explorer(self, space: Space, seed: int) -> Explorer:
        return PerturbationExplorer(space, seed)  # never asked: nobody has children here


class HyperoptTpe:
    """hyperopt's `tpe.suggest` as SparkTrials calls it: one suggestion at a time, trials in flight running.

    The space has parameters side by side, as those of the benchmarks do.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self._parameters = {str(d.key[0]): d.parameter for d in space.dimensions()}
        self._domain = Domain(lambda params: None, {n: _hyperopt(n, p) for n, p in self._parameters.items()})
        self._trials = Trials()
        self._documents: dict[int, Any] = {}

    def ask(self, trial_id: int) -> Params:
        if trial_id < _HYPEROPT_STARTUP:
            return self._space.sample(np.random.default_rng((self._seed, trial_id)))
        seed = int(np.random.default_rng((self._seed, trial_id)).integers(2**31))
        with np.errstate(all="ignore"):
            (document,) = tpe.suggest([trial_id], self._domain, self._trials, seed)
        values = {name: value[0] for name, value in document["misc"]["vals"].items()}
        point: dict[Any, Any] = {}
        for name, parameter in self._parameters.items():
            value = values[name]
            if isinstance(parameter, Choice):
                point[name,] = int(value)
            else:
                low, high = parameter.bounds()
                point[name,] = parameter.plain(min(max(value, low), high))
        return self._space.unflatten(point)

    def start(self, trial_id: int, params: Params) -> None:
        point = self._space.flatten(params)
        misc = {
            "tid": trial_id,
            "cmd": self._domain.cmd,
            "workdir": None,
            "idxs": {name: [trial_id] for name in self._parameters},
            "vals": {name: [point[name,]] for name in self._parameters},
        }
        (document,) = self._trials.new_trial_docs([trial_id], [None], [{"status": "new"}], [misc])
        document["state"] = JOB_STATE_RUNNING
        self._trials.insert_trial_doc(document)
        self._trials.refresh()
        self._documents[trial_id] = self._trials._dynamic_trials[-1]

    def tell(self, trial_id: int, *, resource: int, loss: float, others: tuple[float, ...] = ()) -> None:
        document = self._documents[trial_id]
        document["state"] = JOB_STATE_DONE
        failed = not math.isfinite(loss)
        document["result"] = {"status": STATUS_FAIL} if failed else {"status": STATUS_OK, "loss": loss}
        self._trials.refresh()


def optuna_tpe(seed: int, **settings: Any) -> BaseSampler:
    return TPESampler(seed=seed, **settings)


def optuna_gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed)


class AutoRule(BaseSampler):
    """The published rule of OptunaHub's AutoSampler for one objective, over Optuna's own samplers.

    Spaces with choices are TPE's, others are GPSampler's for the first 250 completed trials, and those of a
    warm-started CMA-ES afterwards. Until a trial has completed, sampling is random. The package itself is
    downloaded from GitHub when it is used, so that it cannot be installed.
    """

    _gp_trials = 250

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._sampler: BaseSampler = RandomSampler(seed)

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if ended:
            self._sampler = self._choose(ended)
        self._sampler.before_trial(study, trial)

    def _choose(self, ended: list[optuna.trial.FrozenTrial]) -> BaseSampler:
        if any(isinstance(d, CategoricalDistribution) for d in ended[0].distributions.values()):
            wanted: type[BaseSampler] = TPESampler
        else:
            wanted = GPSampler if len(ended) < self._gp_trials else CmaEsSampler
        if isinstance(self._sampler, wanted):
            return self._sampler
        if wanted is TPESampler:
            return TPESampler(seed=self._seed, multivariate=True, constant_liar=True)
        if wanted is GPSampler:
            return GPSampler(seed=self._seed)
        return CmaEsSampler(seed=self._seed, source_trials=ended[: self._gp_trials])

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self._sampler.after_trial(study, trial, state, values)


class OptunaSearch:
    """A sampler of Optuna's behind ask and tell."""

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        build: Callable[[int], BaseSampler] = optuna_tpe,
        pruner: BasePruner | None = None,
    ) -> None:
        self._space, self._seed = space, seed
        self.distributions = {str(d.key[0]): _optuna(d.parameter) for d in space.dimensions()}
        self.study = optuna.create_study(
            sampler=build(seed),
            pruner=pruner or NopPruner(),
            study_name=f"seed {seed}",  # the Hyperband pruner draws brackets from it
        )
        self._asked: optuna.Trial | None = None
        self.trials: dict[int, optuna.Trial] = {}

    def ask(self, trial_id: int) -> Params:
        if trial_id < _OPTUNA_STARTUP:
            return self._space.sample(np.random.default_rng((self._seed, trial_id)))
        self._asked = self.study.ask(self.distributions)
        return dict(self._asked.params)

    def start(self, trial_id: int, params: Params) -> None:
        if self._asked is None or self._asked.params != params:
            if self._asked is not None:
                self.study.tell(self._asked, state=TrialState.FAIL)  # the pool has another one instead
            self.study.enqueue_trial(dict(params))
            self._asked = self.study.ask(self.distributions)
        self.trials[trial_id], self._asked = self._asked, None

    def tell(self, trial_id: int, *, resource: int, loss: float, others: tuple[float, ...] = ()) -> None:
        if math.isfinite(loss):
            self.study.tell(self.trials[trial_id], loss)
        else:
            self.study.tell(self.trials[trial_id], state=TrialState.FAIL)


def replay_with_pruner(
    name: str,
    pruner: Callable[[int], BasePruner],
    benchmark: Benchmark,
    *,
    slots: int,
    seed: int,
    budget: float,
) -> Replay:
    """Optuna as its users run it: report after every epoch, stop when told to, never go on again."""
    end = benchmark.max_resource
    limit = budget * benchmark.reference.full_s
    found = Found(benchmark, limit)
    sampler = OptunaSearch(benchmark.space, seed, pruner=pruner(end))
    count, asking_s, low_at = 0, 0.0, None
    drawn: set[int] = set()
    events: list[tuple[float, int, int, int]] = []  # (end of an epoch, order, trial, epoch)
    curves, began_at = {}, {}
    order = 0
    began = time.perf_counter()

    def start(now: float) -> None:
        nonlocal count, order, asking_s, low_at
        before = time.perf_counter()
        params = sampler.ask(count)
        asking_s += time.perf_counter() - before
        if benchmark.pool is not None:
            number = benchmark.pool.nearest(params, drawn)
            params = benchmark.pool.configurations[number]
            drawn.add(number)
            if low_at is None and 2 * len(drawn) >= len(benchmark.pool):
                low_at = now / limit
        sampler.start(count, params)
        curves[count], began_at[count] = benchmark.curve(count, params), now
        heapq.heappush(events, (now + curves[count].seconds(0, 1), order, count, 1))
        count, order = count + 1, order + 1

    for _ in range(slots):
        start(0.0)
    while events:
        now, _, trial_id, epoch = heapq.heappop(events)
        if found.is_over(now):
            break
        curve, trial = curves[trial_id], sampler.trials[trial_id]
        if curve.diverges_at is not None and epoch >= curve.diverges_at:
            sampler.study.tell(trial, state=TrialState.FAIL)
        else:
            loss = found.report(now, curve, epoch)
            trial.report(loss, epoch)
            if epoch == end:
                sampler.study.tell(trial, loss)
            elif trial.should_prune():
                sampler.study.tell(trial, state=TrialState.PRUNED)
            else:
                later = began_at[trial_id] + curve.seconds(0, epoch + 1)
                heapq.heappush(events, (later, order, trial_id, epoch + 1))
                order += 1
                continue
        del curves[trial_id]
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


def hyperband_pruner(max_resource: int) -> BasePruner:
    return HyperbandPruner(min_resource=1, max_resource=max_resource, reduction_factor=3)


def halving_pruner(max_resource: int) -> BasePruner:
    return SuccessiveHalvingPruner()


def _hyperopt(name: str, parameter: Any) -> Any:
    if isinstance(parameter, Choice):
        return hp.choice(name, list(range(len(parameter.options))))
    assert isinstance(parameter, Uniform)
    low, high = parameter.bounds()
    if parameter.q is not None:
        if parameter.log:
            return hp.qloguniform(name, math.log(low), math.log(high), parameter.q)
        return hp.quniform(name, low, high, parameter.q)
    return (
        hp.loguniform(name, math.log(low), math.log(high)) if parameter.log else hp.uniform(name, low, high)
    )


def _optuna(parameter: Any) -> Any:
    if isinstance(parameter, Choice):
        return CategoricalDistribution([option.value for option in parameter.options])
    assert isinstance(parameter, Uniform)
    low, high = parameter.bounds()
    if parameter.integer:
        return IntDistribution(int(low), int(high), log=parameter.log)
    return FloatDistribution(low, high, log=parameter.log, step=parameter.q)
