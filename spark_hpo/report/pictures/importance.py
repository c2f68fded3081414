"""Which parameters matter, as bars."""

from __future__ import annotations

from spark_hpo.report.importance import Importance, importance_of
from spark_hpo.report.pictures.theme import BLUE, Picture, count, draw, plain
from spark_hpo.report.study_record import StudyRecord


def importance(record: StudyRecord) -> Picture:
    """Draw how much each parameter matters for being among the best trials."""
    found = importance_of(record)
    names, shares = list(found.shares), list(found.shares.values())
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [plain(name) for name in names],
        "x": shares,
        "marker": {"color": BLUE},
        "text": [f"{share:.0%}" for share in shares],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    return draw(
        [bars] if names else [],
        "Importance of the parameters",
        _importance_words(record, found),
        height=110 + 26 * len(names),
        xaxis={"title": {"text": "share (PED-ANOVA)"}, "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
    )


def _importance_words(record: StudyRecord, found: Importance) -> str:
    if not found.shares:
        return f"Importance is unknown: {found.missing}."
    name, share = next(iter(found.shares.items()))
    text = f"{name} matters most: {share:.0%} of the difference between the best trials and all"
    return f"{text}, from {count(found.trials, 'trial')} after {record.amount(found.resource)}" + (
        ". This is a rough estimate from few trials." if found.is_rough else "."
    )
