"""Figures of the best value so far: over time, and over the training spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spark_hpo.errors import number
from spark_hpo.objective import NO_SCORE
from spark_hpo.report.live_line import duration
from spark_hpo.report.pictures.theme import (
    ACCENT,
    GREY,
    Picture,
    colours,
    draw,
    outliers,
    plain,
    thinned,
    time_axis,
    view,
)
from spark_hpo.report.study_record import Attempt, StudyRecord

MAX_POINTS = 3000
"""Points that are no improvement; more make the page slow."""


def history(record: StudyRecord) -> Picture:
    """Draw each report at its time, coloured by rung, and the best value so far."""
    divisor, axis = time_axis(record)
    places = [record.worked(attempt.ended or 0.0) / divisor for attempt in record.reported]
    picture = _history(record, places, "Best value over time", axis, lambda place: duration(place * divisor))
    picture.figure.update_layout(meta={"seconds": divisor})  # per unit of the axis, for points that follow
    return picture


def history_by_resource(record: StudyRecord) -> Picture:
    """Draw each report over the total training of all trials by then."""
    places: list[float] = []
    spent = 0
    for attempt in record.reported:
        assert attempt.report is not None
        spent += attempt.report.resource - attempt.assignment.resource_from
        places.append(spent)
    title, axis = f"Best value over {record.unit}", f"{record.unit} trained, all trials"
    return _history(record, places, title, axis, lambda place: record.amount(round(place)))


def _history(
    record: StudyRecord, places: list[float], title: str, axis: str, in_words: Callable[[float], str]
) -> Picture:
    objective = record.objective
    points: list[tuple[float, float, Attempt]] = []  # (place, value, attempt)
    steps: list[tuple[float, float]] = []  # (place, best value) at each improvement
    best = (0, NO_SCORE)
    others, infeasible = [], []
    for place, attempt in zip(places, record.reported, strict=True):
        assert attempt.report is not None
        score = objective.score(attempt.report.scored_metrics)
        if not score.is_finite:
            continue
        value = objective.value(score.loss)
        # As in `ranking`: a mean over more folds replaces one over fewer.
        rank = (-attempt.report.resource if record.search.has_folds else 0, score)
        if score.violation:
            infeasible.append((place, value, attempt))
        elif rank < best:
            best = rank
            steps.append((place, value))
            points.append((place, value, attempt))
        else:
            others.append((place, value, attempt))
    shown = thinned(others, MAX_POINTS)
    points = sorted([*points, *shown], key=lambda point: point[0])
    if steps:
        steps.append((places[-1], steps[-1][1]))
    rungs = sorted({attempt.assignment.rung for _, _, attempt in points})
    traces = [
        _dots(record, [p for p in points if p[2].assignment.rung == rung], rung, colour)
        for rung, colour in zip(rungs, colours(len(rungs)), strict=True)
    ]
    if infeasible:
        dots = _dots(record, thinned(infeasible, MAX_POINTS), 0, GREY)
        dots["marker"]["symbol"] = "circle-open"
        traces.append({**dots, "name": "breaks a limit"})
    traces.append(
        {
            "x": [place for place, _ in steps],
            "y": [value for _, value in steps],
            "mode": "lines",
            "name": "best so far",
            "line": {"shape": "hv", "color": ACCENT, "width": 2.5},
            "hovertemplate": "best so far: %{y:.4g}<extra></extra>",
        }
    )
    bounds, outside = view((v for _, v, _ in points), best=steps[-1][1] if steps else None)
    return draw(
        traces if steps or infeasible else [],
        title,
        _words(record, steps, in_words, hidden=len(others) - len(shown)) + outliers(outside),
        xaxis={"title": {"text": axis}, "rangemode": "tozero"},
        yaxis={"title": {"text": plain(record.value_name)}, "range": bounds},
    )


def _dots(
    record: StudyRecord, points: list[tuple[float, float, Attempt]], rung: int, colour: str
) -> dict[str, Any]:
    labels = [
        f"trial {a.assignment.trial_id}, {record.amount(a.assignment.resource_to)}" for _, _, a in points
    ]
    return {
        "x": [place for place, _, _ in points],
        "y": [value for _, value, _ in points],
        "mode": "markers",
        "name": f"rung {rung}",
        "marker": {"color": colour, "size": 7, "opacity": 0.75},
        "text": labels,
        "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
    }


def _words(
    record: StudyRecord, steps: list[tuple[float, float]], in_words: Callable[[float], str], hidden: int
) -> str:
    if not steps:
        is_measured = any(attempt.report and attempt.report.scored_metrics for attempt in record.reported)
        return "No trial keeps every limit yet." if is_measured else "No trial has been measured yet."
    (began, first), (_, last) = steps[0], steps[-1]
    found = steps[-2][0]  # the last step is drawn to the end
    text = f"{record.value_name} began with {number(first)} after {in_words(began)}"
    if len(steps) > 2:
        times = {1: "once", 2: "twice"}.get(len(steps) - 2, f"{len(steps) - 2} times")
        text += f" and improved {times}, to {number(last)} after {in_words(found)}."
    else:
        text += " and did not improve."
    return text + (f" {hidden:,} other reports are not shown." if hidden else "")
