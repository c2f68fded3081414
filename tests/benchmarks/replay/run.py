"""One replay: a search on a benchmark under the virtual clock, and what it had found when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from spark_hpo.errors import NoTrialSucceeded
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.wrappers import WrappedSampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.space import Space
from spark_hpo.study import Budget, RunningStudy, Search, Study
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Assignment, Params, Report, Trial
from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.ends_at import EndsAt
from tests.benchmarks.replay.found import Found, History, at
from tests.benchmarks.replay.memory import MemoryStorage
from tests.benchmarks.replay.pool import PoolExplorer, PoolSampler
from tests.support.simulated import Curve, Disturbances, SimulatedBackend

_POOL_IS_LOW = 0.5  # of a pool drawn: from here on its regret says little


class Method(Protocol):
    """What is replayed."""

    @property
    def name(self) -> str: ...

    def build_sampler(self, space: Space, seed: int) -> Sampler: ...

    def build_scheduler(self, max_resource: int) -> Scheduler: ...

    def build_explorer(self, space: Space, seed: int) -> Explorer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What one search had found when. Times are shares of the budget, 0..1."""

    task: str
    method: str
    slots: int
    seed: int
    budget: float  # full trainings per slot
    trained: History  # the regret of the best configuration that was trained to the end
    deployed: History  # the regret of the best checkpoint by its validation value, on unseen data
    busy: float  # share of slot time filled
    trials: int
    proposals_per_s: float  # of driver time inside the sampler
    driver_s: float  # of the whole replay, without the answers of the benchmark
    pool_low_at: float | None = None  # when half of the pool was drawn; None: never, or no pool

    def first(self, budget: float) -> Replay:
        """The replay of a smaller budget: a search does not know its budget."""
        share = budget / self.budget * (1 + 1e-9)  # times of the same moment differ by rounding
        cut = {
            name: tuple(
                (min(when / share, 1.0), regret) for when, regret in getattr(self, name) if when <= share
            )
            for name in ("trained", "deployed")
        }
        return replace(self, budget=budget, **cut)

    def regret(self, when: float) -> float:
        """Of the best configuration trained to the end by then; 1, the median one's, before there is one."""
        return at(self.trained, when)


def replay(
    benchmark: Benchmark,
    method: Method,
    *,
    slots: int,
    seed: int,
    budget: float,
    disturbances: Disturbances | None = None,
) -> Replay:
    """Search a benchmark as a study would: the same driver loop, the same journal, in memory.

    A trial that takes over another's weights is answered for as if its own parameters had been trained
    from the start: curves know of no other way to get there.

    Args:
        slots: assignments at the same time.
        budget: full trainings per slot, in the time that one takes on average.
    """
    limit_s = budget * benchmark.reference.full_s
    curves = _Remembered(benchmark)
    backend = SimulatedBackend(curves, slots, disturbances)
    sampler = _Timed(method.build_sampler(benchmark.space, seed))
    explorer = method.build_explorer(benchmark.space, seed)
    pool = None if benchmark.pool is None else PoolSampler(sampler, benchmark.pool)
    # The real journal, without a disk: an append there may take milliseconds.
    storage = MemoryStorage()
    journal = Journal.open(storage, benchmark.objective)
    found = Found(benchmark, limit_s)
    watch = _Watch(benchmark, backend.clock, pool, curves, found)
    began = time.perf_counter()
    try:
        study = Study(
            journal=journal,
            search=Search(
                sampler=pool or sampler,
                scheduler=method.build_scheduler(benchmark.max_resource),
                explorer=PoolExplorer(explorer, pool) if pool else explorer,
                stopping=[EndsAt(backend.clock, limit_s)],
                seed=seed,
            ),
            backend=backend,
            tracker=_NoTracker(),
            budget=Budget(),
            callbacks=[watch],
            clock=backend.clock,
        )
        study.run()
    except NoTrialSucceeded:
        pass  # its regret stays that of the median configuration
    finally:
        journal.close()
    return Replay(
        task=benchmark.task,
        method=method.name,
        slots=slots,
        seed=seed,
        budget=budget,
        trained=found.trained,
        deployed=found.deployed,
        busy=backend.busy(limit_s),
        trials=sampler.asked,
        proposals_per_s=sampler.asked / max(sampler.seconds, 1e-9),
        driver_s=time.perf_counter() - began - curves.seconds,
        pool_low_at=None if watch.pool_low_at is None else watch.pool_low_at / limit_s,
    )


class _Remembered:
    """The curves of the trials of one search, each computed once."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._curves: dict[int, tuple[Params, Curve]] = {}
        self.seconds = 0.0

    def curve(self, trial_id: int, params: Params) -> Curve:
        known = self._curves.get(trial_id)
        if known is not None and known[0] is params:
            return known[1]
        began = time.perf_counter()
        curve = self._benchmark.curve(trial_id, params)
        self.seconds += time.perf_counter() - began
        self._curves[trial_id] = (params, curve)
        return curve


class _Timed(WrappedSampler):
    """A sampler, and how long its proposals take."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler)
        self.asked = 0
        self.seconds = 0.0

    def ask(self, trial_id: int) -> Params:
        began = time.perf_counter()
        params = super().ask(trial_id)
        self.seconds += time.perf_counter() - began
        self.asked += 1
        return params


class _Watch(Callback):
    """Passes the reports on to `Found`, and notes when half of a pool is drawn."""

    def __init__(
        self,
        benchmark: Benchmark,
        clock: Callable[[], float],
        pool: PoolSampler | None,
        curves: _Remembered,
        found: Found,
    ) -> None:
        self._clock = clock
        self._pool = pool
        self._curves = curves
        self._found = found
        self._size = 0 if benchmark.pool is None else len(benchmark.pool)
        self.pool_low_at: float | None = None

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        if self._pool is None or self.pool_low_at is not None:
            return
        if len(self._pool.drawn) >= _POOL_IS_LOW * self._size:
            self.pool_low_at = self._clock()

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        if report.failure is None:
            self._found.report(
                self._clock(), self._curves.curve(trial.trial_id, trial.params), report.resource
            )


class _NoTracker:
    def sync(self, journal: Any) -> None:
        """Shows nothing to anybody."""

    def info(self) -> Mapping[str, Any]:
        return {}
