"""The Spark backend: one job an assignment, one task a rank."""

from __future__ import annotations

import contextlib
import json
import queue
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark import InheritableThread, TaskContext

from spark_hpo.backend.base import RankFunction, merge_reports
from spark_hpo.errors import BackendError, CapacityError
from spark_hpo.trial import Assignment, Failure, FailureKind, Report

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SCHEMA = "report string"
_CANCEL_LIMIT_S = 10.0
_CANCEL_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class _Job:
    tag: str
    thread: InheritableThread


class SparkBackend:
    """Runs each assignment as one Spark job of `world_size` tasks, tagged so that it can be cancelled alone.

    Jobs of several ranks run in barrier mode: all their tasks start together or none does. The driver
    submits only while slots are free, because a waiting barrier job starves behind narrower ones.
    """

    def __init__(
        self,
        spark: SparkSession,
        run_rank: RankFunction,
        *,
        world_size: int = 1,
        gpus_per_rank: int = 0,
    ) -> None:
        """
        Raises:
            CapacityError: the cluster has fewer task slots than `world_size`.
        """
        self._spark = spark
        self._run_rank = run_rank
        self._world_size = world_size
        self._gpus_per_rank = gpus_per_rank
        self._reports: queue.SimpleQueue[tuple[str, Report]] = queue.SimpleQueue()
        self._in_flight: dict[int, _Job] = {}  # by trial
        # Spark would repeat its own check for ten minutes before it fails.
        if self.num_slots == 0:
            raise CapacityError(
                f"resources.world_size is {world_size}, but the cluster runs {self._num_task_slots()} tasks "
                "at once: use fewer ranks, more executors or cores, or a smaller spark.task.cpus"
            )

    @property
    def num_slots(self) -> int:
        return self._num_task_slots() // self._world_size

    def submit(self, assignment: Assignment) -> None:
        tag = f"spark_hpo-{assignment.trial_id}-{uuid.uuid4().hex[:8]}"
        # Tags and descriptions belong to a thread, and so does a job: a thread for each.
        thread = InheritableThread(target=self._run, args=(assignment, tag), session=self._spark)
        thread.daemon = True
        self._in_flight[assignment.trial_id] = _Job(tag, thread)
        thread.start()

    def wait(self, timeout: float) -> Report | None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                tag, report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            job = self._in_flight.get(report.trial_id)
            if job is not None and job.tag == tag:  # otherwise it was cancelled
                del self._in_flight[report.trial_id]
                return report

    def cancel(self, trial_id: int) -> None:
        job = self._in_flight.pop(trial_id, None)
        if job is not None:
            InheritableThread(target=self._cancel, args=(job,), session=self._spark, daemon=True).start()

    def close(self) -> None:
        jobs = list(self._in_flight.values())
        self._in_flight.clear()
        for job in jobs:
            self._cancel(job)

    def _cancel(self, job: _Job) -> None:
        """Cancel until the job is gone: between submission and Spark's taking note there is nothing yet."""
        deadline = time.monotonic() + _CANCEL_LIMIT_S
        # Spark may be gone already: Ctrl-C ends spark-submit's JVM too, and its jobs with it.
        with contextlib.suppress(Py4JError, OSError):
            while job.thread.is_alive() and time.monotonic() < deadline:
                self._spark.sparkContext.cancelJobsWithTag(job.tag)
                job.thread.join(_CANCEL_AGAIN_S)

    def _run(self, assignment: Assignment, tag: str) -> None:
        began = time.perf_counter()
        try:
            self._spark.sparkContext.addJobTag(tag)
            self._spark.sparkContext.setJobDescription(str(assignment))
            rows = (
                self._spark.range(0, self._world_size, 1, self._world_size)
                .mapInArrow(
                    partial(_run_task, self._run_rank, assignment, self._world_size, self._gpus_per_rank),
                    _SCHEMA,
                    barrier=self._world_size > 1,
                )
                .collect()
            )
            by_rank = sorted((json.loads(row.report) for row in rows), key=lambda r: r["rank"])
            reports = [Report.from_json(record["report"]) for record in by_rank]
        except Exception as exc:  # whatever Spark raises, of whichever version and client: a lost rank
            reports = [_lost(assignment, exc)]
        self._reports.put((tag, merge_reports(reports, seconds=time.perf_counter() - began)))

    def _num_task_slots(self) -> int:
        """How many tasks run at once, now, as Spark's own barrier check counts them."""
        try:
            scala_context = self._spark.sparkContext._jsc.sc()
            profile = scala_context.resourceProfileManager().defaultResourceProfile()
            return int(scala_context.maxNumConcurrentTasks(profile))
        except (Py4JError, AttributeError, OSError) as exc:  # PySpark sets _jsc to None when it stops
            raise BackendError(
                "Spark has stopped, or its JVM has died: the same command goes on with the study"
            ) from exc


def _run_task(
    run_rank: RankFunction,
    assignment: Assignment,
    world_size: int,
    gpus_per_rank: int,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """One Spark task: partition r of `range(world_size)` holds the number r, and is rank r."""
    ranks = [number for batch in batches for number in batch.column(0).to_pylist()]
    assert len(ranks) == 1, "one rank a task"
    rank = ranks[0]
    report = run_rank(assignment, rank=rank, world_size=world_size, gpu=_gpu_address(gpus_per_rank))
    record = json.dumps({"rank": rank, "report": report.to_json()})
    yield pa.RecordBatch.from_pydict({"report": pa.array([record], pa.string())})


def _gpu_address(gpus_per_rank: int) -> str | None:
    """The GPU that Spark gave to this task. A stale CUDA_VISIBLE_DEVICES does not matter."""
    if gpus_per_rank == 0:
        return None
    context = TaskContext.get()
    assert context is not None, "inside a task"
    addresses: list[str] = context.resources()["gpu"].addresses
    return addresses[0]


def _lost(assignment: Assignment, exc: Exception) -> Report:
    """The report of an assignment whose job failed: a process died, or an executor was lost."""
    lines = [line for line in str(exc).splitlines() if line.strip()] or [type(exc).__name__]
    telling = [line for line in lines if "Exception" in line or "Error" in line]
    message = [*lines[:1], *telling][-1].strip()
    return Report(
        trial_id=assignment.trial_id,
        attempt=assignment.attempt,
        rung=assignment.rung,
        resource=assignment.resource_from,
        split=assignment.split,
        failure=Failure(
            kind=FailureKind.INFRASTRUCTURE, message=f"the Spark job failed: {message}", traceback=str(exc)
        ),
    )
