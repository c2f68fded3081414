"""The problems of the judge, in families.

Settings of the default were chosen on six families. The others are curves that `train_curves.py` measured
afterwards, on which nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.functions import CountingOnes, Hartmann

GRADES = ((0.0, 0.0), (0.5, 0.1), (1.0, 0.2), (2.0, 0.4), (4.0, 0.8))
"""(bias, noise) of MF-Hartmann: from cheap imitations that are exact to ones that mislead."""


FRESH = ("digits_convolutions", "adult_embeddings", "sms_transformer")
"""Families on which nothing was chosen, with one task each."""

FRESH_CURVES = Path(__file__).parents[3] / "build" / "trained_curves"


def _curves(name: str, folder: Path) -> list[Benchmark]:
    return open_benchmarks(folder / name)


def _hartmann(dimensions: int, folder: Path) -> list[Benchmark]:
    return [Hartmann(dimensions=dimensions, bias=bias, noise=noise) for bias, noise in GRADES]


def _fresh(name: str, folder: Path) -> list[Benchmark]:
    return open_benchmarks(FRESH_CURVES / name)


def _counting_ones(folder: Path) -> list[Benchmark]:
    return [CountingOnes(num_binary=n, num_continuous=n) for n in (4, 8, 16)]


FAMILIES: Mapping[str, Callable[[Path], list[Benchmark]]] = {
    "lcbench": partial(_curves, "lcbench"),
    "alexnet_imagenet": partial(_curves, "alexnet_imagenet"),
    "taskset": partial(_curves, "taskset"),
    "hartmann3": partial(_hartmann, 3),
    "hartmann6": partial(_hartmann, 6),
    "counting_ones": _counting_ones,
    **{name: partial(_fresh, name) for name in FRESH},
}


def available() -> list[str]:
    """The families whose curves are there: the fresh ones only after `train_curves`."""
    return [
        name for name in FAMILIES if name not in FRESH or (FRESH_CURVES / name / "benchmark.yaml").exists()
    ]


@cache
def open_family(name: str, curves: Path) -> Mapping[str, Benchmark]:
    """The benchmarks of a family by task. Opened once in a process: the scale of regret takes a while."""
    return {benchmark.task: benchmark for benchmark in FAMILIES[name](curves)}
