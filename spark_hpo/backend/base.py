"""The seam of backends: where an assignment runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from spark_hpo.trial import Assignment, BarrierContext, FailureKind, Report


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


class RankFunction(Protocol):
    """Runs one rank of an assignment, on whatever machine it finds itself. Never raises."""

    def __call__(
        self,
        assignment: Assignment,
        *,
        rank: int,
        world_size: int,
        gpus: Sequence[int] = (),
        barrier: BarrierContext | None = None,
    ) -> Report:
        """
        Args:
            gpus: N of each `cuda:N` that is this rank's; none: it runs on the CPU.
            barrier: how the ranks find each other when the driver serves no rendezvous store.
        """
        ...


def merge_reports(by_rank: Iterable[Report], *, seconds: float) -> Report:
    """One report for an assignment from those of its ranks, rank 0's first.

    When a rank fails its peers fail too, by a closed connection: the failure of the trial's own code or of
    the table is the cause, wherever it is.
    """
    reports = list(by_rank)
    failed = [report for report in reports if report.failure is not None]
    causes = [r for r in failed if r.failure and r.failure.kind is not FailureKind.INFRASTRUCTURE]
    return replace([*causes, *failed, *reports][0], seconds=seconds)
