"""What the driver costs: `python -m tests.benchmarks.bench_driver [--trials 10000] [--slots 1000]`.

The whole loop runs on the virtual clock: scheduler, sampler, journal and backend; the journal once in
memory and once on the local disk. To be read against: five minutes with TPE, one with random search. Then
how busy slots are when the budget is one of time. Writes docs/benchmarks/driver.md.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.wrappers import WrappedSampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.study import Budget, Search, Study
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.tracker import Tracker
from spark_hpo.trial import Params
from tests.benchmarks.replay.functions import Hartmann
from tests.benchmarks.replay.memory import MemoryStorage
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.run import replay
from tests.support.simulated import SimulatedBackend

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "driver.md"
FUNCTION = Hartmann(dimensions=6, max_resource=27)
LAST = 500  # proposals at the end, when all trials are known
BUSY = ((8, 20.0), (32, 20.0), (1000, 2.0))  # slots, and full trainings for each
INTRODUCTION = f"""# The cost of the driver

How long does the driver take to decide? This benchmark runs the whole loop (scheduler, sampler, journal
and backend) on MF-Hartmann 6 with a simulated clock. `python -m tests.benchmarks.bench_driver` writes
this page. With the journal on disk, the driver waits for one `fsync` per event, about three per trial;
most of the difference between the two journals is the time that the disk takes.

The first table has a budget of trials. The last promotions run alone while other slots are idle. *CPU* is
the processor time of the driver, without its waiting. The last columns are medians, in processor time, of
the last {LAST} proposals: *per proposal* is the sampler's part; *per decision* is all that scheduler and
sampler did for a new trial, from the proposal before: reports, promotions and the proposal.

"""


class Watched(WrappedSampler):
    """A sampler, and how long each of its proposals took; and each decision, with a scheduler."""

    def __init__(self, sampler: Sampler, scheduler: Scheduler) -> None:
        super().__init__(sampler)
        self.seconds: list[float] = []  # of proposals
        self.decisions: list[float] = []  # seconds of both, from a proposal to the next one
        self._since = 0.0
        scheduler.report = self._timed(scheduler.report)  # type: ignore[method-assign]
        scheduler.next_slot = self._timed(scheduler.next_slot)  # type: ignore[method-assign]
        self.start = self._timed(super().start)  # type: ignore[method-assign]
        self.tell = self._timed(super().tell)  # type: ignore[method-assign]

    def ask(self, trial_id: int) -> Params:
        began = time.process_time()
        params = super().ask(trial_id)
        self.seconds.append(time.process_time() - began)
        self.decisions.append(self._since + self.seconds[-1])
        self._since = 0.0
        return params

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            result = call(*arguments, **named)
            self._since += time.process_time() - began
            return result

        return timed


class NoTracker:
    def sync(self, journal: Any) -> None: ...

    def info(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A study of simulated trials, ready to run."""

    study: Study
    sampler: Watched
    backend: SimulatedBackend


def simulate(
    text: str, journal: Journal, storage: Storage, tracker: Tracker, *, trials: int, slots: int
) -> Simulation:
    """A search on MF-Hartmann 6 by the method of that name, with a budget of trials."""
    method = parse_method(text)
    method = replace(method, scheduler_settings={**method.scheduler_settings, "max_trials": trials})
    backend = SimulatedBackend(FUNCTION, slots)
    scheduler = method.build_scheduler(FUNCTION.max_resource)
    sampler = Watched(method.build_sampler(FUNCTION.space, 0), scheduler)
    study = Study(
        journal=journal,
        search=Search(sampler=sampler, scheduler=scheduler),
        backend=backend,
        tracker=tracker,
        budget=Budget(trials=trials),
        clock=backend.clock,
    )
    return Simulation(study=study, sampler=sampler, backend=backend)


def measure(text: str, storage: Storage, *, trials: int, slots: int) -> str:
    journal = Journal.open(storage, FUNCTION.objective)
    began, cpu_began = time.perf_counter(), time.process_time()
    simulation = simulate(text, journal, storage, NoTracker(), trials=trials, slots=slots)
    simulation.study.run()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    journal.close()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    backend = simulation.backend
    return (
        f"| {text} | {type(storage).__name__} | {trials:,} | {slots:,} | {seconds:.1f} s | "
        f"{cpu_seconds:.1f} s | "
        f"{1000 * median(simulation.sampler.seconds[-LAST:]):.2f} ms | "
        f"{1000 * median(simulation.sampler.decisions[-LAST:]):.2f} ms | "
        f"{backend.busy(backend.clock()):.1%} | {peak_mib:.0f} MiB |"
    )


def busy(text: str, slots: int, budget: float) -> str:
    one = replay(FUNCTION, parse_method(text), slots=slots, seed=0, budget=budget)
    return f"| {text} | {slots:,} | {budget:g} | {one.trials:,} | {one.busy:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1_000)
    parser.add_argument("--method", action="append")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(
        "| method | journal | trials | slots | driver | CPU | per proposal | per decision | slots busy "
        "| peak memory |"
    )
    say("|---|---|---|---|---|---|---|---|---|---|")
    for text in options.method or ("random+hyperband", "default", "tpe+async_hyperband"):
        say(measure(text, MemoryStorage(), trials=options.trials, slots=options.slots))
        with tempfile.TemporaryDirectory() as folder:
            say(measure(text, Storage(folder), trials=options.trials, slots=options.slots))
    say("\nThe second table has a budget of time, in full trainings per slot:\n")
    say("| method | slots | budget | trials | slots busy |")
    say("|---|---|---|---|---|")
    for text in options.method or ("default", "tpe+hyperband"):
        for slots, budget in BUSY:
            say(busy(text, slots, budget))
    options.output.write_text(INTRODUCTION + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
