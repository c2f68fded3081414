"""Starts the ranks of an assignment as ordinary tasks, all or none, where Spark refuses barrier jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Event, Lock, Thread
from typing import TypeVar

from spark_hpo.backend.spark.cluster import Cluster, slots_key
from spark_hpo.trial import Assignment

T = TypeVar("T")

_POLL_S = 0.02
_CANCEL_LIMIT_S = 10.0
_CANCEL_RETRY_S = 0.1


class TooFewRanks(Exception):
    """Not all ranks of an assignment found a slot in time."""


class Superseded(Exception):
    """The assignment was cancelled before its job started."""


@cache
def _gate(application: str) -> Lock:
    """Return the lock that the job of an application holds until all of its ranks have met."""
    return Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """Runs jobs whose ranks wait for each other while Spark may still be starting executors for some.

    A rank that waits holds a slot. Two jobs that hold half of the slots each would wait for ever, so only one
    job of an application gathers its ranks at a time. A job that cannot gather them within the limit is
    cancelled, which gives its slots back.
    """

    has_met: Callable[[Assignment], bool]  # whether all ranks have connected to each other
    limit_s: float

    def run(
        self,
        job: Callable[[], T],
        assignment: Assignment,
        *,
        cluster: Cluster,
        tag: str,
        is_current: Callable[[], bool],
    ) -> T:
        """Run a job and return its result.

        Args:
            job: runs the ranks, in the calling thread.
            assignment: which the ranks train.
            cluster: cancels the job if its ranks do not meet.
            tag: of the job.
            is_current: False: the assignment has been cancelled.

        Raises:
            Superseded: the assignment has been cancelled, and the job was not started.
            TooFewRanks: the ranks did not meet within the limit; the job has been cancelled.
        """
        gate = _gate(slots_key(cluster))
        while not gate.acquire(timeout=_POLL_S):
            if not is_current():
                raise Superseded
        ended, late = Event(), Event()

        def watch() -> None:
            deadline = time.monotonic() + self.limit_s
            try:
                while is_current() and not self.has_met(assignment) and not ended.wait(_POLL_S):
                    if time.monotonic() >= deadline:
                        late.set()
                        _cancel(cluster, tag, ended)
                        return
            finally:
                gate.release()

        Thread(target=watch, name="spark_hpo-gathering", daemon=True).start()
        try:
            return job()
        except Exception as exc:  # Spark reports a cancelled job by several types
            if late.is_set():
                raise TooFewRanks from exc
            raise
        finally:
            ended.set()


def _cancel(cluster: Cluster, tag: str, ended: Event) -> None:
    """Cancel a job until it has ended: Spark may not know it yet."""
    deadline = time.monotonic() + _CANCEL_LIMIT_S
    while not ended.is_set() and time.monotonic() < deadline:
        cluster.cancel(tag)
        ended.wait(_CANCEL_RETRY_S)
