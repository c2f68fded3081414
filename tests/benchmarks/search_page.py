"""The page docs/benchmarks/search.md: a picture, where the default loses, then ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tests.benchmarks.replay.families import FAMILIES, FRESH, open_family
from tests.benchmarks.replay.picture import draw_families
from tests.benchmarks.replay.ranks import (
    SCORES,
    average,
    bands,
    leave_one_out,
    ranks,
    regrets,
    run_by_all,
    time_to_top,
    wins,
)
from tests.benchmarks.replay.run import Replay
from tests.benchmarks.search_measures import fewer_searches, half_of_hyperopt, other_settings, worst_bias

_DEFAULT = "default"
_EARLIER = "tpe+adaptive_asha"  # the default of earlier versions
_INTRODUCTION = """# Search methods compared

![Median regret over time, one panel per family](search.png)

Which method finds good configurations fastest? This benchmark replays recorded learning curves and known \
functions with every method, and with those of other libraries, on the same simulated clock. The picture \
shows the median regret over time of the default and of the methods that rank best; bands go from the lower \
to the upper quartile. `make bench-search` writes this page.

Budgets are given in full trainings per slot. In a budget of 2, random search on 8 slots trains 16 \
configurations. No method knows its budget in advance, so one search yields the results of all smaller \
budgets. All slots start at the same instant, and a trial that ends exactly with the budget counts.
"""
_WORDS = """## What is compared
`tpe+asha` is a sampler with a scheduler; `tpe` and `random` alone train every trial to the end; `default \
with plain asha` has neither pioneers nor a rising entry; `earlier default` is the one before today's, with \
today's `multifidelity_gp`, or the one before that, with `tpe`; `tpe+adaptive_asha` is the first. Methods \
of other libraries (`peer`) run with the settings of their own documentation.

Two scores are compared at the end of a budget. **trained** is the regret of the best configuration that \
was trained to the end. **deployed** is the regret of the model that one would deploy at that moment: the \
checkpoint with the best validation value after any resource, measured on data that the search does not \
see where the curves have such. A regret of 0 is that of the best of 5,000 random configurations (or of \
the whole table, if the problem is a table), a regret of 1 that of the median one.

At a budget of 1, only trials that start at once and are never paused can be trained to the end. So the \
score *trained* at that budget compares who keeps its first trials running, not who finds better ones.

Ranks compare methods with the same seed; ties share their rank. They are averaged over the seeds and \
problems of a family, then over families. Bands are 95 % of what resampled seeds give.
"""
_FRESH_WORDS = """## On curves on which nothing was chosen
The settings of the default were chosen on the six families above. These three were measured afterwards, by \
training random configurations on a CPU (`python -m tests.benchmarks.replay.train_curves`): 300 of a \
convolutional network on digits, 300 of a network with embeddings on the Adult census table, and 160 of a \
transformer on text messages. Each has eight to ten parameters, among them the optimizer and the decay of \
the learning rate.
"""
_PEERS = """## How the peers run
- hyperopt's TPE, and Optuna's TPE, GPSampler and AutoSampler, train every trial to the end, unless a \
pruner is named. Their first trials are the ones of random search.
- AutoSampler's code is downloaded from GitHub when it is used, so it could not be installed. This page \
has its published rule over Optuna's own samplers: TPE if the space has choices; otherwise GPSampler for \
the first 250 trials, then CMA-ES. Of these families, only Counting Ones has choices; elsewhere the rule \
equals GPSampler.
- DEHB and SMAC3 train from scratch at each resource, as their documentation does. NePS' PriorBand gets no \
prior and resumes from checkpoints. In tables, DEHB and SMAC3 learn the value of the nearest configuration \
as that of the one they asked for.
- Syne Tune's ASHACQR fits its model after every eighth trial (`update_frequency`) instead of after each.
- A search of this benchmark ends with its budget: it has no reserve that trains the best trial to the \
end, as studies have.
"""
_NUM_PICTURED = 10  # methods
_BUDGETS = (1.0, 2.0, 5.0, 20.0)  # shown, where a search was long enough
_README_MARKS = ("<!-- ranks: make bench-search -->\n", "<!-- end of ranks -->")


def write_page(
    replays: Sequence[Replay], curves: Path, output: Path, variants: Sequence[str], readme: Path | None = None
) -> None:
    """Write `search.md`, `search.json` (the mean regrets) and `search.png`.

    Args:
        readme: gets the ranks of all methods, between two marks.
        variants: settings of the default, of which each family gets the one that is best on the others.
    """
    benchmarks = {
        task: (family, benchmark)
        for family in FAMILIES
        if family not in FRESH or any(one.task == family for one in replays)
        for task, benchmark in open_family(family, curves).items()
    }
    families = {task: family for task, (family, _) in benchmarks.items()}
    replays = sorted(replays, key=lambda one: one.method != _DEFAULT)  # stands out in the picture
    cut = [one.first(budget) for one in replays for budget in _BUDGETS if budget <= one.budget]
    all_families = _beside(regrets(cut, families), _DEFAULT)
    is_fresh = all_families["family"].isin(FRESH)
    everything, fresh = all_families[~is_fresh], all_families[is_fresh]
    whole = _whole(everything)
    table, rest = everything[whole], everything[~whole]
    tops = {task: one.reference.regret(one.reference.top) for task, (_, one) in benchmarks.items()}
    slots, budgets = table["slots"].unique(), sorted(table["budget"].unique())
    main = [
        one.first(budgets[-1])
        for one in replays
        if one.slots in slots and one.budget >= budgets[-1] and one.task not in FRESH
    ]
    lines = [_INTRODUCTION, _summary(table), *_losses(table, fresh), _WORDS, *_ranks(table), *_fresh(fresh)]
    lines += fewer_searches(table, _DEFAULT)
    lines += other_settings(rest, _DEFAULT)
    lines += half_of_hyperopt(replays)
    lines += worst_bias(replays, {task: one for task, (_, one) in benchmarks.items()}, _DEFAULT, _BUDGETS)
    chosen_from = [variant for variant in variants if variant in set(table["method"])]
    if len(chosen_from) > 1:
        lines += _chosen(run_by_all(table, chosen_from), chosen_from)
    lines += _paired(table)
    lines += [*_times(main, tops), _PEERS, *_scope(all_families)]
    output.mkdir(parents=True, exist_ok=True)
    (output / "search.md").write_text("\n".join(lines) + "\n")
    figures = ",\n".join(map(json.dumps, _figures(all_families)))
    (output / "search.json").write_text(f"[\n{figures}\n]\n")
    pictured = _pictured(table, variants)
    draw_families([one for one in main if one.method in pictured], families, output / "search.png")
    if readme is not None:
        text = readme.read_text()
        before, rest_of_it = text.split(_README_MARKS[0])
        _, after = rest_of_it.split(_README_MARKS[1])
        others = [variant for variant in variants if variant != _DEFAULT]
        said = "\n".join(_readme_lines(table[~table["method"].isin(others)], fresh))
        readme.write_text(f"{before}{_README_MARKS[0]}{said}\n{_README_MARKS[1]}{after}")


def _beside(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """The searches that a method ran as well."""
    search = ["task", "slots", "budget", "seed"]
    return table.merge(table.loc[table["method"] == method, search].drop_duplicates(), on=search)


def _whole(table: pd.DataFrame) -> pd.Series:
    """True for the rows of slots and budgets with which all tasks were run."""
    tasks = table.groupby(["slots", "budget"])["task"].transform("nunique")
    return tasks == table["task"].nunique()


def _pictured(table: pd.DataFrame, variants: Sequence[str]) -> set[str]:
    """The default, without its other settings, and the methods with the best average ranks."""
    part = table[~table["method"].isin([name for name in variants if name != _DEFAULT])]
    return {_DEFAULT, *map(str, _means(part).index[:_NUM_PICTURED])}


def _summary(table: pd.DataFrame) -> str:
    slots = " and ".join(map(str, sorted(table["slots"].unique())))
    seeds = table.groupby("method")["seed"].nunique()
    return (
        f"This page is of {table['task'].nunique()} tasks with {slots} slots, budgets up to "
        f"{table['budget'].max():g} and at most {seeds.max()} seeds: see [what was run](#what-was-run).\n"
    )


def _scope(table: pd.DataFrame) -> Iterator[str]:
    """What was run, and how to run the rest."""
    yield "## What was run"
    yield "| method | budget | slots | seeds |"
    yield "|---|---|---|---|"
    for method, rows in table.groupby("method"):
        said = None
        for budget, part in sorted(rows.groupby("budget"), reverse=True):
            slots = ", ".join(map(str, sorted(part["slots"].unique())))
            seeds = part.groupby(["task", "slots"])["seed"].nunique()
            count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
            if said != (slots, count):  # a search yields the results of all smaller budgets
                yield f"| {method} | {budget:g} | {slots} | {count} |"
            said = slots, count
    yield ""
    yield (
        "The whole comparison has 4, 8 and 32 slots, budgets up to 20, and 20 seeds. `make bench-search` "
        "runs it in several days on one core, and resumes where it was stopped."
    )
    yield ""


def _means(table: pd.DataFrame) -> pd.Series:
    """The average rank of each method, the mean of both scores."""
    means = sum(average(ranks(table, score)) for score in SCORES) / len(SCORES)
    assert isinstance(means, pd.Series)
    return means.sort_values()


def _standing(table: pd.DataFrame) -> tuple[str, str]:
    """The ranks of the default and of the best other method, by budget."""
    own, other = [], []
    for budget, part in table.groupby("budget"):
        means = _means(part)
        own.append(f"{means[_DEFAULT]:.1f} at {budget:g}")
        rivals = means.drop(_DEFAULT)
        other.append(f"{rivals.index[0].removeprefix('peer: ')} {rivals.iloc[0]:.1f} at {budget:g}")
    return ", ".join(own), ", ".join(other)


def _readme_lines(table: pd.DataFrame, fresh: pd.DataFrame) -> Iterator[str]:
    """The ranks of the default and of the best other method by budget, and where it loses."""
    own, other = _standing(table)
    worst = (0.0, "")
    for (family, budget), part in table.groupby(["family", "budget"]):
        place = float(_means(part).rank()[_DEFAULT])
        if place > worst[0]:
            worst = place, f"{family} with a budget of {budget:g}, where it is place {place:.0f}"
    count = len(_means(table))
    yield f"- Average rank of the default among {count} methods, by budget: {own}."
    yield f"- The best other method: {other}."
    yield f"- The default is furthest behind on {worst[1]} of {count}."
    if not fresh.empty:
        yield f"- {_fresh_standing(fresh)}"


def _fresh_standing(table: pd.DataFrame) -> str:
    own, other = _standing(table)
    return (
        f"On three families that were measured afterwards, on which nothing was chosen, its ranks are {own}; "
        f"the best other method has {other}."
    )


def _losses(table: pd.DataFrame, fresh: pd.DataFrame) -> Iterator[str]:
    """Where the default is not the best: family, budget, score, its rank and who is."""
    yield "## Where the default loses"
    if not fresh.empty:
        yield (
            f"{_fresh_standing(fresh)} Its lead there is small or gone: see "
            "[below](#on-curves-on-which-nothing-was-chosen). On the other families:"
        )
        yield ""
    yield "| family | budget | score | rank of the default | best | its rank |"
    yield "|---|---|---|---|---|---|"
    for (family, budget), part in table.groupby(["family", "budget"]):
        for score in SCORES:
            means = average(ranks(part, score))
            place = list(means.index).index(_DEFAULT) + 1 if _DEFAULT in means else 0
            if place > 1:
                own = f"{means[_DEFAULT]:.2f} (place {place} of {len(means)})"
                yield f"| {family} | {budget:g} | {score} | {own} | {means.index[0]} | {means.iloc[0]:.2f} |"
    yield ""


def _ranks(table: pd.DataFrame) -> Iterator[str]:
    yield "## Average ranks"
    for score, words in SCORES.items():
        yield f"### {score.capitalize()}: {words}"
        yield from _rank_table(table, score)


def _fresh(table: pd.DataFrame) -> Iterator[str]:
    """The ranks on families on which nothing was chosen, and the place of the default on each."""
    if table.empty:
        return
    yield _FRESH_WORDS
    places = {}
    for (family, budget), part in table.groupby(["family", "budget"]):
        for score in SCORES:
            means = average(ranks(part, score))
            places[family, f"{score}, {budget:g}"] = (
                f"{1 + list(means.index).index(_DEFAULT)} of {len(means)}"
            )
    wide = pd.Series(places).unstack()
    yield "Place of the default by score and budget:"
    yield ""
    yield "| family | " + " | ".join(map(str, wide.columns)) + " |"
    yield "|---" * (len(wide.columns) + 1) + "|"
    for family, row in wide.iterrows():
        yield f"| {family} | " + " | ".join(row) + " |"
    yield ""
    for score, words in SCORES.items():
        yield f"### {score.capitalize()} on new curves: {words}"
        yield from _rank_table(table, score)


def _rank_table(table: pd.DataFrame, score: str) -> Iterator[str]:
    columns = {}
    for budget, part in table.groupby("budget"):
        ranked = ranks(part, score)  # type: ignore[arg-type]
        means, band = average(ranked), bands(ranked)
        columns[f"budget {budget:g}"] = {
            method: f"{means[method]:.2f} ({band.low[method]:.2f} to {band.high[method]:.2f})"
            for method in means.index
        }
    overall = average(ranks(table, score))  # type: ignore[arg-type]
    yield "| method | all budgets | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 2) + "|"
    partly = [method for column in columns.values() for method in column if method not in overall]
    for method in [*overall.index, *dict.fromkeys(partly)]:
        cells = [f"{overall[method]:.2f}" if method in overall else ""]
        cells += [column.get(str(method), "") for column in columns.values()]
        yield f"| {method} | " + " | ".join(cells) + " |"
    yield ""


def _chosen(table: pd.DataFrame, variants: Sequence[str]) -> Iterator[str]:
    chosen = leave_one_out(table, variants)
    yield "## Settings that were chosen without the family"
    yield f"`chosen` has, on each family, the one of {len(variants)} settings that is best on all others."
    yield ""
    for family, variant in chosen.dropna(subset="variant").groupby("family")["variant"].first().items():
        yield f"- {family}: `{variant}`"
    yield ""
    for score in SCORES:
        yield f"### {score.capitalize()}"
        yield from _rank_table(chosen, score)


def _paired(table: pd.DataFrame) -> Iterator[str]:
    """How often each method ends better than the default of earlier versions, with the same seed."""
    if _EARLIER not in set(table["method"]):
        return
    yield f"## Beside `{_EARLIER}`"
    yield (
        "Share of searches that end with a lower regret than the default of earlier versions, with the same "
        "seed; a tie counts half."
    )
    yield ""
    columns = {
        f"{score}, budget {budget:g}": wins(part, score, _EARLIER)
        for score in SCORES
        for budget, part in table.groupby("budget")
    }
    wide = pd.DataFrame(columns)
    yield "| method | " + " | ".join(wide.columns) + " |"
    yield "|---" * (len(wide.columns) + 1) + "|"
    for method, row in wide.loc[wide.mean(axis=1).sort_values(ascending=False).index].iterrows():
        yield f"| {method} | " + " | ".join("" if pd.isna(v) else f"{v:.2f}" for v in row) + " |"
    yield ""


def _times(replays: Sequence[Replay], tops: dict[str, float]) -> Iterator[str]:
    times = time_to_top(replays, tops)
    yield "## Time to the best in a hundred"
    yield (
        "Full trainings per slot until a configuration as good as the best 1 % was trained to the end; "
        "medians over seeds. An empty cell was not run."
    )
    yield ""
    yield "| task | slots | " + " | ".join(times.columns) + " |"
    yield "|---" * (len(times.columns) + 2) + "|"
    for (task, slots), row in times.iterrows():  # type: ignore[misc]
        cells = ["" if np.isnan(value) else "never" if np.isinf(value) else f"{value:.1f}" for value in row]
        yield f"| {task} | {slots} | " + " | ".join(cells) + " |"
    yield ""


def _figures(table: pd.DataFrame) -> list[dict[str, object]]:
    """The mean regret of every method on every problem."""
    keys = ["family", "task", "slots", "budget", "method"]
    means = table.groupby(keys)[list(SCORES)].mean().reset_index()
    return means.round(5).to_dict("records")
