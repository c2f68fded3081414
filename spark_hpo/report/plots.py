"""Pictures of a study as plotly figures, and a page that shows them without a network."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spark_hpo.report.leaderboard import flatten, ranked, value
from spark_hpo.trial import Mode, Objective, Trial, TrialState

LOG_SPAN = 100.0  # a parameter whose values span as much gets a logarithmic axis
MAX_PARAMETERS = 24  # shown; a picture of more cannot be read
_COLUMNS = 3
_SCALE = "Viridis"


def history(trials: Iterable[Trial], objective: Objective) -> go.Figure:
    """The value of each trial when it was last measured, and the best so far.

    One colour for each rung. The horizontal axis is minutes since the first trial began.
    """
    everything = list(trials)
    done = sorted(_measured(everything), key=lambda trial: (trial.ended_at or 0.0, trial.trial_id))
    failed = sum(trial.state is TrialState.FAILED for trial in everything)
    figure = go.Figure()
    begin = min((trial.started_at for trial in everything), default=0.0)

    def minutes(trial: Trial) -> float:
        return ((trial.ended_at or trial.started_at) - begin) / 60

    rungs = sorted({trial.rung for trial in done})
    for rung, colour in zip(rungs, _colours(len(rungs)), strict=True):
        some = [trial for trial in done if trial.rung == rung]
        figure.add_scatter(
            x=[minutes(trial) for trial in some],
            y=[value(trial, objective) for trial in some],
            mode="markers",
            name=f"rung {rung}",
            marker={"color": colour, "size": 8},
            text=[_label(trial) for trial in some],
            hovertemplate="%{text}<br>%{y:.5g}<extra></extra>",
        )
    if done:
        figure.add_scatter(
            x=[minutes(trial) for trial in done],
            y=[objective.value(loss) for loss in accumulate((trial.loss for trial in done), min)],
            mode="lines",
            name="best so far",
            line={"shape": "hv", "color": "#d62728"},
        )
    subtitle = f"{len(everything)} trials" + (f", {failed} failed" if failed else "")
    _lay_out(figure, f"Optimisation history: {subtitle}", is_empty=not done)
    figure.update_xaxes(title_text="minutes", rangemode="tozero")
    figure.update_yaxes(title_text=objective.metric)
    return figure


def parameters(trials: Iterable[Trial], objective: Objective) -> go.Figure:
    """One small scatter a parameter: its values against the objective, coloured by resource.

    Logarithmic where the values span two decades; categories where one is no number. A conditional
    parameter shows the trials that have it.
    """
    done = _measured(ranked(trials))
    by_name: dict[str, list[tuple[Trial, Any]]] = {}
    for trial in done:
        for name, item in flatten(trial.params):
            by_name.setdefault(name, []).append((trial, item))
    names = sorted(by_name)[:MAX_PARAMETERS]
    title = f"Parameters and {objective.metric}"
    if len(by_name) > len(names):
        title += f": the first {len(names)} of {len(by_name)}"
    if not names:
        figure = go.Figure()
        _lay_out(figure, title, is_empty=True)
        return figure

    rows = math.ceil(len(names) / _COLUMNS)
    figure = make_subplots(
        rows=rows,
        cols=_COLUMNS,
        shared_yaxes=True,
        subplot_titles=[escape(name) for name in names],
        horizontal_spacing=0.03,
        vertical_spacing=0.35 / rows,
    )
    for index, name in enumerate(names):
        row, column = index // _COLUMNS + 1, index % _COLUMNS + 1
        some = [trial for trial, _ in by_name[name]]
        items, axis = _axis([item for _, item in by_name[name]])
        figure.add_scatter(
            x=items,
            y=[value(trial, objective) for trial in some],
            mode="markers",
            name=name,
            showlegend=False,
            marker={"color": [trial.resource for trial in some], "coloraxis": "coloraxis", "size": 7},
            text=[_label(trial) for trial in some],
            hovertemplate="%{text}<br>%{x}: %{y:.5g}<extra></extra>",
            row=row,
            col=column,
        )
        figure.update_xaxes(**axis, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text=objective.metric, row=row, col=column)
    _lay_out(figure, title, is_empty=False)
    figure.update_layout(
        height=120 + 260 * rows, coloraxis={"colorscale": _SCALE, "colorbar": {"title": "epochs"}}
    )
    return figure


def pareto_front(trials: Iterable[Trial], objective: Objective, front: Collection[int]) -> go.Figure:
    """The first two objectives of the trials that were trained to the end, those on the front in a colour.

    Of two objectives the front is a line: what it encloses is dominated. Of more it has no line, because
    some of its points lie behind others in the first two.

    Args:
        front: the trials on the front, by id.
    """
    (x_name, x_mode), (y_name, _) = objective.also[0], (objective.metric, objective.mode)
    done = [
        trial
        for trial in _measured(trials)
        if trial.state is TrialState.COMPLETED and {x_name, y_name} <= trial.metrics.keys()
    ]
    on_front = sorted(
        (trial for trial in done if trial.trial_id in front), key=lambda trial: trial.metrics[x_name]
    )
    figure = go.Figure()
    for name, some, colour in (
        ("other trials", [trial for trial in done if trial.trial_id not in front], "#b0b0b0"),
        ("Pareto front", on_front, "#d62728"),
    ):
        is_line = name == "Pareto front" and len(objective.also) == 1
        figure.add_scatter(
            x=[trial.metrics[x_name] for trial in some],
            y=[trial.metrics[y_name] for trial in some],
            mode="lines+markers" if is_line else "markers",
            name=name,
            # Where less is better along x, what a point has in y can be had from there on: first across.
            line={"shape": "hv" if x_mode is Mode.MIN else "vh"},
            marker={"color": colour, "size": 8},
            text=[_label(trial) for trial in some],
            hovertemplate="%{text}<br>%{x:.5g}, %{y:.5g}<extra></extra>",
        )
    _lay_out(
        figure, f"Pareto front: {len(on_front)} of {len(done)} trials trained to the end", is_empty=not done
    )
    figure.update_xaxes(title_text=x_name)
    figure.update_yaxes(title_text=y_name)
    return figure


def page(figures: Mapping[str, go.Figure], *, title: str) -> str:
    """One HTML page that needs no network: plotly.js is in it once, about 5 MB.

    Keys of `figures` become the parts' ids.
    """
    parts = [
        figure.to_html(
            full_html=False, include_plotlyjs=index == 0, div_id=escape(key), config={"displaylogo": False}
        )
        for index, (key, figure) in enumerate(figures.items())
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _measured(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if math.isfinite(trial.loss)]


def _axis(items: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The values to draw, and the settings of their axis."""
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        # Numbers among words, as 2 and "auto", are words too, else plotly would sort them onto one axis.
        return [str(item) for item in items], {"type": "category", "categoryorder": "category ascending"}
    low, high = min(items), max(items)
    if low > 0 and high / low >= LOG_SPAN:
        return list(items), {"type": "log", "exponentformat": "power", "dtick": 1}
    return list(items), {"type": "linear"}


def _colours(count: int) -> list[str]:
    if count == 0:
        return []
    return [
        str(colour)
        for colour in sample_colorscale(_SCALE, [i / max(1, count - 1) * 0.9 for i in range(count)])
    ]


def _label(trial: Trial) -> str:
    return f"trial {trial.trial_id}, {trial.resource} epochs, {trial.state}"


def _lay_out(figure: go.Figure, title: str, *, is_empty: bool) -> None:
    figure.update_layout(
        title_text=title, template="plotly_white", margin={"l": 60, "r": 20, "t": 80, "b": 50}
    )
    if is_empty:
        figure.add_annotation(
            text="no trial has been measured", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
        )
