"""The parameters: each against the objective, and which of them matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spark_hpo.errors import count, number
from spark_hpo.report.importance import Importance, importance_of
from spark_hpo.report.leaderboard import value
from spark_hpo.report.pictures.columns import Column, by_importance, columns_of, measured
from spark_hpo.report.pictures.theme import (
    ACCENT,
    BLUE,
    SCALE,
    Picture,
    draw,
    log_ticks,
    outliers,
    plain,
    thinned,
    tick_text,
    view,
)
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial

MAX_PARAMETERS = 24  # with a picture of their own
MAX_POINTS = 1500  # of each of them
_LOG_TICKS = 5  # fit below a small picture


def parameters(record: StudyRecord) -> list[Picture]:
    """Draw the objective over each parameter, coloured by rung, the most important parameter first.

    The axis is logarithmic if the values span two decades, and has categories if one of them is not a number.
    Conditional parameters show the trials that have them.
    """
    trials = measured(record)
    columns = by_importance(record, columns_of(record, trials))
    return [_parameter(record, column, trials) for column in columns[:MAX_PARAMETERS]]


def _parameter(record: StudyRecord, column: Column, trials: Sequence[Trial]) -> Picture:
    having = [trial for trial in trials if trial.trial_id in column.values]
    some = thinned(having, MAX_POINTS)
    values = [value(trial, record.objective) for trial in some]
    top = max(trial.rung for trial in some) or 1
    items = [column.values[trial.trial_id] for trial in some]
    dots: dict[str, Any] = {
        "x": items if column.is_number else [plain(item) for item in items],
        "y": values,
        "mode": "markers",
        "showlegend": False,
        "marker": {
            "color": [trial.rung for trial in some],
            "colorscale": SCALE,
            "cmin": 0,
            "cmax": top,
            "size": 6,
            "opacity": 0.75,
        },
        "text": [f"trial {trial.trial_id}, {record.amount(trial.resource)}" for trial in some],
        "hovertemplate": "%{text}<br>%{x}: %{y:.4g}<extra></extra>",
    }
    best = {**dots, "x": dots["x"][:1], "y": values[:1], "text": dots["text"][:1]}
    best["marker"] = {"color": ACCENT, "size": 12, "symbol": "star"}
    axis: dict[str, Any] = {"type": "log" if column.is_log else "linear"} if column.is_number else {}
    if not column.is_number:
        axis = {"type": "category", "categoryorder": "array", "categoryarray": list(map(plain, column.words))}
    elif column.steps is not None:
        axis |= {"tickvals": column.steps, "ticktext": [number(item) for item in column.steps]}
    elif column.is_log:
        ticks = log_ticks(min(items), max(items), _LOG_TICKS)
        axis |= {"tickvals": ticks, "ticktext": list(map(tick_text, ticks))}
        axis |= {"tickangle": 0, "tickfont": {"size": 11}}
    bounds, outside = view(values, best=values[0])
    at_best = column.values[some[0].trial_id]
    shown_best = number(at_best) if isinstance(at_best, float) else str(at_best)
    return draw(
        [dots, best],
        column.name,
        f"{column.name} of {count(len(having), 'trial')}; the best of them, trial {some[0].trial_id}, has "
        f"{shown_best}." + outliers(outside),
        height=280,
        xaxis=axis,
        yaxis={"title": {"text": plain(record.value_name)}, "range": bounds},
        margin={"t": 16},
    )


def importance(record: StudyRecord) -> Picture:
    """Draw how much each parameter matters for being among the best trials."""
    found = importance_of(record)
    names, shares = list(found.shares), list(found.shares.values())
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [plain(name) for name in names],
        "x": shares,
        "marker": {"color": BLUE},
        "text": [f"{share:.0%}" for share in shares],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    return draw(
        [bars] if names else [],
        "Importance of the parameters",
        _importance_words(record, found),
        height=110 + 26 * len(names),
        xaxis={"title": {"text": "share (PED-ANOVA)"}, "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )


def _importance_words(record: StudyRecord, found: Importance) -> str:
    if not found.shares:
        return f"Importance is unknown: {found.missing}."
    name, share = next(iter(found.shares.items()))
    text = f"{name} matters most: {share:.0%} of the difference between the best trials and all"
    return f"{text}, from {count(found.trials, 'trial')} after {record.amount(found.resource)}" + (
        ". This is a rough estimate from few trials." if found.is_rough else "."
    )
