"""DEHB on the same clock, in an environment of its own, because its pyarrow is too new for Petastorm."""

from __future__ import annotations

import heapq
import tempfile
import time
from typing import Any

import ConfigSpace
import loguru
import numpy as np
from dehb import DEHB

from spark_hpo.search.space.parameter import Choice, Uniform
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.found import Found
from tests.benchmarks.replay.run import Replay
from tests.support.simulated import Curve

loguru.logger.remove()
_FAILED = 1e6  # DEHB has no word for a failure


def replay_dehb(name: str, benchmark: Benchmark, *, slots: int, seed: int, budget: float) -> Replay:
    """K workers; every evaluation trains from the start, for DEHB keeps no checkpoints."""
    end = benchmark.max_resource
    limit = budget * benchmark.reference.full_s
    found = Found(benchmark, limit)
    space = ConfigSpace.ConfigurationSpace(seed=seed)
    for dimension in benchmark.space.dimensions():
        space.add(_parameter(str(dimension.key[0]), dimension.parameter))
    asking_s, count = 0.0, 0
    drawn: dict[int, int] = {}  # number in the pool, by DEHB's configuration
    low_at = None
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        optimizer = DEHB(
            cs=space,
            f=None,
            min_fidelity=1,
            max_fidelity=end,
            eta=3,
            n_workers=1,  # more would start as many processes; whoever asks K times has K workers
            seed=seed,
            save_freq="end",
            output_path=folder,
        )
        events: list[tuple[float, int, Any, float, Curve, int]] = []

        def start(now: float) -> None:
            nonlocal asking_s, count, low_at
            before = time.perf_counter()
            job = optimizer.ask()
            asking_s += time.perf_counter() - before
            params = {key: _plain(value) for key, value in dict(job["config"]).items()}
            if benchmark.pool is not None:
                if job["config_id"] not in drawn:
                    drawn[job["config_id"]] = benchmark.pool.nearest(params, set(drawn.values()))
                params = benchmark.pool.configurations[drawn[job["config_id"]]]
                if low_at is None and 2 * len(drawn) >= len(benchmark.pool):
                    low_at = now / limit
            epochs = min(end, max(1, round(job["fidelity"])))
            curve = benchmark.curve(count, params)
            loss = _FAILED
            if curve.diverges_at is not None and curve.diverges_at <= epochs:
                epochs = curve.diverges_at
            else:
                values = {metric: float(v[epochs - 1]) for metric, v in curve.metrics.items()}
                loss = benchmark.objective.loss(values)
            heapq.heappush(events, (now + curve.seconds(0, epochs), count, job, loss, curve, epochs))
            count += 1

        for _ in range(slots):
            start(0.0)
        while events:
            now, _, job, loss, curve, epochs = heapq.heappop(events)
            if now > limit:
                break
            optimizer.tell(job, {"fitness": loss, "cost": 1.0})
            if loss < _FAILED:
                found.report(now, curve, epochs)
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


def _parameter(name: str, parameter: Any) -> Any:
    if isinstance(parameter, Choice):
        return ConfigSpace.Categorical(name, [option.value for option in parameter.options])
    assert isinstance(parameter, Uniform)
    low, high = parameter.bounds()
    if parameter.integer:
        return ConfigSpace.Integer(name, (int(low), int(high)), log=parameter.log)
    return ConfigSpace.Float(name, (low, high), log=parameter.log)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
