"""The inline backend runs one assignment at a time, in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from spark_hpo.backend.base import RankFunction, merge_reports
from spark_hpo.errors import CapacityError
from spark_hpo.trial import Assignment, Part, Report


class InlineBackend:
    """Runs an assignment while the driver waits for its report. For debugging, and for use without Spark."""

    num_slots = 1
    shared_slots = None  # each study has a thread of its own

    def __init__(self, run_rank: RankFunction, *, world_size: int = 1, gpus: Sequence[int] = ()) -> None:
        if world_size != 1:
            raise CapacityError(
                "must be 1 with the inline backend",
                key="resources.world_size",
                value=world_size,
                cure="Set resources.world_size: 1, or backend: spark",
            )
        self._run_rank = run_rank
        self._gpus = gpus
        self._waiting: list[Assignment] = []

    def submit(self, assignment: Assignment) -> None:
        self._waiting.append(assignment)

    def wait(self, timeout: float) -> Report | None:
        """The next report. Ignores `timeout`: it takes as long as the assignment."""
        if not self._waiting:
            return None
        assignment = self._waiting.pop(0)
        began = time.perf_counter()
        report = self._run_rank(assignment, rank=0, world_size=1, gpus=self._gpus)
        return merge_reports([report], seconds=time.perf_counter() - began)

    def cancel(self, trial_id: int, part: Part = None) -> None:
        self._waiting = [a for a in self._waiting if a.key != (trial_id, part)]

    def close(self) -> None:
        self._waiting.clear()
