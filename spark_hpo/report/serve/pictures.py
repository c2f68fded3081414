"""The pictures that only the live page has: the curve of one trial, several studies, and small lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spark_hpo.errors import count, number
from spark_hpo.report.pictures.theme import ACCENT, BLUE, GREY, Picture, draw, plain, time_unit
from spark_hpo.report.serve.tally import Step
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial

_COLOURS = (BLUE, "#f2711c", "#10b981", "#9d5cf6", "#d9a006", "#ef4444", "#0ea5a4", "#db61a2")
_DASHES = ("solid", "dash", "dot", "dashdot")  # colour is not the only difference
_WIDTH, _HEIGHT = 120, 28  # of a small line, in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The best value of one study as it improved."""

    name: str
    steps: Sequence[Step]
    seconds: float  # in which a driver ran, so far
    resource: int  # trained so far


def compared(paths: Sequence[Path], metric: str, unit: str, *, over_time: bool) -> Picture:
    """Draw the best values of several studies as steps over time, or over the training spent."""
    longest = max((path.seconds for path in paths), default=0.0)
    divisor, axis = time_unit(longest)
    traces: list[dict[str, Any]] = []
    for i, path in enumerate(paths):
        places = [step.seconds / divisor if over_time else step.resource for step in path.steps]
        values = [step.value for step in path.steps]
        if values:
            places.append(path.seconds / divisor if over_time else path.resource)
            values.append(values[-1])
        line: dict[str, Any] = {"shape": "hv", "width": 2.5, "color": _COLOURS[i % len(_COLOURS)]}
        traces.append(
            {
                "x": places,
                "y": values,
                "mode": "lines",
                "name": plain(path.name),
                "line": {**line, "dash": _DASHES[i // len(_COLOURS) % len(_DASHES)]},
                "hovertemplate": f"{plain(path.name)}<br>%{{x:.4g}}: %{{y:.4g}}<extra></extra>",
            }
        )
    known = [path for path in paths if path.steps]
    text = f"The best {metric} so far of {count(len(paths), 'study').replace('studys', 'studies')}"
    text += ": " + ", ".join(f"{p.name} {number(p.steps[-1].value)}" for p in known) + "." if known else "."
    return draw(
        traces,
        "Best value over time" if over_time else f"Best value over {unit}",
        text,
        height=420,
        xaxis={
            "title": {"text": axis if over_time else f"{unit} trained, all trials"},
            "rangemode": "tozero",
        },
        yaxis={"title": {"text": plain(metric)}},
    )


def curve(record: StudyRecord, trial: Trial, best: Trial | None) -> Picture:
    """Draw the learning curve of a trial, and faded that of the best one."""
    metric = record.objective.metric
    traces: list[dict[str, Any]] = []
    shown = [(trial, f"trial {trial.trial_id}", ACCENT, 3.0)]
    if best is not None and best.trial_id != trial.trial_id:
        other = record.trials[best.trial_id]
        shown.insert(0, (other, f"best: trial {best.trial_id}", GREY, 1.5))
    for one, name, colour, width in shown:
        points = [(m.resource, m.metrics[metric]) for m in one.curve if metric in m.metrics]
        points = [(resource, value) for resource, value in points if math.isfinite(value)]
        traces.append(
            {
                "x": [resource for resource, _ in points],
                "y": [value for _, value in points],
                "mode": "lines+markers",
                "name": name,
                "line": {"color": colour, "width": width},
                "marker": {"size": 5, "color": colour},
                "hovertemplate": f"{name}<br>%{{x}} {record.unit}: %{{y:.4g}}<extra></extra>",
            }
        )
    measured = traces[-1]["y"]
    words = "It has not been measured yet."
    if len(measured) == 1:
        words = f"{metric} was measured once: {number(measured[0])}."
    elif measured:
        words = f"{metric} was measured {len(measured)} times, from {number(measured[0])} to "
        words += f"{number(measured[-1])}."
    return draw(
        traces,
        "Learning curve",
        words,
        xaxis={"title": {"text": record.unit}},
        yaxis={"title": {"text": plain(metric)}},
    )


def small_line(steps: Sequence[Step], seconds: float) -> str:
    """Return the points of a line of the best value over time, for an SVG of 120 by 28 pixels."""
    if not steps:
        return ""
    low, high = min(step.value for step in steps), max(step.value for step in steps)
    span, total = (high - low) or 1.0, max(seconds, steps[-1].seconds) or 1.0
    points: list[tuple[float, float]] = []
    for step in [*steps, Step(total, 0, steps[-1].value)]:
        x = 2 + (_WIDTH - 4) * step.seconds / total
        y = 3 + (_HEIGHT - 6) * (high - step.value) / span
        points += ([(x, points[-1][1])] if points else []) + [(x, y)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
