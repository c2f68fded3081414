"""Each parameter against the objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spark_hpo.report.leaderboard import value
from spark_hpo.report.pictures.columns import Column, by_importance, columns_of, measured
from spark_hpo.report.pictures.theme import (
    ACCENT,
    SCALE,
    Picture,
    count,
    draw,
    number,
    outliers,
    plain,
    thinned,
    view,
)
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial

MAX_PARAMETERS = 24  # with a picture of their own
MAX_POINTS = 1500  # of each of them


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
        "hovertemplate": "%{text}<br>%{x}: %{y:.5g}<extra></extra>",
    }
    best = {**dots, "x": dots["x"][:1], "y": values[:1], "text": dots["text"][:1]}
    best["marker"] = {"color": ACCENT, "size": 12, "symbol": "star"}
    axis: dict[str, Any] = {"type": "log" if column.is_log else "linear"} if column.is_number else {}
    if not column.is_number:
        axis = {"type": "category", "categoryorder": "array", "categoryarray": list(map(plain, column.words))}
    elif column.steps is not None:
        axis |= {"tickvals": column.steps, "ticktext": [number(item) for item in column.steps]}
    elif column.is_log:
        axis |= {"exponentformat": "power", "dtick": 1}
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
