"""The reports of assignments that run in threads, on their way to the driver loop."""

from __future__ import annotations

import queue
import time
from collections.abc import MutableMapping
from typing import Protocol, TypeVar

from spark_hpo.trial import AssignmentKey, Report


class Tagged(Protocol):
    """An assignment in flight, which its tag distinguishes from earlier ones with the same key."""

    @property
    def tag(self) -> str: ...


T = TypeVar("T", bound=Tagged)


class ReportQueue:
    """Reports with the tags of their assignments. Any thread may put one, or wake the thread that waits."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, Report] | None] = queue.SimpleQueue()

    def put(self, tag: str, report: Report) -> None:
        self._queue.put((tag, report))

    def wake(self) -> None:
        """Make `take` return early, without a report."""
        self._queue.put(None)

    def take(self, timeout: float, in_flight: MutableMapping[AssignmentKey, T]) -> Report | None:
        """Wait at most `timeout` seconds for a report, and remove its assignment from those in flight.

        A report whose assignment is not in flight is dropped: the assignment was cancelled.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                arrived = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if arrived is None:
                return None
            tag, report = arrived
            assignment = in_flight.get(report.key)
            if assignment is not None and assignment.tag == tag:
                del in_flight[report.key]
                return report
