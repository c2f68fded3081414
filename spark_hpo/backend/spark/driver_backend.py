"""The driver backend: each assignment in a thread of the driver, from which it may run Spark jobs."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from fractions import Fraction
from threading import Event, Thread

from spark_hpo.backend.base import DriverContext, RankFunction, SharedSlots, merge_reports
from spark_hpo.backend.spark.cluster import Cluster, cancel_until_ended, is_local, slots_key
from spark_hpo.backend.spark.report_queue import ReportQueue
from spark_hpo.backend.spark.shared_frames import SharedFrames
from spark_hpo.errors import BackendError, CapacityError
from spark_hpo.trial import Assignment, AssignmentKey, Failure, FailureKind, Part, Report

logger = logging.getLogger(__name__)

# CrossValidator's documentation recommends at most this many fits at a time on most clusters, because all of
# them share one driver.
_MOST_THREADS = 10
_CANCEL_LIMIT_S = 10.0  # for a cancelled thread to end
_SLOT_POLL_S = 0.2
# What Spark writes when a job fails because an executor was lost, after its own retries.
_EXECUTOR_LOST = ("ExecutorLostFailure", "Executor heartbeat timed out", "executor was lost")


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    tag: str
    pool: int
    thread: Thread
    is_cancelled: Event


@dataclass(eq=False)
class DriverBackend:
    """Runs each assignment in a thread of the driver, whose Spark jobs have a pool and a tag of their own.

    Each assignment reserves `slots_per_trial` task slots, so that the barrier jobs of assignments that run at
    the same time always fit together: two jobs that each hold a part of the slots and wait for the rest never
    exist.

    A cancelled assignment loses its Spark jobs, also those that it starts later, and its next report raises.
    Its slots are free when its thread has ended, or after ten seconds.

    A trace, with 4 task slots and slots_per_trial 2: num_slots -> 2; submit(a); submit(b); cancel(a);
        num_slots -> 1 until the thread of a has ended, then 2

    Raises:
        CapacityError: the cluster has fewer task slots than `slots_per_trial`.
    """

    cluster: Cluster
    run_rank: RankFunction
    _: KW_ONLY
    slots_per_trial: int = 1
    max_threads: int | None = None  # None: 10
    slot_timeout_s: float = 0  # how long to wait for executors until the first trial fits
    cancel_limit_s: float = _CANCEL_LIMIT_S
    frames: SharedFrames = field(default_factory=SharedFrames)

    def __post_init__(self) -> None:
        self._tag = f"spark_hpo-{uuid.uuid4().hex[:8]}"  # of all jobs
        self._reports = ReportQueue()
        self._in_flight: dict[AssignmentKey, _Run] = {}
        self._lock = threading.Lock()
        self._leaving: set[_Run] = set()  # cancelled, and not given up yet
        self._wait_for_slot()
        if self.cluster.setting("spark.scheduler.mode", "FIFO").upper() != "FAIR":
            logger.warning(
                "spark.scheduler.mode is not FAIR, so the jobs of a trial wait for those of earlier trials; "
                "set it when the Spark application starts"
            )

    @property
    def num_slots(self) -> int:
        slots = self.cluster.num_task_slots(None) // self.slots_per_trial
        if self.cluster.can_grow():  # only waiting tasks make Spark ask for another executor
            slots += 1
        with self._lock:
            return max(0, min(slots, self.max_threads or _MOST_THREADS) - len(self._leaving))

    @property
    def shared_slots(self) -> SharedSlots:
        return SharedSlots(
            key=slots_key(self.cluster),
            size=lambda: Fraction(self.slots_per_trial, max(1, self.cluster.num_task_slots(None))),
            wake=self._reports.wake,
        )

    def submit(self, assignment: Assignment) -> None:
        tag = f"spark_hpo-{assignment.trial_id}-{uuid.uuid4().hex[:8]}"
        is_cancelled = Event()
        # Spark never forgets a pool, so the pools are those of the slots.
        taken = {run.pool for run in self._in_flight.values()}
        pool = next(number for number in range(len(taken) + 1) if number not in taken)
        thread = self.cluster.thread(self._run, assignment, tag, pool, is_cancelled)
        self._in_flight[assignment.key] = _Run(tag, pool, thread, is_cancelled)
        thread.start()

    def wait(self, timeout: float) -> Report | None:
        return self._reports.take(timeout, self._in_flight)

    def cancel(self, trial_id: int, part: Part = None) -> None:
        run = self._in_flight.pop((trial_id, part), None)
        if run is not None:
            run.is_cancelled.set()
            with self._lock:
                self._leaving.add(run)
            self.cluster.thread(self._end, run).start()

    def close(self) -> None:
        runs = list(self._in_flight.values())
        self._in_flight.clear()
        for run in runs:
            run.is_cancelled.set()
        threads = [run.thread for run in runs]
        cancel_until_ended(self.cluster, self._tag, threads, limit_s=self.cancel_limit_s)
        if any(thread.is_alive() for thread in threads):
            self.cluster.thread(self._give_up, self._tag, threads).start()
        self.frames.close()

    def _end(self, run: _Run) -> None:
        """End a cancelled run, and free its slots."""
        cancel_until_ended(self.cluster, run.tag, [run.thread], limit_s=self.cancel_limit_s)
        with self._lock:
            self._leaving.discard(run)
        self._give_up(run.tag, [run.thread])

    def _give_up(self, tag: str, threads: Sequence[Thread]) -> None:
        """Leave the threads that have not reacted alone, but cancel the jobs that they still start."""
        for thread in threads:
            if thread.is_alive():
                logger.warning(
                    "%s was cancelled and has not ended within %.3g s, so it is given up. A cancelled "
                    "objective ends in a Spark job, or at ctx.report or ctx.step",
                    thread.name,
                    self.cancel_limit_s,
                )
        cancel_until_ended(self.cluster, tag, threads, limit_s=None)

    def _run(self, assignment: Assignment, tag: str, pool: int, is_cancelled: Event) -> None:
        began = time.perf_counter()
        threading.current_thread().name = str(assignment)
        try:
            self.cluster.tag(tag, self._tag, description=str(assignment))
            self.cluster.use_pool(f"spark_hpo-{pool}")
            context = DriverContext(
                spark=self.cluster.spark,
                num_slots=self.slots_per_trial,
                frames=self.frames,
                is_cancelled=is_cancelled.is_set,
            )
            report = self._checked(self.run_rank(assignment, rank=0, world_size=1, driver=context))
        except Exception as exc:  # each version and client of Spark raises its own types
            failure = Failure(kind=FailureKind.INFRASTRUCTURE, message=f"{type(exc).__name__}: {exc}")
            report = Report.failed(assignment, failure)
        self._reports.put(tag, merge_reports([report], seconds=time.perf_counter() - began))

    def _checked(self, report: Report) -> Report:
        """Tell errors of the objective from the loss of an executor, or of Spark, which may pass."""
        failure = report.failure
        if failure is None or failure.kind is not FailureKind.TRIAL:
            return report
        lost = any(sign in failure.traceback for sign in _EXECUTOR_LOST)
        if not lost:
            try:
                self.cluster.num_task_slots(None)
            except BackendError:
                lost = True
        return replace(report, failure=replace(failure, kind=FailureKind.INFRASTRUCTURE)) if lost else report

    def _wait_for_slot(self) -> None:
        """Wait for executors, which register one by one some seconds after the session has started."""
        deadline = time.monotonic() + (0 if is_local(self.cluster) else self.slot_timeout_s)
        while self.num_slots == 0:
            tasks = self.cluster.num_task_slots(None)
            if time.monotonic() >= deadline:
                raise CapacityError(
                    f"must be at most {tasks}, the number of tasks that the cluster runs at once",
                    key="resources.slots_per_trial",
                    value=self.slots_per_trial,
                    cure="Use fewer slots, more executors or cores, or a smaller spark.task.cpus",
                )
            time.sleep(_SLOT_POLL_S)
