"""Failures of a study, grouped by kind and cause."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spark_hpo.report.study_record import Attempt, StudyRecord
from spark_hpo.trial import Failure, FailureKind

# Text that varies between failures of one cause. Addresses and ids come first, because they contain digits.
_VARYING = re.compile(
    r"0x[0-9a-f]+|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?=[a-f]*\d)[0-9a-f]{12,}\b"
    r"|(?<![A-Za-z_])[-+]?\d+(?:\.\d+)*(?:e[-+]?\d+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Failures whose messages differ only in numbers."""

    kind: FailureKind
    message: str  # with # for each number and id
    example: str  # the whole message of the first
    traceback: str  # of the same; may be empty
    failed: int  # attempts that ended their trial
    retried: int  # attempts that were lost, and followed by another
    trials: tuple[int, ...]  # ascending, each once

    @property
    def count(self) -> int:
        return self.failed + self.retried


def causes_of(record: StudyRecord) -> list[Cause]:
    """Return the causes of all failures but interrupts, the one that failed most trials first."""
    groups: dict[tuple[FailureKind, str], list[tuple[Attempt, Failure]]] = {}
    for attempt in record.attempts:
        failure = None if attempt.report is None else attempt.report.failure
        if failure is not None and failure.kind is not FailureKind.INTERRUPTED:
            key = failure.kind, normalised(failure.message)
            groups.setdefault(key, []).append((attempt, failure))
    causes = [
        Cause(
            kind=kind,
            message=message,
            example=some[0][1].message,
            traceback=some[0][1].traceback,
            failed=sum(not attempt.is_lost for attempt, _ in some),
            retried=sum(attempt.is_lost for attempt, _ in some),
            trials=tuple(sorted({attempt.assignment.trial_id for attempt, _ in some})),
        )
        for (kind, message), some in groups.items()
    ]
    return sorted(causes, key=lambda cause: (-cause.failed, -cause.retried, cause.message))


def normalised(message: str) -> str:
    """Replace each number, address and id: `rank 3 died at 0x7f1` -> `rank # died at #`."""
    return _VARYING.sub("#", message)
