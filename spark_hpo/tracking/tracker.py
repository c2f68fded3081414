"""The protocol of trackers, which show the journal to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from spark_hpo.trial import Trial


class JournalView(Protocol):
    """The part of the journal that trackers read. Trials are frozen, so they may be passed to a thread."""

    @property
    def sequence(self) -> int:
        """The number of the last event."""
        ...

    def changed_since(self, sequence: int) -> Iterable[Trial]:
        """Return the trials changed by events after `sequence`, in the order of their ids."""
        ...

    @property
    def trials(self) -> Mapping[int, Trial]:
        """All trials by id."""
        ...


class Tracker(Protocol):
    """Shows the journal to people. It never raises for an outage, but writes later."""

    def sync(self, journal: JournalView) -> None:
        """Write what is new, in the background. Idempotent."""
        ...

    def info(self) -> Mapping[str, Any]:
        """Return where people find the study, e.g. experiment_id and run_id."""
        ...
