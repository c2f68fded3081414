"""The seam of backends: where an assignment runs."""

from __future__ import annotations

from typing import Protocol

from spark_hpo.trial import Assignment, Report


class Backend(Protocol):
    """Runs assignments. A failure comes back as a report, never as an exception.

    A trace: num_slots -> 2; submit(a); submit(b); wait(10) -> report of b; wait(10) -> None (10 s passed)
    """

    @property
    def num_slots(self) -> int:
        """How many assignments fit at once, now. Those in flight are not subtracted."""
        ...

    def submit(self, assignment: Assignment) -> None:
        """Start one assignment and return at once. The caller keeps to `num_slots`."""
        ...

    def wait(self, timeout: float) -> Report | None:
        """The next report, or None after `timeout` seconds."""
        ...

    def cancel(self, trial_id: int) -> None:
        """Stop the assignment of a trial, if one is in flight. No report of it follows."""
        ...

    def close(self) -> None:
        """Cancel what is in flight and give back every resource. Idempotent."""
        ...
