"""Single measurements of the page docs/benchmarks/search.md, each of a question that ranks do not answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np
import pandas as pd

from tests.benchmarks.replay.benchmark import Benchmark
from tests.benchmarks.replay.ranks import SCORES, average, ranks, run_by_all
from tests.benchmarks.replay.run import Replay

_HYPEROPT = "peer: hyperopt TPE"
_FULL = "tpe"  # trains every trial to the end
_LONG = 20.0  # budget with which hyperopt's end is compared
_SHARES = np.linspace(0.01, 1.0, 100)  # of a budget


def fewer_searches(table: pd.DataFrame, default: str) -> Iterator[str]:
    """The ranks of all methods on the searches of those that did not run everywhere.

    Args:
        table: regrets, see `ranks.regrets`.
    """
    complete = list(ranks(table, "trained").columns)
    groups: dict[frozenset[object], list[str]] = defaultdict(list)  # methods by the searches that they ran
    for method, rows in table.groupby("method"):
        if method not in complete:
            groups[frozenset(rows[["task", "slots", "budget", "seed"]].itertuples(index=False))].append(
                str(method)
            )
    if not groups:
        return
    yield "## Methods that ran on fewer searches"
    for few in sorted(groups.values()):
        part = run_by_all(table, few)
        tasks, seeds = part["task"].nunique(), part["seed"].nunique()
        yield (
            f"{_listed(few)} ran on {tasks} task{'s' * (tasks > 1)} with {seeds} seed{'s' * (seeds > 1)}. "
            "The ranks are of these and of the methods that ran everywhere, on these searches, the mean of "
            "both scores."
        )
        yield ""
        columns = {}
        for budget, rows in part.groupby("budget"):
            ranked = [average(ranks(rows, score, [*complete, *few])) for score in SCORES]
            columns[f"budget {budget:g}"] = sum(ranked) / len(ranked)
        wide = pd.DataFrame(columns)
        yield "| method | " + " | ".join(wide.columns) + " |"
        yield "|---" * (len(wide.columns) + 1) + "|"
        for method, row in wide.loc[wide.mean(axis=1).sort_values().index].iterrows():
            name = f"**{method}**" if method in few or method == default else method
            yield f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |"
        yield ""


def other_settings(table: pd.DataFrame, default: str) -> Iterator[str]:
    """The ranks with numbers of slots and budgets that were run on some tasks only."""
    if table.empty:
        return
    yield "## Other slots and budgets"
    yield "Average ranks on some of the tasks, the mean of both scores: of the default and of the best three."
    yield ""
    yield "| slots | budget | tasks | seeds | methods | default | best three |"
    yield "|---|---|---|---|---|---|---|"
    for (slots, budget), part in table.groupby(["slots", "budget"]):
        ranked = {score: ranks(part, score) for score in SCORES}
        means = (sum(average(one) for one in ranked.values()) / len(ranked)).sort_values()
        place = list(means.index).index(default) + 1 if default in means else 0
        own = f"{means[default]:.2f} (place {place})" if place else ""
        best = ", ".join(f"{name} {rank:.2f}" for name, rank in means.head(3).items())
        index = ranked["trained"].index
        tasks, seeds = (index.get_level_values(level).nunique() for level in ("task", "seed"))
        yield f"| {slots} | {budget:g} | {tasks} | {seeds} | {len(means)} | {own} | {best} |"
    yield ""


def half_of_hyperopt(replays: Sequence[Replay]) -> Iterator[str]:
    """When each method has the regret with which hyperopt ends, as a share of hyperopt's budget."""
    groups: dict[tuple[str, int], dict[str, list[Replay]]] = defaultdict(lambda: defaultdict(list))
    for one in replays:
        if one.budget == _LONG:
            groups[one.task, one.slots][one.method].append(one)
    problems = {problem: by_method for problem, by_method in groups.items() if _HYPEROPT in by_method}
    methods = [
        name
        for name in dict.fromkeys(one.method for one in replays)
        if name != _HYPEROPT and all(name in by_method for by_method in problems.values())
    ]
    if not problems or not methods:
        return
    yield "## The budget of hyperopt"
    yield (
        f"After which share of a budget of {_LONG:g} a method has the regret, trained to the end, with "
        "which hyperopt's TPE ends; medians over seeds."
    )
    yield ""
    yield "| task | slots | " + " | ".join(methods) + " |"
    yield "|---" * (len(methods) + 2) + "|"
    shares: dict[str, list[float]] = {name: [] for name in methods}
    for (task, slots), by_method in sorted(problems.items(), key=lambda item: (item[0][1], item[0][0])):
        end = median(one.regret(1.0) for one in by_method[_HYPEROPT])
        for name in methods:
            shares[name].append(_share_until(by_method[name], end))
        cells = [_percent(shares[name][-1]) for name in methods]
        yield f"| {task} | {slots} | " + " | ".join(cells) + " |"
    for limit, words in ((1 / 2, "half"), (1 / 3, "a third")):
        counts = [f"{sum(share <= limit for share in shares[name])} of {len(problems)}" for name in methods]
        yield f"| **in {words}** | | " + " | ".join(counts) + " |"
    yield ""


def worst_bias(
    replays: Sequence[Replay], benchmarks: Mapping[str, Benchmark], default: str, budgets: Sequence[float]
) -> Iterator[str]:
    """How far the default is behind full training where cheap trainings mislead most."""
    rows = []
    for task in sorted(task for task in benchmarks if "bias4" in task):
        reference = benchmarks[task].reference
        for budget in budgets:
            ends: dict[str, list[float]] = {default: [], _FULL: []}
            for one in replays:
                if one.task == task and one.method in ends and one.budget >= budget:
                    regret = one.first(budget).regret(1.0)
                    ends[one.method].append(reference.best + regret * (reference.median - reference.best))
            if all(ends.values()):
                own, full = (float(np.mean(ends[name])) for name in (default, _FULL))
                rows.append(
                    f"| {task} | {budget:g} | {own:.3f} | {full:.3f} | {(own - full) / abs(full):+.0%} |"
                )
    if rows:
        yield "## Where cheap trainings mislead"
        yield (
            "The lowest rungs of these functions rank configurations in reverse order. Mean loss of the best "
            "configuration trained to the end; *behind* is the difference as a share of the loss of full "
            "training, where + is worse."
        )
        yield ""
        yield f"| task | budget | {default} | {_FULL}, trained to the end | behind |"
        yield "|---|---|---|---|---|"
        yield from rows
        yield ""


def _share_until(replays: Sequence[Replay], regret: float) -> float:
    """The first share of the budget at which the median regret is that low; infinite: never."""
    medians = ((share, median(one.regret(share) for one in replays)) for share in _SHARES)
    return next((float(share) for share, value in medians if value <= regret), float("inf"))


def _percent(share: float) -> str:
    return "never" if share == float("inf") else f"{share:.0%}"


def _listed(names: Sequence[str]) -> str:
    plain = [name.removeprefix("peer: ") for name in names]
    return plain[0] if len(plain) == 1 else f"{'; '.join(plain[:-1])}; and {plain[-1]}"
