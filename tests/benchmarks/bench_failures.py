"""Learning from failures: `python -m tests.benchmarks.bench_failures [--seeds 10]`.

Replays searches on problems of which 12 to 62 % of the configurations fail, and prints, for each problem
and method, how many of the first 30 trials failed, and the regret at the end of the budget. Both are means
over seeds; regret is 0 for the best and 1 for the median configuration that does not fail. In the group
`memory`, trials fail because they need more of it than there is.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from tests.benchmarks.replay.failing import Counted, crowded_functions, failing_curves, failing_functions
from tests.benchmarks.replay.methods import Method, parse_method
from tests.benchmarks.replay.run import replay

ROOT = Path(__file__).parents[2]
TRIALS = 30
METHODS = {
    "hyperopt": "hyperopt_tpe",
    "tpe": "tpe:enough=10",
    "tpe, learns": "tpe:enough=10,learns_from_failures=true",
    "default, ignores": "multifidelity_gp:learns_from_failures=false+pioneer_asha",
    "default without memory": "multifidelity_gp+pioneer_asha",
    "default": "default",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--curves", type=Path, default=ROOT.parent / "shared" / "curves")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--full", type=float, default=10, help="budget of tpe, in full trainings per slot")
    parser.add_argument("--early", type=float, default=3, help="budget of the default")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument(
        "--group", action="append", choices=("functions", "memory", "curves"), help="default: all"
    )
    args = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    methods = args.method or list(METHODS)
    groups = {
        "functions": failing_functions,
        "memory": crowded_functions,
        "curves": partial(failing_curves, args.curves),
    }
    groups = {name: groups[name]() for name in args.group or groups}
    print("| problem | " + " | ".join(methods) + " |")
    print("|---|" + "---|" * len(methods))
    for group, benchmarks in groups.items():
        found = []
        for benchmark in benchmarks:
            row = []
            for name in methods:
                method = parse_method(METHODS[name])
                budget = args.early if name.startswith("default") else args.full
                row.append(_means(benchmark, method, args.slots, budget, args.seeds))
            found.append(row)
            print(
                f"| {benchmark.task} | " + " | ".join(f"{f:.1f}, {r:.3f}" for f, r in row) + " |", flush=True
            )
        means = np.mean(found, axis=0)
        print(
            f"| **mean of {group}** | " + " | ".join(f"{f:.1f}, {r:.3f}" for f, r in means) + " |", flush=True
        )


def _means(benchmark, method: Method, slots: int, budget: float, seeds: int) -> tuple[float, float]:
    results = []
    for seed in range(seeds):
        counted = Counted(method)
        one = replay(benchmark, counted, slots=slots, seed=seed, budget=budget)
        results.append((counted.failures(TRIALS), min(one.regret(1.0), 1.0)))
    failures, regret = np.mean(results, axis=0)
    return float(failures), float(regret)


if __name__ == "__main__":
    main()
