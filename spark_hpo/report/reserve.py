"""The reserve of a study: which of its best trials are trained to the end, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.report.live_line import duration
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.events import EventKind
from spark_hpo.trial import Purpose, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveUse:
    """What the reserve holds back while the search runs, and what it has used after it."""

    planned: int  # epochs, or parts or folds, that the best trials still need
    planned_trials: tuple[int, ...]  # that need them
    used: int  # epochs that it has trained
    used_s: float  # slot seconds
    trials: tuple[int, ...]  # that it has trained, or is training

    def to_json(self) -> dict[str, Any]:
        return {
            "planned": {"trials": list(self.planned_trials), "resource": self.planned},
            "used": {
                "trials": list(self.trials),
                "resource": self.used,
                "seconds": round(self.used_s, 1),
            },
        }


def reserve_of(record: StudyRecord) -> ReserveUse:
    """Return the use of the reserve so far."""
    begun = [a for a in record.attempts if a.assignment.purpose is Purpose.FINISH]
    reported = [a for a in record.reported if a.assignment.purpose is Purpose.FINISH]
    trained = [a.report.resource - a.assignment.resource_from for a in reported if a.report is not None]
    best = record.contest.by_value()[: _count(record)] if record.is_running else []
    latest = [record.trials[trial.trial_id] for trial in best]
    ended = (TrialState.COMPLETED, TrialState.FAILED)
    waiting = [trial for trial in latest if trial.state not in ended]
    return ReserveUse(
        planned=sum(max(0, record.search.max_resource - trial.resource) for trial in waiting),
        planned_trials=tuple(trial.trial_id for trial in waiting),
        used=sum(trained),
        used_s=sum(a.report.seconds for a in begun if a.report is not None),
        trials=tuple(dict.fromkeys(a.assignment.trial_id for a in begun)),
    )


def reserve_in_words(record: StudyRecord, use: ReserveUse) -> str | None:
    """Return what the reserve has done or holds back, in one line; None: nothing."""
    if use.trials:
        verb = "is training" if use.planned and record.is_running else "trained"
        time = f", {duration(use.used_s)}" if use.used else ""
        text = f"{verb} {_names(use.trials)}, the best so far, to the end: {record.amount(use.used)}{time}"
        return text
    if use.planned_trials:
        return f"{record.amount(use.planned)}, to train {_names(use.planned_trials)} to the end"
    return None


def _count(record: StudyRecord) -> int:
    """Return how many of the best trials the reserve is for; 0 in studies of earlier versions."""
    plans = [e for driver in record.drivers for e in driver.events if e.kind is EventKind.RESERVE]
    if plans:
        return int(plans[-1].data["limits"].get("finish", 0))
    budget = record.definition.config.get("budget")
    return int(budget.get("finish", 0)) if isinstance(budget, Mapping) else 0


def _names(trials: tuple[int, ...]) -> str:
    return f"trial{'s' if len(trials) > 1 else ''} {', '.join(map(str, trials))}"
