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
    linear_ticks,
    log_ticks,
    plain,
    thinned,
    tick_text,
)
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial

MAX_AXES = 10  # more cannot be read
MAX_LINES = 300

_GROUP_LOOKS = (("best third", 0.85), ("middle third", 0.5), ("worst third", 0.4))  # name and opacity
_GROUPS = len(_GROUP_LOOKS)
_MISSING = -0.1  # where lines of trials without the parameter pass
_TICKS = 6
_TICK_LETTERS = 36  # of the ticks of one axis together; more do not fit on a phone
_ROW_PX = 66


def parallel(record: StudyRecord) -> Picture:
    """Draw a line for each trial down its parameters to its value, the best ones on top.

    The axes lie below each other, so that their names and ticks can be read on a phone.
    """
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
    bottom = 1.0 - len(columns)
    left = _MISSING - 0.08 if any(scale.has_gaps for scale in scales) else -0.05
    return draw(
        traces if len(columns) > 1 else [],
        "Parallel coordinates",
        _parallel_words(record, trials, shown, len(columns) - 1, hidden),
        height=100 + _ROW_PX * len(columns),
        hovermode="closest",
        legend={"traceorder": "reversed"},
        xaxis={"visible": False, "range": [left, 1.05]},
        yaxis={"visible": False, "range": [bottom - 0.4, 0.5]},
        shapes=[_axis_line(-i) for i in range(len(columns))],
        annotations=[
            note for i, pair in enumerate(zip(columns, scales, strict=True)) for note in _notes(-i, *pair)
        ],
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """The positions of a column's values between 0 and 1, and its ticks."""

    places: Mapping[int, float]  # by trial
    ticks: Sequence[tuple[float, str]]
    has_gaps: bool


def _notes(row: int, column: Column, scale: _Scale) -> list[dict[str, Any]]:
    """Return the name of a row above its axis, and the ticks below it.

    Each is named `label`, so that a page can put its own background behind it.
    """
    look: dict[str, Any] = {"name": "label", "y": row, "showarrow": False, "borderpad": 1}
    name = {
        "x": 0,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "text": f"<b>{_shortened(column.name, 40)}</b>",
    }
    ticks = [*([(_MISSING, "not set")] if scale.has_gaps else []), *scale.ticks]
    below = {**look, "yanchor": "top", "yshift": -3, "font": {"size": 11}}
    return [{**look, **name}, *({**below, "x": place, "text": text} for place, text in ticks)]


def _scale(column: Column, num_trials: int) -> _Scale:
    if column.is_number and column.values:
        transform = math.log if column.is_log else float
        least, most = min(column.values.values()), max(column.values.values())
        low, span = transform(least), (transform(most) - transform(least)) or 1.0
        places = {i: (transform(item) - low) / span for i, item in column.values.items()}
        at = column.steps or (log_ticks if column.is_log else linear_ticks)(least, most, _TICKS)
        ticks = [((transform(tick) - low) / span, tick_text(tick)) for tick in at]
    else:
        words = column.words
        place_of = {word: (i + 0.5) / len(words) for i, word in enumerate(words)}
        places = {i: place_of[str(item)] for i, item in column.values.items()}
        named = thinned(words, 10)
        letters = max(3, _TICK_LETTERS // max(1, len(named)))
        ticks = [(place_of[word], _shortened(word, letters)) for word in named]
    return _Scale(places, ticks, has_gaps=len(places) < num_trials)


def _lines(
    trials: Sequence[Trial],
    scales: Sequence[_Scale],
    colour: str,
    name: str,
    opacity: float,
    width: float = 1.2,
) -> dict[str, Any]:
    rows = [-i for i in range(len(scales))]
    places = {i: [round(s.places.get(i, _MISSING), 4) for s in scales] for i in (t.trial_id for t in trials)}
    return {
        **joined((f"trial {i}", x, rows) for i, x in places.items()),
        "mode": "lines",
        "name": name,
        "line": {"color": colour, "width": width},
        "opacity": opacity,
        "hovertemplate": "%{text}<extra></extra>",
    }


def _axis_line(row: int) -> dict[str, Any]:
    line = {"color": "rgba(128,128,128,0.6)", "width": 1}
    return {"type": "line", "x0": 0, "x1": 1, "y0": row, "y1": row, "line": line, "layer": "below"}


def _shortened(text: str, letters: int) -> str:
    return plain(text if len(text) <= letters else text[: letters - 1] + "…")


def _parallel_words(
    record: StudyRecord, trials: Sequence[Trial], shown: Sequence[Trial], axes: int, hidden: int
) -> str:
    if not shown:
        return "No trial has been measured yet."
    best = number(value(shown[0], record.objective))
    text = f"{count(len(trials), 'trial')} as lines from top to bottom, through "
    text += f"{count(axes, 'parameter')}; the best one ends at {best}."
    if hidden:
        text += f" {count(hidden, 'parameter')} that matter less are not shown."
    left_out = len(trials) - len(shown)
    return text + (f" {left_out:,} trials are not shown; the best ones are." if left_out else "")
