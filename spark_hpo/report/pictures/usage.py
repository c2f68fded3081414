"""The figure of what each assignment used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spark_hpo.errors import count
from spark_hpo.report.live_line import duration
from spark_hpo.report.pictures.theme import BLUE, GREEN, RED, Picture, draw, thinned, time_axis
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.usage import Usage, summary, usage_of

_SHOWN = 2_000  # assignments

_SHARES: tuple[tuple[str, str, Callable[[Usage], float | None]], ...] = (
    ("waiting for data", RED, lambda usage: usage.wait_share),
    ("GPU utilization", GREEN, lambda usage: usage.gpu),
    ("GPU memory", BLUE, lambda usage: usage.gpu_memory_share),
)


def usage(record: StudyRecord) -> Picture:
    """Draw the share of the time that steps waited for data, and the use of the GPUs, of each attempt."""
    divisor, axis = time_axis(record)
    measured = [attempt for attempt in record.attempts if attempt.report and attempt.report.usage]
    found = [
        (record.worked(attempt.ended or attempt.began) / divisor, str(attempt.assignment), used)
        for attempt in thinned(measured, _SHOWN)
        if attempt.report is not None and (used := summary(attempt.report.usage)) is not None
    ]
    traces: list[dict[str, Any]] = []
    for name, colour, share in _SHARES:
        if points := [(x, text, y) for x, text, used in found if (y := share(used)) is not None]:
            traces.append(
                {
                    "x": [x for x, _, _ in points],
                    "y": [round(y, 4) for _, _, y in points],
                    "text": [text for _, text, _ in points],
                    "mode": "markers",
                    "name": name,
                    "marker": {"color": colour, "size": 7, "opacity": 0.75},
                    "hovertemplate": "%{text}: %{y:.0%} " + name + "<extra></extra>",
                }
            )
    hidden = len(measured) - len(found)
    return draw(
        traces,
        "Use by assignment",
        _words(record) + (f" {count(hidden, 'assignment')} not shown." if hidden else ""),
        xaxis={"title": {"text": axis}, "rangemode": "tozero"},
        yaxis={"range": [-0.02, 1.02], "tickformat": ".0%"},
    )


def _words(record: StudyRecord) -> str:
    used = usage_of(record)
    if used is None:
        return "Nothing was measured."
    text = f"{count(used.ranks, 'rank')} measured for {duration(used.seconds)} in all."
    if used.wait_share is None:
        return text + " They read no batches that spark_hpo can time."
    return text + f" Steps waited for data {used.wait_share:.0%} of their time."
