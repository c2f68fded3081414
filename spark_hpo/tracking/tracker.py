"""The seam of trackers: what shows the journal to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from spark_hpo.trial import Trial


class JournalView(Protocol):
    """What a tracker may see of the journal. Trials are frozen: a snapshot may cross threads."""

    @property
    def sequence(self) -> int:
        """Number of the last event."""
        ...

    def changed_since(self, sequence: int) -> Iterable[Trial]:
        """Trials touched by an event after `sequence`, in the order of their ids."""
        ...

    @property
    def trials(self) -> Mapping[int, Trial]:
        """All trials by id."""
        ...


class Tracker(Protocol):
    """Shows the journal to people.

    Once started it never raises for an outage: what is missing is written later.
    """

    def sync(self, journal: JournalView) -> None:
        """Bring the outside up to date. Returns at once; a second call with the same journal adds nothing."""
        ...

    def info(self) -> Mapping[str, Any]:
        """Where people find it, for the summary: e.g. experiment_id, run_id."""
        ...
