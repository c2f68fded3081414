"""The figure of parallel coordinates: which combinations of parameters are good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from spark_hpo.errors import count, number
from spark_hpo.report.leaderboard import value
from spark_hpo.report.pictures.columns import Column, by_importance, columns_of, measured
from spark_hpo.report.pictures.theme import (
    ACCENT,
    Picture,
    colours,
    draw,
    joined,
    plain,
    thinned,
)
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial

MAX_AXES = 10  # more cannot be read
MAX_LINES = 300

_GROUP_LOOKS = (("best third", 0.85), ("middle third", 0.5), ("worst third", 0.4))  # name and opacity
_GROUPS = len(_GROUP_LOOKS)
_MISSING = -0.08  # where lines of trials without the parameter pass
_TICKS = 5


def parallel(record: StudyRecord) -> Picture:
    """Draw a line for each trial across its parameters to its value, the best ones on top."""
    trials = measured(record)
    shown = [*trials[: MAX_LINES // 3], *thinned(trials[MAX_LINES // 3 :], MAX_LINES - MAX_LINES // 3)]
    columns = by_importance(record, columns_of(record, shown))
    hidden = max(0, len(columns) - MAX_AXES)
    result = Column(record.value_name, {t.trial_id: value(t, record.objective) for t in shown})
    columns = [*columns[:MAX_AXES], result]
    scales = [_scale(column, len(shown)) for column in columns]
    shades = colours(_GROUPS)
    traces = []
    for group, some in groupby(enumerate(shown), lambda pair: _GROUPS * pair[0] // max(1, len(shown))):
        lines = [trial for _, trial in some]
        traces.append(_lines(lines, scales, shades[_GROUPS - 1 - group], *_GROUP_LOOKS[group]))
    if shown:
        traces.append(_lines(shown[:1], scales, ACCENT, f"best: trial {shown[0].trial_id}", 1.0, width=3.0))
    traces[:-1] = traces[:-1][::-1]  # the better ones on top
    labels = [_shortened(column.name) for column in columns]
    positions = list(range(len(columns)))
    return draw(
        traces if len(columns) > 1 else [],
        "Parallel coordinates",
        _parallel_words(record, trials, shown, len(columns) - 1, hidden),
        height=480,
        hovermode="closest",
        legend={"traceorder": "reversed"},
        xaxis={
            "tickvals": positions,
            "ticktext": labels,
            "range": [-0.1, len(columns) - 0.9],
            "tickangle": 25 if len(columns) > 4 else 0,
            "showgrid": False,
            "showline": False,
        },
        margin={"r": 64},  # for the labels right of the last axis
        yaxis={"visible": False, "range": [_MISSING - 0.06, 1.06]},
        shapes=[_axis_line(i) for i in positions],
        annotations=[note for i, scale in enumerate(scales) for note in scale.notes(i)],
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """The positions of a column's values between 0 and 1, and its ticks."""

    places: Mapping[int, float]  # by trial
    ticks: Sequence[tuple[float, str]]
    has_gaps: bool

    def notes(self, position: int) -> list[dict[str, Any]]:
        look = {"x": position, "showarrow": False, "xanchor": "left", "xshift": 3, "font": {"size": 11}}
        ticks = [*self.ticks, *([(_MISSING, "not set")] if self.has_gaps else [])]
        return [{**look, "y": place, "text": plain(text)} for place, text in ticks]


def _scale(column: Column, num_trials: int) -> _Scale:
    places: dict[int, float] = {}
    if column.is_number and column.values:
        transform = math.log if column.is_log else float
        low, high = transform(min(column.values.values())), transform(max(column.values.values()))
        span = (high - low) or 1.0
        places = {i: (transform(item) - low) / span for i, item in column.values.items()}
        few = None if column.steps is None else list(map(transform, column.steps))
        at = few or [low + span * i / (_TICKS - 1) for i in range(_TICKS)]
        steps = [(item - low) / span for item in at]
        ticks = [(s, number(math.exp(v) if column.is_log else v, 3)) for s, v in zip(steps, at, strict=True)]
    else:
        words = column.words
        place_of = {word: (i + 0.5) / len(words) for i, word in enumerate(words)}
        places = {i: place_of[str(item)] for i, item in column.values.items()}
        ticks = [(place, _shortened(word)) for word, place in list(place_of.items())[:20]]
    return _Scale(places, ticks, has_gaps=len(places) < num_trials)


def _lines(
    trials: Sequence[Trial],
    scales: Sequence[_Scale],
    colour: str,
    name: str,
    opacity: float,
    width: float = 1.2,
) -> dict[str, Any]:
    axes = range(len(scales))
    places = {i: [round(s.places.get(i, _MISSING), 4) for s in scales] for i in (t.trial_id for t in trials)}
    return {
        **joined((f"trial {i}", axes, y) for i, y in places.items()),
        "mode": "lines",
        "name": name,
        "line": {"color": colour, "width": width},
        "opacity": opacity,
        "hovertemplate": "%{text}<extra></extra>",
    }


def _axis_line(position: int) -> dict[str, Any]:
    line = {"color": "rgba(128,128,128,0.6)", "width": 1}
    return {"type": "line", "x0": position, "x1": position, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _shortened(text: str) -> str:
    return plain(text if len(text) <= 24 else text[:23] + "…")


def _parallel_words(
    record: StudyRecord, trials: Sequence[Trial], shown: Sequence[Trial], axes: int, hidden: int
) -> str:
    if not shown:
        return "No trial has been measured yet."
    best = number(value(shown[0], record.objective))
    text = f"{count(len(trials), 'trial')} across {count(axes, 'parameter')}; the best ends at {best}."
    if hidden:
        text += f" {count(hidden, 'parameter')} that matter less are not shown."
    left_out = len(trials) - len(shown)
    return text + (f" {left_out:,} trials are not shown; the best ones are." if left_out else "")
