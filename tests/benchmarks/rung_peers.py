"""Peers that say how long to train a configuration, in the same clock: DEHB, SMAC3 and NePS.

They run in an environment of their own, because their packages do not go together with petastorm's.
"""

from __future__ import annotations

import heapq
import logging
import math
import random
import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ConfigSpace
import numpy as np

from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Uniform
from spark_hpo.trial import Params
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.found import Found
from tests.benchmarks.replay.run import Replay
from tests.support.simulated import Curve

logging.getLogger("smac").setLevel(logging.ERROR)
logging.getLogger("neps").setLevel(logging.ERROR)
_FAILED = 1e6  # for the libraries that have no word for a failure, or fit a model to it


class Job(NamedTuple):
    """A request to train a configuration."""

    configuration: Hashable  # the same at all resources
    params: Params
    epochs: int  # counted from the start of training
    token: Any  # the library's own name for the job


class Optimizer(Protocol):
    """Asks for jobs and learns from their losses; infinity: training diverged."""

    resumes: bool
    """A job resumes from the checkpoint of the job before, as the library's documentation shows."""

    def ask(self) -> Job: ...

    def tell(self, job: Job, params: Params, loss: float) -> None:
        """Learn a loss.

        Args:
            params: of the configuration that was trained: in a table, the nearest one to what was asked for.
        """
        ...


Build = Callable[[Space, int, int, Path], Optimizer]
"""From a space, the largest resource, a seed, and a folder that is deleted at the end."""


def replay_rungs(
    name: str, build: Build, benchmark: Benchmark, *, slots: int, seed: int, budget: float
) -> Replay:
    """Replay a search with K workers, each of which asks as soon as it is idle."""
    found = Found(benchmark, budget * benchmark.reference.full_s)
    asking_s, count, low_at = 0.0, 0, None
    numbers: dict[Hashable, int] = {}  # in the pool
    trained: dict[Hashable, tuple[int, int]] = {}  # (trial, epochs that it was trained for)
    events: list[tuple[float, int, Job, Params, Curve, int]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        optimizer = build(benchmark.space, benchmark.max_resource, seed, Path(folder))

        def start(now: float) -> None:
            nonlocal asking_s, count, low_at
            before = time.perf_counter()
            job = optimizer.ask()
            asking_s += time.perf_counter() - before
            params = _within(benchmark.space, job.params)
            if benchmark.pool is not None:
                if job.configuration not in numbers:
                    numbers[job.configuration] = benchmark.pool.nearest(params, set(numbers.values()))
                params = benchmark.pool.configurations[numbers[job.configuration]]
                if low_at is None and 2 * len(numbers) >= len(benchmark.pool):
                    low_at = found.share(now)
            trial, done = trained.get(job.configuration, (count, 0)) if optimizer.resumes else (count, 0)
            curve = benchmark.curve(trial, params)
            epochs = job.epochs
            if curve.diverges_at is not None and curve.diverges_at <= epochs:
                epochs = curve.diverges_at
            trained[job.configuration] = trial, epochs
            heapq.heappush(events, (now + curve.seconds(done, epochs), count, job, params, curve, epochs))
            count += 1

        for _ in range(slots):
            start(0.0)
        while events:
            now, _, job, params, curve, epochs = heapq.heappop(events)
            if found.is_over(now):
                break
            failed = curve.diverges_at is not None and curve.diverges_at <= epochs
            loss = math.inf if failed else found.report(now, curve, epochs)
            optimizer.tell(job, params, loss)
            start(now)
    return Replay(
        task=benchmark.task,
        method=name,
        slots=slots,
        seed=seed,
        budget=budget,
        trained=found.trained,
        deployed=found.deployed,
        busy=1.0,  # asked asynchronously, it always has something to run
        trials=count,
        proposals_per_s=count / max(asking_s, 1e-9),
        driver_s=time.perf_counter() - began,
        pool_low_at=low_at,
    )


class Dehb:
    """DEHB, which keeps no checkpoints."""

    resumes = False

    def __init__(self, space: Space, max_resource: int, seed: int, folder: Path) -> None:
        import loguru
        from dehb import DEHB

        loguru.logger.remove()
        self._max_resource = max_resource
        self._optimizer = DEHB(
            cs=_config_space(space, seed),
            f=None,
            min_fidelity=1,
            max_fidelity=max_resource,
            eta=3,
            n_workers=1,  # more would start as many processes; whoever asks K times has K workers
            seed=seed,
            save_freq="end",
            output_path=str(folder),
        )

    def ask(self) -> Job:
        job = self._optimizer.ask()
        epochs = min(self._max_resource, max(1, round(job["fidelity"])))
        return Job(job["config_id"], _plain(job["config"]), epochs, job)

    def tell(self, job: Job, params: Params, loss: float) -> None:
        self._optimizer.tell(job.token, {"fitness": min(loss, _FAILED), "cost": 1.0})


class SmacHyperband:
    """SMAC3's `MultiFidelityFacade` with Hyperband, as in its example of epochs: training starts anew."""

    resumes = False

    def __init__(self, space: Space, max_resource: int, seed: int, folder: Path) -> None:
        from smac import MultiFidelityFacade, Scenario
        from smac.intensifier.hyperband import Hyperband

        self._max_resource = max_resource
        scenario = Scenario(
            _config_space(space, seed),
            output_directory=folder,
            deterministic=True,
            n_trials=1_000_000,
            min_budget=1,
            max_budget=max_resource,
            seed=seed,
        )
        model = MultiFidelityFacade.get_model(scenario)
        model._rf_opts["n_jobs"] = 1  # the same trees; threads would spend their time waiting
        self._facade = MultiFidelityFacade(
            scenario,
            _never_called,
            model=model,
            initial_design=MultiFidelityFacade.get_initial_design(scenario, n_configs=5),
            intensifier=Hyperband(scenario, incumbent_selection="highest_budget"),
            logging_level=False,
        )

    def ask(self) -> Job:
        info = self._facade.ask()
        epochs = min(self._max_resource, max(1, round(info.budget)))
        return Job(info.config, _plain(info.config), epochs, info)

    def tell(self, job: Job, params: Params, loss: float) -> None:
        from smac.runhistory.dataclasses import TrialValue
        from smac.runhistory.enumerations import StatusType

        status = StatusType.SUCCESS if math.isfinite(loss) else StatusType.CRASHED
        self._facade.tell(job.token, TrialValue(cost=min(loss, _FAILED), status=status), save=False)


class NepsPriorBand:
    """NePS' PriorBand on ASHA, without a prior. Its documentation resumes from the checkpoint of a rung."""

    resumes = True

    def __init__(self, space: Space, max_resource: int, seed: int, folder: Path) -> None:
        import neps
        import torch

        # It draws from the generators of the process.
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        parameters = {str(d.key[0]): _neps(neps, d.parameter) for d in space.dimensions()}
        fidelity = neps.IntegerFidelity(lower=1, upper=max_resource)
        declared = type("Declared", (neps.PipelineSpace,), {**parameters, "epochs": fidelity})()
        self._optimizer = neps.AskAndTell(neps.algorithms.priorband(declared, base="asha"))

    def ask(self) -> Job:
        trial = self._optimizer.ask()
        params = {name: value for name, value in trial.config.items() if name != "epochs"}
        return Job(trial.metadata.id.split("_rung_")[0], _plain(params), int(trial.config["epochs"]), trial)

    def tell(self, job: Job, params: Params, loss: float) -> None:
        job.token.config = {**params, "epochs": job.epochs}
        failed = not math.isfinite(loss)
        self._optimizer.tell(job.token, RuntimeError("training diverged") if failed else loss)


OPTIMIZERS: dict[str, tuple[str, Build]] = {
    "DEHB": ("dehb", Dehb),
    "SMAC3, Hyperband": ("smac", SmacHyperband),
    "NePS PriorBand, ASHA": ("neps", NepsPriorBand),
}
"""The optimizer by name, with the module that it needs."""


def _never_called(config: Any, seed: int = 0, budget: float = 0.0) -> float:
    raise AssertionError("the clock is asked, not this function")


def _config_space(space: Space, seed: int) -> ConfigSpace.ConfigurationSpace:
    declared = ConfigSpace.ConfigurationSpace(seed=seed)
    for dimension in space.dimensions():
        name, parameter = str(dimension.key[0]), dimension.parameter
        if isinstance(parameter, Choice):
            declared.add(ConfigSpace.Categorical(name, [option.value for option in parameter.options]))
            continue
        assert isinstance(parameter, Uniform)
        low, high = parameter.bounds()
        if parameter.integer:
            declared.add(ConfigSpace.Integer(name, (int(low), int(high)), log=parameter.log))
        else:
            declared.add(ConfigSpace.Float(name, (low, high), log=parameter.log))
    return declared


def _neps(neps: Any, parameter: Any) -> Any:
    if isinstance(parameter, Choice):
        return neps.Categorical([option.value for option in parameter.options])
    assert isinstance(parameter, Uniform)
    low, high = parameter.bounds()
    if parameter.integer:
        return neps.Integer(int(low), int(high), log=parameter.log)
    return neps.Float(low, high, log=parameter.log)


def _within(space: Space, params: Params) -> Params:
    """Correct values that the library's rounding has moved out of their range."""
    bounds = {
        str(d.key[0]): d.parameter.bounds() for d in space.dimensions() if isinstance(d.parameter, Uniform)
    }
    return {
        name: type(value)(min(max(value, bounds[name][0]), bounds[name][1])) if name in bounds else value
        for name, value in params.items()
    }


def _plain(config: Any) -> Params:
    return {
        name: value.item() if isinstance(value, np.generic) else value for name, value in dict(config).items()
    }
