"""Whose weights a trial of population based training began with."""

from __future__ import annotations

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial


def lineage_of(record: StudyRecord, trial: Trial) -> list[tuple[int, int]]:
    """Return the ancestors of a trial, its parent first, each with the resource at which it was left."""
    began: dict[int, int] = {}
    for attempt in record.attempts:
        began.setdefault(attempt.assignment.trial_id, attempt.assignment.resource_from)
    found: list[tuple[int, int]] = []
    while trial.parent is not None:
        found.append((trial.parent, began[trial.trial_id]))
        trial = record.trials[trial.parent]
    return found


def lineage_in_words(record: StudyRecord, trial: Trial) -> str | None:
    """Return the ancestors of a trial in one sentence; None: it began with its own weights."""
    ancestors = [f"trial {parent} after {record.amount(at)}" for parent, at in lineage_of(record, trial)]
    if not ancestors:
        return None
    return (
        f"Trial {trial.trial_id} began with the weights of {', which began with those of '.join(ancestors)}."
    )
