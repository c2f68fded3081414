"""How all pictures look, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from spark_hpo.report.study_record import StudyRecord

T = TypeVar("T")

# Every colour can be told from white and from black: a page may be light or dark.
SCALE = [[0.0, "#94a3b8"], [0.33, "#0ea5a4"], [0.67, "#3b82f6"], [1.0, "#9d5cf6"]]
ACCENT = "#f2711c"
GREEN, RED, BLUE, GREY, YELLOW = "#10b981", "#ef4444", "#3b82f6", "#94a3b8", "#d9a006"
_TEXT = "#767676"  # the one grey that is readable on both
_LINE = "rgba(128,128,128,0.25)"

LOG_SPAN = 100.0  # values that span as much get a logarithmic axis
_WIDE = 4.0  # spans of the middle eight tenths, beyond which a value is left out of the first view

_AXIS = {
    "gridcolor": _LINE,
    "linecolor": _LINE,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": _TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "hovermode": "closest",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure, and the sentence that says what is to be seen."""

    figure: go.Figure
    title: str
    text: str


def draw(traces: Sequence[dict[str, Any]], title: str, text: str, **layout: Any) -> Picture:
    """A picture from plotly's own words. Without traces it says that there is nothing to see yet."""
    if not any(len(trace.get("x", ())) for trace in traces):
        empty = {"text": "nothing measured yet", "showarrow": False, "xref": "paper", "yref": "paper"}
        layout = {"annotations": [{**empty, "x": 0.5, "y": 0.5}], "height": 160}
        layout |= {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
    base = {"title": {"text": plain(title)}, "template": TEMPLATE, "height": 380}
    return Picture(go.Figure(data=list(traces), layout={**base, **layout}), title, text)


def colours(count: int) -> list[str]:
    """As many colours, from grey to violet, for rungs and ranks."""
    if count == 0:
        return []
    return [str(c) for c in sample_colorscale(SCALE, [i / max(1, count - 1) for i in range(count)])]


def plain(text: object) -> str:
    """Text of the user's for plotly, which takes tags for formatting."""
    return escape(str(text), quote=False)


def number(value: float | None, digits: int = 4) -> str:
    """`0.9876`, `1.2e-05`, `12,346`; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e12 else f"{value:.{digits}g}"


def count(how_many: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{how_many:,} {noun}{'' if how_many == 1 else 's'}"


def time_axis(record: StudyRecord) -> tuple[float, str]:
    """Seconds in a unit that fits the study, and the title of its axis."""
    seconds = record.seconds
    divisor, unit = (3600.0, "hours") if seconds >= 3 * 3600 else (60.0, "minutes")
    if seconds < 180:
        divisor, unit = 1.0, "seconds"
    return divisor, f"{unit} of drivers' work"


def view(values: Iterable[float], *, best: float | None = None) -> tuple[list[float] | None, int]:
    """The range of an axis that outliers do not stretch, and how many values lie outside.

    None: there are no outliers.
    """
    some = sorted(value for value in values if math.isfinite(value))
    if len(some) < 10:
        return None, 0
    low, high = some[len(some) // 10], some[-1 - len(some) // 10]
    reach = (high - low) * _WIDE
    bounds = [max(some[0], low - reach), min(some[-1], high + reach)]
    if best is not None:
        bounds = [min(bounds[0], best), max(bounds[1], best)]
    outside = sum(not bounds[0] <= value <= bounds[1] for value in some)
    if not outside or bounds[0] == bounds[1]:
        return None, 0
    edge = (bounds[1] - bounds[0]) * 0.05
    return [bounds[0] - edge, bounds[1] + edge], outside


def outliers(how_many: int) -> str:
    """The sentence that goes with `view`."""
    if not how_many:
        return ""
    verb = "lies" if how_many == 1 else "lie"
    return f" {count(how_many, 'value')} far off {verb} outside of the first view."


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly; the first and the last are among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
