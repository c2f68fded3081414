"""The final between the best trials: their values with other seeds, and who is the winner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.finals import Finals


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """A finalist, with values in the user's direction."""

    trial_id: int
    resource: int  # to which each seed was trained
    values: tuple[float, ...]
    num_failed: int  # seeds
    mean: float | None  # None: no seed has succeeded yet
    spread: float | None  # standard deviation of the sample; None: fewer than two values
    chance: float  # that its expected value is the best one, 0 to 1

    def to_json(self) -> dict[str, Any]:
        return {
            "trial": self.trial_id,
            "resource": self.resource,
            "values": list(self.values),
            **({"failed": self.num_failed} if self.num_failed else {}),
            "mean": self.mean,
            "spread": self.spread,
            "chance": round(self.chance, 4),
        }


def confirmation_of(record: StudyRecord) -> list[Confirmed]:
    """Return the finalists so far, the best first; none if the study has no final."""
    return [] if record.finalists is None else compared(record.finalists)


def compared(finals: Finals) -> list[Confirmed]:
    """Return the finalists, the best first, by the trainings so far."""
    objective = finals.objective
    return [
        Confirmed(
            trial_id=each.trial_id,
            resource=finals.resources[each.trial_id],
            values=tuple(objective.value(loss) for loss in each.losses),
            num_failed=each.num_failed,
            mean=objective.value(each.mean) if each.losses else None,
            spread=each.spread,
            chance=each.chance,
        )
        for each in finals.compared()
    ]


def confirmation_in_words(record: StudyRecord) -> str | None:
    """Return the state or the winner of the final in one sentence; None: there is none."""
    finals, found = record.finalists, confirmation_of(record)
    if finals is None or not found:
        return None
    if not finals.is_complete:
        left = sum(1 for _ in finals.missing(finals.seeds))
        trainings = "1 training is" if left == 1 else f"{left} trainings are"
        return f"training {len(found)} finalists with {finals.seeds} other seeds each; {trainings} left"
    first = found[0]
    spread = "" if first.spread is None else f" ± {first.spread:.2g}"
    mean = "no value" if first.mean is None else f"{first.mean:.4g}{spread}"
    return (
        f"trial {first.trial_id} wins with a mean of {mean} over {len(first.values)} other seeds; the chance "
        f"that it is the best of the {len(found)} finalists is {first.chance:.0%}"
    )
