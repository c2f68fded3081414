"""Average ranks with bands: the same seeds for every method, the same weight for every family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from tests.benchmarks.replay.found import at
from tests.benchmarks.replay.run import Replay

Score = Literal["trained", "deployed"]
SCORES: Mapping[Score, str] = {
    "trained": "the best configuration trained to the end",
    "deployed": "the model one would deploy",
}
_RESAMPLES = 1000
_BAND = (0.025, 0.975)


def regrets(replays: Iterable[Replay], families: Mapping[str, str]) -> pd.DataFrame:
    """One row for each search: family, task, slots, budget, seed, method, and the regret at its end by score.

    Args:
        families: by task.
    """
    return pd.DataFrame(
        {
            "family": families[one.task],
            "task": one.task,
            "slots": one.slots,
            "budget": one.budget,
            "seed": one.seed,
            "method": one.method,
            **{score: at(getattr(one, score), 1.0) for score in SCORES},
        }
        for one in replays
    )


def ranks(table: pd.DataFrame, score: Score, methods: Sequence[str] | None = None) -> pd.DataFrame:
    """The rank of each method (column) for each problem and seed (row), 1 the best; ties share their ranks.

    Only methods that ran in every row are ranked.
    """
    index = ["family", "task", "slots", "budget", "seed"]
    wide = table.pivot_table(index=index, columns="method", values=score)
    if methods is not None:
        wide = wide[[method for method in methods if method in wide]].dropna()
    return wide.dropna(axis=1).rank(axis=1)


def run_by_all(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of the searches that all these methods ran."""
    index = ["family", "task", "slots", "budget", "seed"]
    runs = table.loc[table["method"].isin(methods), [*index, "method"]].drop_duplicates()
    count = runs.groupby(index).size().rename("count").reset_index()
    return table.merge(count.loc[count["count"] == len(methods), index], on=index)


def average(ranked: pd.DataFrame) -> pd.Series:
    """The mean rank of each method: over seeds and problems within a family, then over families."""
    return ranked.groupby(level="family").mean().mean().sort_values()


def bands(ranked: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The 2.5 % and 97.5 % quantiles of average ranks when the seeds of each problem are resampled."""
    rng = np.random.default_rng(seed)
    problems = [part.to_numpy() for _, part in ranked.groupby(level=["family", "task", "slots", "budget"])]
    names = [key[0] for key, _ in ranked.groupby(level=["family", "task", "slots", "budget"])]
    families = sorted(set(names))
    # Of each problem, the mean ranks in each resample: [resamples, methods].
    means = [part[rng.integers(len(part), size=(_RESAMPLES, len(part)))].mean(axis=1) for part in problems]
    by_family = [
        np.mean([mean for mean, name in zip(means, names, strict=True) if name == family], axis=0)
        for family in families
    ]
    low, high = np.quantile(np.mean(by_family, axis=0), _BAND, axis=0)
    return pd.DataFrame({"low": low, "high": high}, index=ranked.columns)


def wins(table: pd.DataFrame, score: Score, against: str) -> pd.Series:
    """The share of searches in which each method ends with a lower regret than another one; a tie is a half.

    Paired by problem and seed; averaged over the searches of a family, then over families.
    """
    index = ["family", "task", "slots", "budget", "seed"]
    wide = table.pivot_table(index=index, columns="method", values=score)
    shares = {}
    for method in wide.columns.drop(against):
        pair = wide[[method, against]].dropna()
        lower = (pair[method] < pair[against]) + 0.5 * (pair[method] == pair[against])
        shares[method] = lower.groupby(level="family").mean().mean()
    return pd.Series(shares).sort_values(ascending=False)


def leave_one_out(table: pd.DataFrame, variants: Sequence[str]) -> pd.DataFrame:
    """For each family the variant that is best on all others, and the regrets of that variant there.

    The rows of all variants are replaced by those of `chosen`, so what is ranked then has, on each family,
    only settings that were chosen without it.
    """
    others = table[~table["method"].isin(variants)]
    parts = [others]
    for family in table["family"].unique():
        elsewhere = table[table["family"] != family]
        means = sum(average(ranks(elsewhere, score)) for score in SCORES)
        assert isinstance(means, pd.Series)
        best = means[[v for v in variants if v in means]].idxmin()
        here = table[(table["family"] == family) & (table["method"] == best)]
        parts.append(here.assign(method="chosen", variant=best))
    return pd.concat(parts, ignore_index=True)


def time_to_top(replays: Iterable[Replay], tops: Mapping[str, float]) -> pd.DataFrame:
    """The median time until a search has the regret of the best in a hundred, by task and method.

    Args:
        tops: that regret, by task.

    Returns:
        Times in full trainings per slot; infinite where most searches did not get there.
    """
    rows = [
        {
            "task": one.task,
            "slots": one.slots,
            "method": one.method,
            "time": one.budget
            * next((when for when, regret in one.trained if regret <= tops[one.task]), float("inf")),
        }
        for one in replays
    ]
    return pd.DataFrame(rows).groupby(["task", "slots", "method"])["time"].median().unstack("method")
