"""The style of all figures, and helpers that they share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from typing import Any, TypeVar

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from spark_hpo.errors import count, number
from spark_hpo.report.study_record import StudyRecord

T = TypeVar("T")

# Every colour is readable on white and on black, because a page may be light or dark.
SCALE = [[0.0, "#94a3b8"], [0.33, "#0ea5a4"], [0.67, "#3b82f6"], [1.0, "#9d5cf6"]]
ACCENT = "#f2711c"
GREEN, RED, BLUE, GREY, YELLOW = "#10b981", "#ef4444", "#3b82f6", "#94a3b8", "#d9a006"
_TEXT = "#767676"  # readable on both
_LINE = "rgba(128,128,128,0.25)"

LOG_SPAN = 100.0  # ratio of values from which the axis is logarithmic
_WIDE = 4.0  # spans of the middle 80 % of values; those further away are outliers

_AXIS = {
    "gridcolor": _LINE,
    "linecolor": _LINE,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
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
    """A figure, and a sentence that says what it shows."""

    figure: go.Figure
    title: str
    text: str


def draw(traces: Sequence[dict[str, Any]], title: str, text: str, **layout: Any) -> Picture:
    """Make a picture from traces and layout of plotly; an empty one if the traces have no points."""
    if not any(len(trace.get("x", ())) for trace in traces):
        empty = {"text": "no measurements yet", "showarrow": False, "xref": "paper", "yref": "paper"}
        layout = {"annotations": [{**empty, "x": 0.5, "y": 0.5}], "height": 160}
        layout |= {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
    base = {"title": {"text": plain(title)}, "template": TEMPLATE, "height": 380}
    return Picture(go.Figure(data=list(traces), layout={**base, **layout}), title, text)


def colours(count: int) -> list[str]:
    """Return colours from grey to violet, for rungs and ranks."""
    if count == 0:
        return []
    return [str(c) for c in sample_colorscale(SCALE, [i / max(1, count - 1) for i in range(count)])]


def plain(text: object) -> str:
    """Escape text, because plotly interprets tags."""
    return escape(str(text), quote=False)


def time_axis(record: StudyRecord) -> tuple[float, str]:
    """Return the seconds in a unit that fits the study, and the title of the time axis."""
    divisor, unit = time_unit(record.seconds)
    return divisor, unit if len(record.drivers) < 2 else f"{unit}, without pauses between drivers"


def time_unit(seconds: float) -> tuple[float, str]:
    """Return a unit for an axis of this length: its seconds, and its name."""
    if seconds < 180:
        return 1.0, "seconds"
    return (3600.0, "hours") if seconds >= 3 * 3600 else (60.0, "minutes")


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers in a positive range for a logarithmic axis.

    A trace: log_ticks(3e-4, 3e-2) -> [0.0003, 0.001, 0.003, 0.01, 0.03]
             log_ticks(1e-5, 0.1, most=4) -> [1e-05, 0.001, 0.1]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas, step in ((125, 1), (13, 1), *((1, step) for step in range(1, len(decades) + 1))):
        ticks = [float(f"{m}e{d}") for d in decades if d % step == 0 for m in str(mantissas)]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            break
    return ticks if len(ticks) > 1 else linear_ticks(low, high, most)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round numbers in a range, evenly spaced."""
    if high <= low:
        return [low]
    magnitude = math.floor(math.log10((high - low) / most))
    for step in (Decimal(f"{m}e{magnitude}") for m in ("1", "2", "2.5", "5", "10", "20")):
        first, last = (
            math.floor(Decimal(bound) / step + Decimal(shift))
            for bound, shift in ((low, 1 - 1e-9), (high, 1e-9))
        )
        if last - first < most:
            break
    return [float(i * step) for i in range(first, last + 1)]


def tick_text(tick: float) -> str:
    """Return a number as short as it is round: `0.0003`, `1e-5`, `2,000`, `1e10`."""
    text = number(tick) if abs(tick) < 1e6 else f"{tick:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def view(values: Iterable[float], *, best: float | None = None) -> tuple[list[float] | None, int]:
    """Return the range of an axis without outliers, or None if there are none, and the number of outliers."""
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
    """Return the sentence that goes with `view`."""
    return f" {count(how_many, 'outlier')} outside of the initial view." if how_many else ""


def joined(curves: Iterable[tuple[str, Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Return many curves, (label, x, y), as one trace, with a gap after each."""
    x: list[float | None] = []
    y: list[float | None] = []
    labels: list[str] = []
    for label, some_x, some_y in curves:
        x += [*some_x, None]
        y += [*some_y, None]
        labels += [label] * (len(some_x) + 1)
    return {"x": x, "y": y, "text": labels, "connectgaps": False}


def thinned(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
