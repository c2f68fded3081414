"""The figure of slots over time: busy, and idle by reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark_hpo.errors import count
from spark_hpo.report.live_line import duration
from spark_hpo.report.pictures.theme import BLUE, Picture, draw, time_axis
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.timeline import Gap, Segment, Timeline, Use, timeline_of

_BINS = 400  # periods of equal length; each shows the mean use

COLOURS = {
    Use.BUSY: BLUE,
    Use.TESTING: "#14b8a6",
    Use.WAITING: "#fbbf24",
    Use.DECIDING: "#a78bfa",
    Use.RETRYING: "#fb7185",
    Use.STARTING: "#94a3b8",
    Use.ENDING: "#cbd5e1",
    Use.PAUSED: "#e2e8f0",
    Use.GONE: "#fca5a5",
}


def slots(record: StudyRecord) -> Picture:
    """Draw the use of slots as stacked areas, with a vertical line wherever the study was resumed."""
    timeline = timeline_of(record)
    divisor, axis = time_axis(record)
    edges, means = binned(record, timeline.segments)
    traces: list[dict[str, Any]] = [
        {
            "x": [edge / divisor for edge in edges],
            "y": [round(mean.get(use, 0.0), 3) for mean in means],
            "mode": "lines",
            "name": str(use),
            "stackgroup": "slots",
            "line": {"shape": "hv", "width": 0, "color": colour},
            "fillcolor": colour,
            "hovertemplate": "%{y:.3g} " + str(use) + "<extra></extra>",
        }
        for use, colour in COLOURS.items()
        if any(mean.get(use) for mean in means)
    ]
    gaps = [(record.worked(gap.begin) / divisor, gap) for gap in timeline.gaps]
    return draw(
        traces,
        "Slots over time",
        _words(timeline),
        height=400,
        hovermode="x unified",
        xaxis={"title": {"text": axis}, "rangemode": "tozero"},
        yaxis={"title": {"text": "slots"}, "rangemode": "tozero", "tickformat": "d"}
        | ({"dtick": 1} if timeline.most <= 10 else {}),
        legend={"y": -0.22, "yanchor": "top"},
        shapes=[_line_at(place) for place, _ in gaps],
        annotations=[_note_at(place, gap) for place, gap in gaps],
    )


def binned(record: StudyRecord, segments: Sequence[Segment]) -> tuple[list[float], list[Mapping[Use, float]]]:
    """Return the start of equal periods of driver time, in seconds, and the mean use of slots in each."""
    total = record.worked(record.drivers[-1].ended) if record.drivers else 0.0
    if not segments or total <= 0:
        return [], []
    width = total / _BINS
    sums: list[dict[Use, float]] = [{} for _ in range(_BINS)]
    for segment in segments:
        begin, end = record.worked(segment.begin), record.worked(segment.end)
        for i in range(min(_BINS - 1, int(begin / width)), min(_BINS - 1, int(end / width)) + 1):
            overlap = min(end, (i + 1) * width) - max(begin, i * width)
            for use, slots_there in segment.slots.items() if overlap > 0 else ():
                sums[i][use] = sums[i].get(use, 0.0) + slots_there * overlap / width
    edges = [i * width for i in range(_BINS + 1)]
    means: list[Mapping[Use, float]] = [*sums, sums[-1]]  # repeated, to draw the last period to its end
    return edges, means


def _line_at(place: float) -> dict[str, Any]:
    line = {"dash": "dot", "width": 1.5, "color": "#767676"}
    return {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _note_at(place: float, gap: Gap) -> dict[str, Any]:
    why = "interrupted" if gap.was_interrupted else "driver failed or was killed"
    note = {"yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False, "font": {"size": 11}}
    return {**note, "x": place, "xanchor": "left", "text": f"{why}; resumed {duration(gap.seconds)} later"}


def _words(timeline: Timeline) -> str:
    share = timeline.busy_share
    if share is None:
        return "No slot has been available yet."
    text = f"Up to {count(timeline.most, 'slot')}; {share:.0%} of the slot time was used."
    idle = {use: seconds for use, seconds in timeline.totals.items() if use not in (Use.BUSY, Use.PAUSED)}
    if idle:
        most = max(idle, key=lambda use: idle[use])
        text += f" Main reason for the rest: {most.split(': ', 1)[1]} ({duration(idle[most])} of slot time)."
    if timeline.gaps:
        text += f" The study was resumed {count(len(timeline.gaps), 'time')}."
    if not timeline.is_counted:
        text += " The journal has no numbers of slots; they are estimated by the most attempts at once."
    return text
