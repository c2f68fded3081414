"""The Spark backend: one job per assignment, one task per rank."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from fractions import Fraction
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

from spark_hpo.backend.base import RankFunction, RanksByRung, SharedSlots, merge_reports
from spark_hpo.backend.machine_gpus import GpuDealer, WaitingDealer, find_gpus, free_gpus
from spark_hpo.backend.spark.cluster import Cluster, cancel_until_ended, is_local, slots_key
from spark_hpo.backend.spark.gathering import Gathering, Superseded, TooFewRanks
from spark_hpo.backend.spark.gpus import gpu_profile
from spark_hpo.backend.spark.overhead import overhead_per_rank
from spark_hpo.backend.spark.report_queue import ReportQueue
from spark_hpo.backend.spark.task import gpus_of_hand, gpus_of_spark, no_gpus, run_task
from spark_hpo.errors import CapacityError
from spark_hpo.trial import Assignment, AssignmentKey, Failure, FailureKind, Part, Report

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row

logger = logging.getLogger(__name__)

_SCHEMA = "report string"
# The reasons that YARN and Kubernetes give when they kill an executor for its memory. There is none when the
# kernel kills a Python worker.
_OUT_OF_MEMORY = ("OOMKilled", "exceeding memory limits", "beyond the 'PHYSICAL' memory limit")
_CRASHED = "Python worker exited unexpectedly"
_CANCEL_LIMIT_S = 10.0
_ENDED_POLL_S = 0.02
_SLOT_POLL_S = 0.2
_FRAMES = ("at ", "Caused by: ")


@dataclass(frozen=True, slots=True)
class _Job:
    tag: str
    thread: Thread


@dataclass(eq=False)
class SparkBackend:
    """Runs each assignment as a Spark job with a task for each rank, which can be cancelled by its tag.

    Jobs of several ranks run in barrier mode: all their tasks start together or none does. The driver
    submits only while slots are free, because a waiting barrier job starves behind narrower jobs. With
    dynamic allocation, Spark refuses barrier jobs, and `gathering` takes care of this.

    Raises:
        CapacityError: the cluster has fewer task slots than an assignment has ranks, or too few GPUs.
    """

    cluster: Cluster
    run_rank: RankFunction
    _: KW_ONLY
    world_size: int | Mapping[int, int] = 1  # ranks of an assignment, or ranks by rung
    gpus_per_rank: float = 0  # a fraction lets several trials share a GPU
    slot_timeout_s: float = 0  # how long to wait for executors until the first trial fits
    gathering: Gathering | None = None  # of several ranks; None: in barrier mode

    def __post_init__(self) -> None:
        self._ranks = RanksByRung.of(self.world_size)
        self._tag = f"spark_hpo-{uuid.uuid4().hex[:8]}"  # of all jobs
        self._dealer = None  # of the GPUs, where Spark does not assign them
        self._profile = None
        if self.gpus_per_rank and is_local(self.cluster):
            names = find_gpus()
            self._dealer = WaitingDealer(GpuDealer(names, self.gpus_per_rank, free_gpus(tuple(names))))
            self._dealer.num_slots(self._ranks.most)  # raises if there are too few
        else:
            self._profile = gpu_profile(self.cluster, self.gpus_per_rank)
        self._overhead_per_rank = None if is_local(self.cluster) else overhead_per_rank(self.cluster)
        self._reports = ReportQueue()
        self._in_flight: dict[AssignmentKey, _Job] = {}
        self._wait_for_slot()

    @property
    def num_slots(self) -> int:
        slots = self.cluster.num_task_slots(self._profile) // self._ranks.fewest
        if self._dealer is not None:
            return min(slots, self._dealer.num_slots(self._ranks.fewest))
        # Only a waiting task makes Spark ask for another executor, even for the first.
        return slots + 1 if self.cluster.can_grow() else slots

    @property
    def shared_slots(self) -> SharedSlots:
        return SharedSlots(
            key=slots_key(self.cluster),
            size=self._assignment_size,
            wake=self._reports.wake,
        )

    def submit(self, assignment: Assignment) -> None:
        tag = f"spark_hpo-{assignment.trial_id}-{uuid.uuid4().hex[:8]}"
        # Tags and descriptions belong to a thread, so each job has its own.
        thread = self.cluster.thread(self._run, assignment, tag)
        self._in_flight[assignment.key] = _Job(tag, thread)
        thread.start()

    def wait(self, timeout: float) -> Report | None:
        return self._reports.take(timeout, self._in_flight)

    def cancel(self, trial_id: int, part: Part = None) -> None:
        job = self._in_flight.pop((trial_id, part), None)
        if job is not None:
            self.cluster.thread(self._cancel, job.tag, [job.thread]).start()

    def close(self) -> None:
        threads = [job.thread for job in self._in_flight.values()]
        self._in_flight.clear()
        running = self.cluster.running_jobs(self._tag) or ()
        if len(running) < sum(thread.is_alive() for thread in threads):
            self._cancel(self._tag, threads)  # Spark does not know all of these jobs yet
            return
        # The threads themselves take longer, because PySpark translates each job's exception in Python.
        deadline = time.monotonic() + _CANCEL_LIMIT_S
        self.cluster.cancel(self._tag)
        while self.cluster.running_jobs(self._tag) and time.monotonic() < deadline:
            time.sleep(_ENDED_POLL_S)

    def _assignment_size(self) -> Fraction:
        """The size of a slot as a fraction of all task slots, or of all GPUs."""
        if self._dealer is not None:
            return Fraction(1, max(1, self.num_slots))
        tasks = self.cluster.num_task_slots(self._profile)
        if self.cluster.can_grow():
            tasks += self._ranks.fewest
        return Fraction(self._ranks.fewest, max(1, tasks))

    def _wait_for_slot(self) -> None:
        """Wait for executors, which register one by one some seconds after the session has started."""
        deadline = time.monotonic() + (0 if is_local(self.cluster) else self.slot_timeout_s)
        announced = False
        while self.num_slots * self._ranks.fewest < self._ranks.most:
            tasks = self.cluster.num_task_slots(self._profile)
            # Spark's own check fails after ten minutes only.
            if time.monotonic() >= deadline:
                raise CapacityError(
                    f"must be at most {tasks}, the number of tasks that the cluster runs at once",
                    key="resources.world_size",
                    value=self.world_size,
                    cure="Use fewer ranks, more executors or cores, or a smaller spark.task.cpus",
                )
            if not announced:
                logger.warning(
                    "resources.world_size is %s, but the cluster runs %d tasks at once; waiting up to %.0f s "
                    "for executors",
                    self.world_size,
                    tasks,
                    self.slot_timeout_s,
                )
                announced = True
            time.sleep(_SLOT_POLL_S)

    def _cancel(self, tag: str, threads: Sequence[Thread]) -> None:
        cancel_until_ended(self.cluster, tag, threads, limit_s=_CANCEL_LIMIT_S)

    @contextmanager
    def _taking_gpus(self, num_ranks: int) -> Iterator[Callable[[int], tuple[int, ...]]]:
        """Yield what gives each rank of an assignment its GPUs."""
        if self._dealer is None:
            yield gpus_of_spark if self.gpus_per_rank else no_gpus
            return
        with self._dealer.dealt(num_ranks) as hands:
            yield partial(gpus_of_hand, hands)

    def _run(self, assignment: Assignment, tag: str) -> None:
        began = time.perf_counter()
        try:
            self.cluster.tag(tag, self._tag, description=str(assignment))
            num_ranks = self._ranks.ranks(assignment.rung)
            ranks = self.cluster.spark.range(0, num_ranks, 1, num_ranks)
            # Spark 3.5 does not know the argument.
            profile = {} if self._profile is None else {"profile": self._profile}
            with self._taking_gpus(num_ranks) as take_gpus:
                has_barrier = num_ranks > 1 and self.gathering is None
                task = partial(
                    run_task, self.run_rank, assignment, num_ranks, take_gpus, has_barrier=has_barrier
                )
                job = ranks.mapInArrow(task, _SCHEMA, barrier=has_barrier, **profile)
                rows = self._collect(job, assignment, tag)
            by_rank = sorted((json.loads(row.report) for row in rows), key=lambda r: r["rank"])
            reports = [self._limited(Report.from_json(record["report"])) for record in by_rank]
        except Superseded:
            return
        except TooFewRanks:
            reports = [self._crowded(assignment)]
        except Exception as exc:  # each version and client of Spark raises its own types
            if not self._is_in_flight(assignment, tag):
                return  # cancelled
            reports = [_lost(assignment, exc)]
        self._reports.put(tag, merge_reports(reports, seconds=time.perf_counter() - began))

    def _limited(self, report: Report) -> Report:
        """Return the report of a rank with the memory that the rank may use."""
        limit = self._overhead_per_rank
        usage = tuple(replace(use, memory_limit_bytes=limit) for use in report.usage)
        return replace(report, usage=usage)

    def _collect(self, job: DataFrame, assignment: Assignment, tag: str) -> list[Row]:
        if self.gathering is None:
            return job.collect()
        return self.gathering.run(
            job.collect,
            assignment,
            cluster=self.cluster,
            tag=tag,
            is_current=partial(self._is_in_flight, assignment, tag),
        )

    def _is_in_flight(self, assignment: Assignment, tag: str) -> bool:
        job = self._in_flight.get(assignment.key)
        return job is not None and job.tag == tag

    def _crowded(self, assignment: Assignment) -> Report:
        """The report of an assignment whose ranks could not start together."""
        assert self.gathering is not None, "it raised"
        return Report.failed(
            assignment,
            Failure(
                kind=FailureKind.CAPACITY,
                message=f"its {self._ranks.most} ranks did not all find a slot within "
                f"{self.gathering.limit_s:.0f} s; check spark.dynamicAllocation.maxExecutors, and that the "
                "cluster has room for more executors",
            ),
        )


def _lost(assignment: Assignment, exc: Exception) -> Report:
    """The report of an assignment whose job failed: a process died, or an executor was lost."""
    # Frames of a Java stack trace contain these words too.
    text = str(exc)  # a call of the JVM
    lines = [line for line in map(str.strip, text.splitlines()) if not line.startswith(_FRAMES)]
    telling = [line for line in lines if "Exception" in line or "Error" in line]
    message = [type(exc).__name__, *lines[:1], *telling][-1].lstrip(": ")
    if any(sign in text for sign in _OUT_OF_MEMORY):
        kind = FailureKind.MEMORY
        message += "; raise spark.executor.memoryOverhead, or use a smaller model or batch"
    else:
        kind = FailureKind.INFRASTRUCTURE
        if _CRASHED in text:
            message += " (if this keeps happening, raise spark.executor.memoryOverhead)"
    return Report.failed(
        assignment,
        Failure(kind=kind, message=f"the Spark job failed: {message}", traceback=text),
    )
