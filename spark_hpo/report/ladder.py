"""The rungs of a study, and what happened to the trials that reached them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Split, TrialState


class Fate(StrEnum):
    """The fate of a trial at a rung."""

    PROMOTED = "promoted"
    COMPLETED = "fully trained"
    RUNNING = "running"
    PAUSED = "waiting for promotion"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One rung of one bracket."""

    bracket: int
    rung: int
    resource: int  # completed at its end
    fates: Mapping[Fate, int]

    @property
    def trials(self) -> int:
        return sum(self.fates.values())


_FATES = {
    TrialState.COMPLETED: Fate.COMPLETED,
    TrialState.RUNNING: Fate.RUNNING,
    TrialState.PAUSED: Fate.PAUSED,
    TrialState.STOPPED: Fate.STOPPED,
    TrialState.FAILED: Fate.FAILED,
}


def ladder_of(record: StudyRecord) -> list[Rung]:
    """Return all rungs that a trial reached, bracket by bracket, the lowest first."""
    came: dict[tuple[int, int], dict[int, int]] = {}  # by rung: its trials, and the resource there
    highest: dict[int, int] = {}  # by trial
    for attempt in record.attempts:
        assignment = attempt.assignment
        if assignment.split is Split.VALIDATION and assignment.repeat is None:
            trials = came.setdefault((assignment.bracket, assignment.rung), {})
            trials[assignment.trial_id] = assignment.resource_to
            highest[assignment.trial_id] = max(highest.get(assignment.trial_id, 0), assignment.rung)
    rungs = []
    for (bracket, rung), trials in sorted(came.items()):
        fates = Counter(
            Fate.PROMOTED if highest[trial_id] > rung else _FATES[record.trials[trial_id].state]
            for trial_id in trials
        )
        rungs.append(Rung(bracket=bracket, rung=rung, resource=max(trials.values()), fates=fates))
    return rungs
