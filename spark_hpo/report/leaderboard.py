"""Tables of a study: the trials, best first, and their learning curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from spark_hpo.objective import Objective
from spark_hpo.ranking import by_score
from spark_hpo.trial import Params, Trial, TrialState, flatten, in_words

COLUMNS = ("trial", "state", "rung", "resource", "value", "seconds")
FEASIBLE = "feasible"  # with limits
SPREAD = "spread"  # with folds
PARENT = "parent"  # in population based training
FRONT = "pareto_front"  # with several objectives
_CURVE_COLUMNS = ("trial", "resource", "time", "seconds", "rows")


def leaderboard(
    trials: Iterable[Trial],
    objective: Objective,
    front: Collection[int] = (),
    *,
    best: int | None = None,
) -> pd.DataFrame:
    """Return one row per trial: the best first, then trials without a value, then failed ones.

    Columns: trial, state, rung, resource (epochs or parts), value (the objective's metric at that resource;
    NaN if it was not measured), seconds, and each parameter by its dotted name (missing if a trial does not
    have it). A parameter named like a column is called `params.<name>`.

    With folds there is also the column spread: the standard deviation of the metric over the folds; trials
    with more folds come first. In population based training there is the column parent: the trial whose
    weights a child began with. With limits there is also the column feasible, which is True if the trial
    keeps all of them; feasible trials come first. With several objectives the trials are ranked by the first
    one, and there are columns for the other metrics (`metrics.<name>` if the name is taken) and pareto_front.

    Args:
        front: ids of the trials on the Pareto front.
        best: the id of the study's best trial, which comes first: a trial with a better value may not be
            trained to the end. None: the one with the best value.
    """
    best_first = ranked(trials, best)
    columns = _columns(objective, best_first)
    rows = [_row(trial, columns, objective, front) for trial in best_first]
    names = list(columns) + sorted({key for row in rows for key in row} - set(columns))
    table = pd.DataFrame(rows, columns=names)
    return table.astype({PARENT: "Int64"}) if PARENT in columns else table


def ranked(trials: Iterable[Trial], best: int | None = None) -> list[Trial]:
    """Sort trials, the best first and failed ones last. Ties are in the order of their ids.

    Args:
        best: the id of the study's best trial, as in `leaderboard`.
    """

    def key(trial: Trial) -> tuple[Any, ...]:
        folds, score, *_ = by_score(trial)
        return trial.trial_id != best, folds, score, trial.state is TrialState.FAILED, trial.trial_id

    return sorted(trials, key=key)


def value(trial: Trial, objective: Objective) -> float:
    """Return the objective's metric in the user's direction. NaN: not measured, or the trial failed."""
    return objective.value(trial.loss)


def flat_params(params: Params) -> dict[str, Any]:
    """Return parameters by dotted name. A list, or an empty mapping, becomes its text."""
    return {name: item if _is_scalar(item) else str(item) for name, item in flatten(params)}


def render(
    trials: Iterable[Trial],
    objective: Objective,
    front: Collection[int] = (),
    *,
    best: int | None = None,
    top: int = 10,
) -> Table:
    """Return the `top` best trials as a table for a terminal. A star marks the Pareto front.

    Args:
        front, best: as for `leaderboard`.
    """
    everything = list(trials)
    shown = ranked(everything, best)[:top]
    columns = _columns(objective, everything)
    hidden = len(everything) - len(shown)
    table = Table(
        title=f"best by {objective.metric} ({objective.mode})",
        caption=f"and {hidden} more" if hidden else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        expand=True,
    )
    headers = {"value": objective.metric, SPREAD: "±", FRONT: "front"}
    for name in columns:
        header = headers.get(name, name)
        table.add_column(header, justify="left" if name == "state" else "right", no_wrap=True)
    # All parameters share one column, which is cut where it does not fit: a trial has one line.
    table.add_column("parameters", overflow="ellipsis", no_wrap=True, ratio=1)
    for trial in shown:
        row = _row(trial, columns, objective, front)
        row |= {FRONT: "*" if row.get(FRONT) else "", FEASIBLE: "yes" if row.get(FEASIBLE) else "no"}
        table.add_row(*(_cell(row[name]) for name in columns), in_words(trial.params))
    return table


def curves(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return one row per measurement on the validation split, trial by trial.

    Columns: trial, resource (epochs or parts), time (seconds since 1970), seconds (of this epoch), rows
    (trained on in this epoch), and each metric. A metric named like a column is called `metrics.<name>`.
    """
    rows = [
        {
            "trial": trial.trial_id,
            "resource": measured.resource,
            "time": measured.time,
            "seconds": measured.seconds,
            "rows": measured.rows,
            **{f"metrics.{k}" if k in _CURVE_COLUMNS else k: v for k, v in measured.metrics.items()},
        }
        for trial in sorted(trials, key=lambda trial: trial.trial_id)
        for measured in trial.curve
    ]
    metrics = sorted({name for row in rows for name in row} - set(_CURVE_COLUMNS))
    return pd.DataFrame(rows, columns=[*_CURVE_COLUMNS, *metrics])


def _columns(objective: Objective, trials: Iterable[Trial]) -> tuple[str, ...]:
    *first, seconds = COLUMNS
    first += [SPREAD] if any(trial.has_folds for trial in trials) else []
    first += [PARENT] if any(trial.parent is not None for trial in trials) else []
    extra = [_column_of(name) for name, _ in objective.extra_objectives]
    feasible = (FEASIBLE,) if objective.limits else ()
    return (*first, *extra, *((FRONT,) if extra else ()), *feasible, seconds)


def _column_of(metric: str) -> str:
    return f"metrics.{metric}" if metric in (*COLUMNS, SPREAD, PARENT, FRONT, FEASIBLE) else metric


def _row(
    trial: Trial, columns: Sequence[str], objective: Objective, front: Collection[int]
) -> dict[str, Any]:
    params = flat_params(trial.params)
    metrics = trial.metrics if math.isfinite(trial.loss) else {}
    found = {
        "trial": trial.trial_id,
        "state": str(trial.state),
        "rung": trial.rung,
        "resource": trial.resource,
        "value": value(trial, objective),
        SPREAD: trial.spread.get(objective.metric, math.nan),
        PARENT: trial.parent,
        FRONT: trial.trial_id in front,
        FEASIBLE: trial.score.is_finite and not trial.violation,
        "seconds": round(trial.seconds, 3),
        **{_column_of(name): metrics.get(name, math.nan) for name, _ in objective.extra_objectives},
    }
    row = {name: found[name] for name in columns}
    return row | {f"params.{key}" if key in columns else key: item for key, item in params.items()}


def _is_scalar(item: Any) -> bool:
    return item is None or isinstance(item, str | bool | int | float)


def _cell(item: Any) -> str:
    if isinstance(item, float):
        return "" if math.isnan(item) else f"{item:.4g}"
    return "" if item is None else str(item)
