"""MF-Hartmann after 300 evaluations, one after another: `python -m tests.benchmarks.bench_functions`.

To be read against what DEHB's published trajectories reach by then, -3.7405 with 3 parameters and -2.314
with 6. An evaluation is a report, at whatever resource; what counts is the best trained to the end. All
have the resource of 100 full trainings, so random search has no more than 100 evaluations.
"""

from __future__ import annotations

import argparse
import logging
from statistics import median
from typing import Any

from spark_hpo.study import Budget, RunningStudy, Search, Study
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Report, Trial
from tests.benchmarks.replay.functions import Hartmann
from tests.benchmarks.replay.memory import MemoryStorage
from tests.benchmarks.replay.methods import parse_method
from tests.support.simulated import SimulatedBackend

EVALUATIONS = 300
PUBLISHED = {3: -3.7405, 6: -2.314}


class Best(Callback):
    """The lowest loss of a trial trained to the end, of the first 300 reports."""

    def __init__(self, max_resource: int) -> None:
        self._max_resource = max_resource
        self._reports = 0
        self.loss = 0.0  # the function is never above it

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._reports += 1
        if self._reports <= EVALUATIONS and report.resource == self._max_resource:
            self.loss = min(self.loss, trial.loss)


class NoTracker:
    def sync(self, journal: Any) -> None: ...

    def info(self) -> dict[str, Any]:
        return {}


def search(function: Hartmann, text: str, seed: int) -> float:
    method = parse_method(text)
    backend = SimulatedBackend(function, num_slots=1)
    storage = MemoryStorage()
    best = Best(function.max_resource)
    journal = Journal.open(storage, function.objective)
    Study(
        journal=journal,
        search=Search(
            sampler=method.build_sampler(function.space, seed),
            scheduler=method.build_scheduler(function.max_resource),
            seed=seed,
        ),
        backend=backend,
        tracker=NoTracker(),
        budget=Budget(resource=EVALUATIONS * function.max_resource // 3),
        callbacks=[best],
        clock=backend.clock,
    ).run()
    journal.close()
    return best.loss


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", action="append")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    print("| function | bias | noise | method | median | worst | best | DEHB, published | optimum |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dimensions in (3, 6):
        for bias, noise in ((0.1, 0.0), (0.5, 0.1), (4.0, 0.8)):
            function = Hartmann(dimensions=dimensions, bias=bias, noise=noise)
            for text in options.method or ("default", "dehb", "hyperband", "random"):
                losses = [search(function, text, seed) for seed in range(options.seeds)]
                print(
                    f"| MF-Hartmann {dimensions} | {bias} | {noise} | {text} | {median(losses):.4f} | "
                    f"{max(losses):.4f} | {min(losses):.4f} | {PUBLISHED[dimensions]} | {function.optimum} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
