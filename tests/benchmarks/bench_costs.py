"""Costs: `python -m tests.benchmarks.bench_costs [--seeds 10]`.

With `--trainings 50`, trains small networks on this machine instead, and prints how well the time of an epoch
and the peak memory of the process are predicted from the first 10 and 20 of them: the median factor
between prediction and measurement for all later trainings, that of a prediction by the mean, and the rank
correlation.

Otherwise, replays searches on functions whose epochs take up to ten times longer in a part of the space, and
prints the mean regret at a quarter, at half and at the end of the budget, with and without
`acquisition: ei_per_second`.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import defaultdict
from multiprocessing import get_context
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.costs import CostPredictor, Costs
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.trial import Params, Report
from tests.benchmarks.replay.derived import costly_functions
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.run import replay

_DEFAULT = "tpe:enough=10,learns_from_paused=true{}+adaptive_asha:has_leader=true,control_share=0.1"
METHODS = {
    "tpe": "tpe:enough=10",
    "tpe, per second": "tpe:enough=10,acquisition=ei_per_second",
    "default": _DEFAULT.format(""),
    "default, per second": _DEFAULT.format(",acquisition=ei_per_second"),
}

SPACE = Space.from_config(
    {
        "width": {"type": "logint", "low": 64, "high": 1024},
        "depth": {"type": "int", "low": 1, "high": 4},
        "batch": {"type": "logint", "low": 64, "high": 2048},
        "optimizer": {"type": "choice", "options": ["sgd", "adam"]},
        "learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
    }
)
_ROWS, _COLUMNS = 2048, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--budget", type=float, default=8, help="of tpe; that of the default is a quarter")
    parser.add_argument("--trainings", type=int, help="measure predictions of this many trainings")
    args = parser.parse_args()
    if args.trainings:
        _predict(args.trainings)
        return
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    total = defaultdict(list)
    print("| problem | " + " | ".join(METHODS) + " |")
    print("|---|" + "---|" * len(METHODS))
    for benchmark in costly_functions():
        cells = []
        for name, text in METHODS.items():
            budget = args.budget / 4 if name.startswith("default") else args.budget
            regrets = []
            for seed in range(args.seeds):
                one = replay(benchmark, parse_method(text), slots=args.slots, seed=seed, budget=budget)
                regrets.append([min(one.regret(when), 1.0) for when in (0.25, 0.5, 1.0)])
            total[name].append(np.mean(regrets, axis=0))
            cells.append(", ".join(f"{regret:.3f}" for regret in total[name][-1]))
        print(f"| {benchmark.task} | " + " | ".join(cells) + " |", flush=True)
    means = [", ".join(f"{r:.3f}" for r in np.mean(total[name], axis=0)) for name in METHODS]
    print("| **mean** | " + " | ".join(means) + " |")


def _predict(num_trainings: int) -> None:
    import torch  # before processes fork, so that all of them have it

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    trials = dict(enumerate(SPACE.sample(rng) for _ in range(num_trainings)))
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        outcomes = pool.map(_train, trials.values(), chunksize=1)
    axes = Axes(SPACE)
    measured = {
        "seconds": [outcome.seconds for outcome in outcomes],
        "memory_bytes": [outcome.memory_bytes for outcome in outcomes],
    }
    for name, values in measured.items():
        print(f"{name}: from {min(values):.3g} to {max(values):.3g}")
    print("| trainings | cost | factor | of the mean | rank correlation |\n|---|---|---|---|---|")
    for known in (10, 20):
        costs = Costs()
        for trial_id in range(known):
            costs.note(trial_id, outcomes[trial_id])
        predictor = CostPredictor(axes, costs, trials)
        rows = np.array([axes.row(trials[trial_id]) for trial_id in range(known, num_trainings)])
        for name, values in measured.items():
            logs = np.log(values)
            predicted = np.log(getattr(predictor, name)(rows))
            factor, plain = (
                np.exp(np.median(np.abs(guess - logs[known:]))) for guess in (predicted, logs[:known].mean())
            )
            agreement = spearmanr(predicted, logs[known:]).statistic
            print(f"| {known} | {name} | {factor:.2f} | {plain:.2f} | {agreement:.2f} |", flush=True)


def _train(params: Params) -> Outcome:
    """Train a network for an epoch in this fresh process, and return what a study would be told."""
    import torch

    from spark_hpo.train.usage.meter import UsageMeter
    from spark_hpo.train.usage.waits import DataWaits

    began = time.perf_counter()
    with UsageMeter(0, (), DataWaits()) as meter:
        torch.manual_seed(0)
        layers: list[Any] = []
        for i in range(params["depth"]):
            layers += [torch.nn.Linear(params["width"] if i else _COLUMNS, params["width"]), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(params["width"], 1))
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[params["optimizer"]]
        optimizer = make(model.parameters(), lr=params["learning_rate"])
        for batch in torch.randn(_ROWS, _COLUMNS).split(params["batch"]):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        use = meter.use()
    seconds = time.perf_counter() - began
    report = Report(trial_id=0, attempt=1, rung=0, resource=1, seconds=seconds, usage=(use,))
    return Outcome.of(report, resource_from=0)


if __name__ == "__main__":
    main()
