"""Population based training beside fixed parameters: `python -m tests.benchmarks.bench_population`.

Trains small networks on scikit-learn's digits, in this process, and writes docs/benchmarks/population.md.
All methods train the same number of epochs with the same number of slots.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from spark_hpo.objective import Mode, Objective
from spark_hpo.search.space import Space
from spark_hpo.study import Budget, Search, Study
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Assignment, Params, Report
from tests.benchmarks.replay.ends_at import EndsAt
from tests.benchmarks.replay.memory import MemoryStorage
from tests.benchmarks.replay.methods import parse_method
from tests.support.simulated import Curve, SimulatedBackend

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "population.md"
METHODS = ("random", "pbt", "pb2")
EPOCHS = 40
INTERVAL = 4  # epochs between two decisions of a population, and between two checkpoints of all methods
TRAIN_ROWS, VALIDATION_ROWS = 600, 400
BATCH_ROWS = 64
OBJECTIVE = Objective(metric="cross_entropy", mode=Mode.MIN)
SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-3, "high": 1.0},
        "weight_decay": {"type": "loguniform", "low": 1e-6, "high": 1e-1},
        "dropout": {"type": "uniform", "low": 0.0, "high": 0.7},
    }
)
INTRODUCTION = f"""# Population based training on digits

Does a schedule that a population finds beat the best fixed parameters? This benchmark trains a network \
with one hidden layer of 64 units on {TRAIN_ROWS} of scikit-learn's digits, by SGD with momentum, for \
{EPOCHS} epochs. Learning rate, weight decay and dropout are searched. The validation cross-entropy on \
{VALIDATION_ROWS} other digits decides; the table has the cross-entropy on the remaining test rows. \
`python -m tests.benchmarks.bench_population` writes this page.

`pbt` and `pb2` train a population side by side and decide every {INTERVAL} epochs. `random` trains as \
many random configurations as the population has members, each with fixed parameters, so all methods train \
the same number of epochs. *At the end* is the model with the best validation value after {EPOCHS} epochs; \
*any checkpoint* is the best one of all that were saved, every {INTERVAL} epochs. Both are medians over \
seeds; *wins* counts the seeds with a lower one than `random` with the same seed; in brackets, how \
probable that many are by chance.

"""


@dataclass(frozen=True, slots=True)
class Digits:
    """Rows and labels of a split."""

    rows: torch.Tensor  # [rows, 64]
    labels: torch.Tensor  # [rows]


def splits() -> tuple[Digits, Digits, Digits]:
    """Training, validation and test rows: the same for every search."""
    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(rows))
    parts = np.split(order, [TRAIN_ROWS, TRAIN_ROWS + VALIDATION_ROWS])
    train, validation, test = (
        Digits(torch.tensor(rows[part] / 16.0, dtype=torch.float32), torch.tensor(labels[part]))
        for part in parts
    )
    return train, validation, test


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A checkpoint by its cross-entropies."""

    epoch: int
    validation: float
    test: float


class _NoCurves:
    def curve(self, trial_id: int, params: Params) -> Curve:
        raise AssertionError("trials are trained")


class TrainingBackend(SimulatedBackend):
    """Trains a trial when it is submitted, and reports after as many virtual seconds as it has epochs."""

    def __init__(self, num_slots: int, seed: int) -> None:
        super().__init__(_NoCurves(), num_slots)
        self._seed = seed
        self._train, self._validation, self._test = splits()
        self._checkpoints: dict[str, tuple[Any, Any]] = {}  # states of the network and of its optimizer
        self.measured: list[Measured] = []
        self.epochs = 0

    def _outcome(self, assignment: Assignment) -> Report:
        torch.manual_seed(hash((self._seed, assignment.trial_id, assignment.resource_from)) % 2**31)
        params = assignment.params
        network = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(params["dropout"]), nn.Linear(64, 10)
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=params["lr"], momentum=0.9)
        if assignment.checkpoint is not None:
            weights, momenta = self._checkpoints[assignment.checkpoint]
            network.load_state_dict(weights)
            optimizer.load_state_dict(momenta)
        for group in optimizer.param_groups:  # a child has parameters of its own
            group.update(lr=params["lr"], weight_decay=params["weight_decay"])
        for epoch in range(assignment.resource_from + 1, assignment.resource_to + 1):
            self._train_epoch(network, optimizer)
            if epoch % INTERVAL == 0:
                self._measure(network, epoch)
        name = f"{assignment.trial_id}/{assignment.resource_to}"
        self._checkpoints[name] = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
        return replace(
            Report.started(assignment),
            resource=assignment.resource_to,
            metrics={OBJECTIVE.metric: self.measured[-1].validation},
            checkpoint=name,
            seconds=float(assignment.resource_to - assignment.resource_from),
        )

    def _train_epoch(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        network.train()
        for batch in torch.randperm(TRAIN_ROWS).split(BATCH_ROWS):
            optimizer.zero_grad()
            functional.cross_entropy(network(self._train.rows[batch]), self._train.labels[batch]).backward()
            optimizer.step()
        self.epochs += 1

    @torch.no_grad()
    def _measure(self, network: nn.Module, epoch: int) -> None:
        network.eval()
        validation, test = (
            float(functional.cross_entropy(network(split.rows), split.labels))
            for split in (self._validation, self._test)
        )
        self.measured.append(Measured(epoch=epoch, validation=validation, test=test))


class NoTracker:
    def sync(self, journal: Any) -> None: ...

    def info(self) -> dict[str, Any]:
        return {}


def search(text: str, size: int, seed: int) -> TrainingBackend:
    """Train a population of that size, or as many random configurations."""
    method = parse_method(text)
    if text != "random":
        method = replace(method, scheduler_settings={"population_size": size, "interval": INTERVAL})
    backend = TrainingBackend(size, seed)
    journal = Journal.open(MemoryStorage(), OBJECTIVE)
    Study(
        journal=journal,
        search=Search(
            sampler=method.build_sampler(SPACE, seed),
            scheduler=method.build_scheduler(EPOCHS),
            explorer=method.build_explorer(SPACE, seed),
            stopping=[EndsAt(backend.clock, EPOCHS)],
            seed=seed,
        ),
        backend=backend,
        tracker=NoTracker(),
        budget=Budget(),
        clock=backend.clock,
    ).run()
    journal.close()
    return backend


def _best(measured: Sequence[Measured]) -> Measured:
    return min(measured, key=lambda one: one.validation if np.isfinite(one.validation) else np.inf)


def _wins(better: int, count: int) -> str:
    by_chance = stats.binomtest(better, count, alternative="greater").pvalue
    return f"{better} of {count} ({by_chance:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--size", type=int, action="append", help="of the population")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say("| members | method | epochs | at the end | wins | any checkpoint | wins |")
    say("|---|---|---|---|---|---|---|")
    for size in options.size or (8, 16):
        found: dict[str, list[tuple[float, float]]] = {}
        for text in METHODS:
            backends = [search(text, size, seed) for seed in range(options.seeds)]
            found[text] = [
                (_best([one for one in b.measured if one.epoch == EPOCHS]).test, _best(b.measured).test)
                for b in backends
            ]
            cells = []
            for column in (0, 1):
                losses = [pair[column] for pair in found[text]]
                fixed = [pair[column] for pair in found["random"]]
                better = sum(a < b for a, b in zip(losses, fixed, strict=True))
                cells += [f"{median(losses):.4f}", "" if text == "random" else _wins(better, len(losses))]
            say(f"| {size} | {text} | {median(b.epochs for b in backends):,.0f} | {' | '.join(cells)} |")
    options.output.write_text(INTRODUCTION + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
