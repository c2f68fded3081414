"""The figure of rungs: how many trials reached each, and what happened to them."""

from __future__ import annotations

from collections import Counter

from spark_hpo.errors import count
from spark_hpo.report.ladder import Fate, Rung, ladder_of
from spark_hpo.report.pictures.theme import BLUE, GREEN, GREY, RED, YELLOW, Picture, draw
from spark_hpo.report.study_record import StudyRecord

_COLOURS = {
    Fate.PROMOTED: "#6366f1",
    Fate.COMPLETED: GREEN,
    Fate.RUNNING: BLUE,
    Fate.PAUSED: YELLOW,
    Fate.STOPPED: GREY,
    Fate.FAILED: RED,
}


def rungs(record: StudyRecord) -> Picture:
    """Draw a bar of trials for each rung of each bracket."""
    ladder = ladder_of(record)
    several = len({rung.bracket for rung in ladder}) > 1
    labels = [
        (f"bracket {rung.bracket}: " if several else "") + record.amount(rung.resource) for rung in ladder
    ]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": str(fate),
            "y": labels,
            "x": [rung.fates.get(fate, 0) for rung in ladder],
            "marker": {"color": colour},
            "hovertemplate": f"%{{y}}<br>%{{x}} {fate}<extra></extra>",
        }
        for fate, colour in _COLOURS.items()
        if any(fate in rung.fates for rung in ladder)
    ]
    return draw(
        traces,
        "Rungs and promotions",
        _words(record, ladder),
        height=110 + 26 * len(ladder),
        barmode="stack",
        bargap=0.25,
        xaxis={"title": {"text": "trials"}},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )


def _words(record: StudyRecord, ladder: list[Rung]) -> str:
    if not ladder:
        return "No trial has been started yet."
    if len(ladder) == 1:
        only = ladder[0]
        return (
            f"There are no rungs: all {count(only.trials, 'trial')} train for {record.amount(only.resource)}."
        )
    fates = sum((Counter(rung.fates) for rung in ladder), Counter[Fate]())
    brackets = len({rung.bracket for rung in ladder})
    text = (
        "At a rung, trials that have trained equally long are compared: the best are promoted and train on, "
        "the others stop. "
    )
    if brackets > 1:
        text += (
            "A bracket is a group of trials that are compared only with each other; one that begins with "
            "more training stops fewer trials that would have improved late. "
        )
    return text + (
        f"{count(len(ladder), 'rung')} in {count(brackets, 'bracket')}: "
        f"{count(fates[Fate.PROMOTED], 'promotion')}, {count(fates[Fate.STOPPED], 'trial')} stopped early, "
        f"{fates[Fate.COMPLETED]:,} fully trained, {fates[Fate.FAILED]:,} failed."
    )
