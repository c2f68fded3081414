"""The figure of learning curves of all trials, stopped ones faded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from spark_hpo.errors import count, number
from spark_hpo.report.answer import answer_of
from spark_hpo.report.ladder import ladder_of
from spark_hpo.report.pictures.theme import (
    ACCENT,
    BLUE,
    GREEN,
    GREY,
    RED,
    Picture,
    draw,
    joined,
    outliers,
    plain,
    thinned,
    view,
)
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial, TrialState

MAX_CURVES = 400  # a tenth of them the best ones, the others spread evenly
MAX_POINTS = 120  # of one curve

_LOG_FROM = 9  # ratio of longest to shortest training from which the axis is logarithmic

# Later groups are drawn above earlier ones.
_GROUPS: tuple[tuple[str, tuple[TrialState, ...], str, float], ...] = (
    ("stopped", (TrialState.STOPPED, TrialState.PAUSED), GREY, 0.6),
    ("failed", (TrialState.FAILED,), RED, 0.6),
    ("running", (TrialState.RUNNING,), BLUE, 0.9),
    ("fully trained", (TrialState.COMPLETED,), GREEN, 0.7),
)


def curves(record: StudyRecord) -> Picture:
    """Draw the metric of each trial after each measured epoch."""
    metric = record.objective.metric
    best = answer_of(record).best
    measured = [trial for trial in record.trials.values() if _points(trial, metric)]
    shown = _choice(measured)
    traces = [
        _lines([t for t in shown if t.state in states], metric, name, colour, opacity, record.unit)
        for name, states, colour, opacity in _GROUPS
    ]
    if best is not None:
        winner = record.trials[best.trial_id]
        name = f"best: trial {best.trial_id}"
        traces.append({**_lines([winner], metric, name, ACCENT, 1.0, record.unit), "line": _line(ACCENT, 3)})
    traces = [trace for trace in traces if trace["x"]]
    values = [value for trial in shown for _, value in _points(trial, metric)]
    resources = [resource for trial in shown for resource, _ in _points(trial, metric)]
    bounds, outside = view(values, best=None if best is None else best.metrics[metric])
    is_log = bool(resources) and max(resources) >= _LOG_FROM * min(resources)
    return draw(
        traces,
        "Learning curves",
        _words(record, measured, shown, best) + outliers(outside),
        height=420,
        xaxis={
            "title": {"text": record.unit + (", logarithmic" if is_log else "")},
            **(_log_axis(record, resources) if is_log else {}),
        },
        yaxis={"title": {"text": plain(metric)}, "range": bounds},
    )


def _log_axis(record: StudyRecord, resources: Sequence[int]) -> dict[str, Any]:
    rungs = sorted({min(resources), *(rung.resource for rung in ladder_of(record))})
    ends = [math.log10(min(resources)) - 0.03, math.log10(max(resources)) + 0.03]
    return {"type": "log", "tickvals": thinned(rungs, 10), "range": ends}


def _points(trial: Trial, metric: str) -> list[tuple[int, float]]:
    found = ((m.resource, m.metrics.get(metric, math.nan)) for m in trial.curve)
    points = [(resource, value) for resource, value in found if math.isfinite(value)]
    if not points and math.isfinite(value := trial.metrics.get(metric, math.nan)):
        points = [(trial.resource, value)]  # measured at rungs only; the last one is known
    return points


def _choice(trials: Sequence[Trial]) -> list[Trial]:
    """Choose the best trials, and others spread evenly."""
    ranked = sorted(trials, key=lambda trial: (trial.score, trial.trial_id))
    best = ranked[: MAX_CURVES // 10]
    others = sorted(ranked[MAX_CURVES // 10 :], key=lambda trial: trial.trial_id)
    return [*best, *thinned(others, MAX_CURVES - len(best))]


def _lines(
    trials: Sequence[Trial], metric: str, name: str, colour: str, opacity: float, unit: str
) -> dict[str, Any]:
    """Return many curves as one trace. A curve of one point is a dot."""
    points = {trial.trial_id: thinned(_points(trial, metric), MAX_POINTS) for trial in trials}
    is_dotted = any(len(some) == 1 for some in points.values())
    return {
        **joined(
            (f"trial {i}", [resource for resource, _ in some], [float(f"{value:.4g}") for _, value in some])
            for i, some in points.items()
        ),
        "mode": "lines+markers" if is_dotted else "lines",
        "name": name,
        "opacity": opacity,
        "line": _line(colour, 1.3),
        "marker": {"size": 4, "color": colour},
        "hovertemplate": f"%{{text}}, %{{x}} {unit}: %{{y:.4g}}<extra></extra>",
    }


def _line(colour: str, width: float) -> dict[str, Any]:
    return {"color": colour, "width": width}


def _words(record: StudyRecord, measured: Sequence[Trial], shown: Sequence[Trial], best: Trial | None) -> str:
    if best is None:
        return "No trial has been measured yet."
    ended = sum(trial.state is TrialState.COMPLETED for trial in measured)
    faded = sum(trial.state in (TrialState.STOPPED, TrialState.PAUSED) for trial in measured)
    value = number(best.metrics[record.objective.metric])
    text = (
        f"{count(len(measured), 'learning curve')}: {ended:,} fully trained, {faded:,} stopped early "
        f"(faded). The best, trial {best.trial_id}, reached {value} "
        f"after {record.amount(best.resource)}."
    )
    left_out = len(measured) - len(shown)
    return text + (f" {left_out:,} of them are not shown; the best ones are." if left_out else "")
