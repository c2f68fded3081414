"""The trials as a table, the best first."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from spark_hpo.objective import Objective
from spark_hpo.trial import Params, Trial, TrialState

COLUMNS = ("trial", "state", "rung", "resource", "value", "seconds")
FRONT = "pareto_front"  # one more, with several objectives


def leaderboard(trials: Iterable[Trial], objective: Objective, front: Collection[int] = ()) -> pd.DataFrame:
    """One row a trial, the best first, those without a value next, failed ones last.

    Columns: trial, state, rung, resource (epochs), value (the objective's metric at that resource; NaN where
    there is none), seconds, and each parameter by its dotted name (missing where a trial has no such
    parameter). A parameter that is called like a column is `params.<name>`.

    With several objectives, ranked by the first: also each further metric by its name (`metrics.<name>`
    where that is a column's), and pareto_front, whether the trial is on it.

    Args:
        front: the trials on the Pareto front, by id.
    """
    columns = _columns(objective)
    rows = [_row(trial, objective, front) for trial in ranked(trials)]
    names = list(columns) + sorted({key for row in rows for key in row} - set(columns))
    return pd.DataFrame(rows, columns=names)


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The best first, failed ones last; equals in the order of their ids."""
    return sorted(
        trials,
        key=lambda trial: (
            trial.state is TrialState.FAILED,
            trial.score,
            trial.trial_id,
        ),
    )


def value(trial: Trial, objective: Objective) -> float:
    """The objective's metric, in the user's direction. NaN: never measured, or failed."""
    return objective.value(trial.loss)


def flatten(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"optimizer": {"name": "sgd"}} -> ("optimizer.name", "sgd")`. Lists become their text."""
    for key, item in params.items():
        if isinstance(item, Mapping) and item:
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item if _is_scalar(item) else str(item)


def render(
    trials: Iterable[Trial], objective: Objective, front: Collection[int] = (), *, top: int = 10
) -> Table:
    """The `top` best trials for a terminal; those on the Pareto front have a star."""
    everything = list(trials)
    best = ranked(everything)[:top]
    hidden = len(everything) - len(best)
    table = Table(
        title=f"best by {objective.metric} ({objective.mode})",
        caption=f"and {hidden} more" if hidden else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    columns = _columns(objective)
    headers = {"value": objective.metric, FRONT: "front"}
    for name in columns:
        header = headers.get(name, name)
        table.add_column(header, justify="left" if name == "state" else "right", no_wrap=True)
    # One column for all: a space of many parameters still fits on a screen.
    table.add_column("parameters", overflow="fold")
    for trial in best:
        row = {**_row(trial, objective, front), FRONT: "*" if trial.trial_id in front else ""}
        params = "  ".join(f"{name}={_cell(item)}" for name, item in flatten(trial.params))
        table.add_row(*(_cell(row[name]) for name in columns), params)
    return table


def _columns(objective: Objective) -> tuple[str, ...]:
    if not objective.also:
        return COLUMNS
    *first, seconds = COLUMNS
    return (*first, *(_further(name) for name, _ in objective.also), FRONT, seconds)


def _further(metric: str) -> str:
    return f"metrics.{metric}" if metric in (*COLUMNS, FRONT) else metric


def _row(trial: Trial, objective: Objective, front: Collection[int]) -> dict[str, Any]:
    columns = _columns(objective)
    metrics = trial.metrics if math.isfinite(trial.loss) else {}
    further = {_further(name): metrics.get(name, math.nan) for name, _ in objective.also}
    return {
        "trial": trial.trial_id,
        "state": str(trial.state),
        "rung": trial.rung,
        "resource": trial.resource,
        "value": value(trial, objective),
        **({**further, FRONT: trial.trial_id in front} if objective.also else {}),
        "seconds": round(trial.seconds, 3),
        **{f"params.{key}" if key in columns else key: item for key, item in flatten(trial.params)},
    }


def _is_scalar(item: Any) -> bool:
    return item is None or isinstance(item, str | bool | int | float)


def _cell(item: Any) -> str:
    if isinstance(item, float):
        return "" if math.isnan(item) else f"{item:.5g}"
    return str(item)
