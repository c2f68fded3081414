"""Improvement per second: `python -m tests.benchmarks.bench_costs [--seeds 10]`.

Replays searches on functions whose epochs take up to ten times longer in a part of the space, and prints the
mean regret at a quarter, at half and at the end of the budget, with and without `acquisition: ei_per_second`.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict

import numpy as np

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--budget", type=float, default=8, help="of tpe; that of the default is a quarter")
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
