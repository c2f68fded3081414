"""First guesses of the user: `python -m tests.benchmarks.bench_priors [--seeds 20]`.

Replays the default on problems whose parameters have defaults: those of the best or the worst of 100 random
configurations, or none. For each problem it prints the mean regret at some budgets, in full trainings per
slot, and the time to reach a regret, relative to that without defaults.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np

from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.priors import GUESSES, Guessed, problems
from tests.benchmarks.replay.run import replay

ROOT = Path(__file__).parents[2]
SHARES = np.linspace(0.01, 1, 100)  # of the budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--curves", type=Path, default=ROOT.parent / "shared" / "curves")
    parser.add_argument("--method", default="default")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--budget", type=float, default=5)
    args = parser.parse_args()
    logging.getLogger("spark_hpo").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    method = parse_method(args.method)
    points = [0.1, 0.2, 0.4, 1.0]
    print("| problem | guess | " + " | ".join(f"{args.budget * p:g}" for p in points) + " | time |")
    print("|---|---|" + "---|" * (len(points) + 1))
    for benchmark in problems(args.curves):
        curves = {}
        for guess in GUESSES:
            guessed = Guessed(of=benchmark, guess=guess)
            found = [
                replay(guessed, method, slots=args.slots, seed=seed, budget=args.budget)
                for seed in range(args.seeds)
            ]
            curves[guess] = np.mean([[min(one.regret(s), 1.0) for s in SHARES] for one in found], axis=0)
            regrets = [f"{np.interp(p, SHARES, curves[guess]):.3f}" for p in points]
            cells = [benchmark.task, guess, *regrets, f"{_time(curves['none'], curves[guess]):.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def _time(reference: np.ndarray, regret: np.ndarray) -> float:
    """The mean time to reach a regret, relative to that of the reference: above 1 is slower.

    The regrets are those that both reach: from that at a tenth of the budget to the higher of both ends.
    """
    levels = np.linspace(reference[9], max(reference[-1], regret[-1]), 20)
    both = [(np.argmax(reference <= level), np.argmax(regret <= level)) for level in levels]
    mine, theirs = (np.mean([SHARES[pair[i]] for pair in both]) for i in (1, 0))
    return float(mine / theirs)


if __name__ == "__main__":
    main()
