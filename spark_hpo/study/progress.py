"""The budget of a study, and the counters of a running one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spark_hpo.trial import Assignment, AssignmentKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of a study. The search ends when one is reached, save what `finish` needs. None: no limit."""

    trials: int | None = None  # the scheduler enforces it: it completes the rungs of started trials
    resource: int | None = None  # epochs over all trials
    seconds: float | None = None  # in which a driver ran
    finish: int = 0  # the best trials that are trained to the end before the study ends


@dataclass(slots=True)
class Progress:
    """Counters of a running study."""

    slots: int = 0
    running: Mapping[AssignmentKey, Assignment] = field(default_factory=dict)  # in flight
    resource_spent: int = 0  # epochs trained in reported assignments
    run: int = 0  # assignments reported to this driver
    replayed: int = 0  # assignments that were in the journal before
    failed: int = 0  # of both
    seconds: float = 0.0  # in which a driver ran
    busy_seconds: float = 0.0  # slot time used by this driver's assignments
    slot_seconds: float = 0.0  # slot time available while this driver searched
