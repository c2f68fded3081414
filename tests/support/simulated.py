"""The simulated backend: the time of assignments comes from a table or a function, on a virtual clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from spark_hpo.errors import ConfigError
from spark_hpo.trial import Assignment, AssignmentKey, Failure, FailureKind, Params, RankUse, Report

_SPREAD_OF_LAUNCHES = 0.2  # launches take from e^-0.2 to e^0.2 of launch_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The metrics of one configuration trained to the end; index r - 1 is after r epochs.

    Training fails at the first epoch with a metric that is not finite.
    """

    metrics: Mapping[str, npt.NDArray[np.float64]]  # by name, [max_resource]
    elapsed_s: npt.NDArray[np.float64]  # [max_resource], since the start of training, never falling
    unseen: npt.NDArray[np.float64] | None = None
    """[max_resource]: the loss of the model on data that no search sees; None: the metric is all there is."""
    usage: tuple[RankUse, ...] = ()
    kind: FailureKind = FailureKind.TRIAL  # of the failure, if it diverges

    @property
    def diverges_at(self) -> int | None:
        """The first epoch after which a metric is not finite; None: all are finite."""
        broken = ~np.logical_and.reduce([np.isfinite(values) for values in self.metrics.values()])
        return int(np.argmax(broken)) + 1 if broken.any() else None

    def seconds(self, resource_from: int, resource_to: int) -> float:
        """The time of the epochs between two resources."""
        start = self.elapsed_s[resource_from - 1] if resource_from else 0.0
        return float(self.elapsed_s[resource_to - 1] - start) if resource_to else 0.0


class Curves(Protocol):
    """Computes the learning curve of any configuration."""

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of a trial. Repeated calls return the same."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbances:
    """Faults of a real cluster. The seed alone decides which assignments they hit, in whatever order."""

    seed: int = 0
    launch_s: float = 0.0  # median time from submission to the first step
    straggler_share: float = 0.0  # of the assignments, which run on a slow machine
    straggler_factor: float = 3.0  # how many times longer they take
    failure_share: float = 0.0  # of the assignments, whose own code raises at a random moment
    loss_share: float = 0.0  # of the assignments, which lose their process at a random moment
    slots_from: tuple[tuple[float, int], ...] = ()  # (virtual second, slots from then on), ascending

    def __post_init__(self) -> None:
        for name in ("straggler_share", "failure_share", "loss_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError("must be a share from 0 to 1", key=name, value=getattr(self, name))
        if any(slots < 1 for _, slots in self.slots_from):
            raise ConfigError("must leave at least one slot", key="slots_from", value=self.slots_from)


@dataclass(frozen=True, slots=True)
class _Run:
    number: int  # in the order of submission
    began: float
    report: Report


class SimulatedBackend:
    """K slots and a virtual clock. Time passes only in `wait`, from one report to the next.

    A trace, with two slots and one second per epoch:
        submit(trial 0: 0 -> 1); submit(trial 1: 0 -> 3); wait(5) -> report of 0; clock() -> 1.0
        submit(trial 0: 1 -> 3); wait(5) -> report of 1; wait(5) -> report of 0; clock() -> 3.0

    A promoted trial costs only the epochs that it adds. An evaluation (`resource_from` equal to
    `resource_to`) costs a launch. Pass `clock` to the study, so that its seconds are virtual too.

    Args:
        curves: learning curves.
        num_slots: assignments at the same time; further ones wait for a free slot.
        disturbances: faults; None: there are none.
    """

    def __init__(self, curves: Curves, num_slots: int, disturbances: Disturbances | None = None) -> None:
        if num_slots < 1:
            raise ConfigError("must be at least 1", key="num_slots", value=num_slots)
        self.num_slots = num_slots
        self.shared_slots = None
        self._curves = curves
        self._disturbances = disturbances or Disturbances()
        self._changes = deque(sorted(self._disturbances.slots_from))
        self._now = 0.0
        self._num_submitted = 0
        self._running: dict[AssignmentKey, _Run] = {}
        self._ends: list[tuple[float, int, AssignmentKey]] = []  # (virtual second, number, key), a heap
        self._queue: deque[Assignment] = deque()  # submitted beyond the slots
        self._lost: deque[Report] = deque()  # of slots that were removed
        self._occupied: list[tuple[float, float]] = []  # begin and end of the assignments that have ended
        self._capacity = [(0.0, num_slots)]

    def clock(self) -> float:
        """Virtual seconds since the start."""
        return self._now

    def submit(self, assignment: Assignment) -> None:
        if len(self._running) < self.num_slots:
            self._start(assignment)
        else:
            self._queue.append(assignment)

    def wait(self, timeout: float) -> Report | None:
        """The next report. Advances the clock to the end of an assignment, if one runs, beyond `timeout`."""
        while True:
            if self._lost:
                return self._lost.popleft()
            ends_at = self._next_end()
            changes_at = self._changes[0][0] if self._changes else np.inf
            if ends_at is None and changes_at > self._now + timeout:
                self._now += timeout
                return None
            if ends_at is not None and ends_at <= changes_at:
                _, _, key = heapq.heappop(self._ends)
                self._now = ends_at
                return self._end(key).report
            self._change_slots()

    def cancel(self, trial_id: int, fold: int | None = None) -> None:
        key = trial_id, fold
        self._queue = deque(a for a in self._queue if a.key != key)
        self._lost = deque(r for r in self._lost if r.key != key)
        if key in self._running:
            self._end(key)

    def close(self) -> None:
        self._queue.clear()
        self._lost.clear()
        for key in list(self._running):
            self._end(key)

    def busy(self, until: float) -> float:
        """The share of slot time, from the start to a virtual second, that assignments have used."""
        used = [*self._occupied, *((run.began, self._now) for run in self._running.values())]
        changes = [*self._capacity, (until, 0)]
        available = sum(
            slots * (min(end, until) - min(start, until)) for (start, slots), (end, _) in pairwise(changes)
        )
        return sum(min(end, until) - min(start, until) for start, end in used) / available

    def _start(self, assignment: Assignment) -> None:
        self._num_submitted += 1
        report = self._outcome(assignment)
        self._running[assignment.key] = _Run(self._num_submitted, self._now, report)
        heapq.heappush(self._ends, (self._now + report.seconds, self._num_submitted, assignment.key))

    def _next_end(self) -> float | None:
        while self._ends:
            end, number, key = self._ends[0]
            if key in self._running and self._running[key].number == number:
                return end
            heapq.heappop(self._ends)  # of an assignment that was cancelled or lost
        return None

    def _end(self, key: AssignmentKey) -> _Run:
        run = self._running.pop(key)
        self._occupied.append((run.began, self._now))
        if self._queue and len(self._running) < self.num_slots:
            self._start(self._queue.popleft())
        return run

    def _change_slots(self) -> None:
        """Add or remove slots. Removed slots lose their assignments, the latest first."""
        self._now, self.num_slots = self._changes.popleft()
        self._capacity.append((self._now, self.num_slots))
        latest_first = sorted(self._running, key=lambda key: -self._running[key].number)
        for key in latest_first[: max(0, len(self._running) - self.num_slots)]:
            run = self._end(key)
            failure = Failure(kind=FailureKind.INFRASTRUCTURE, message="its slot was removed")
            self._lost.append(replace(run.report, metrics={}, failure=failure, seconds=self._now - run.began))
        while self._queue and len(self._running) < self.num_slots:
            self._start(self._queue.popleft())

    def _outcome(self, assignment: Assignment) -> Report:
        """The report of an assignment, with its time; computed at its start."""
        curve = self._curves.curve(assignment.trial_id, assignment.params)
        start, target, diverges_at = assignment.resource_from, assignment.resource_to, curve.diverges_at
        completed, failure, metrics = target, None, {}
        if diverges_at is not None and diverges_at <= target:
            completed = max(start, diverges_at - 1)
            failure = Failure(kind=curve.kind, message=f"training failed in epoch {diverges_at}")
            seconds = curve.seconds(start, max(start, diverges_at))
        else:
            metrics = {name: float(values[target - 1]) for name, values in curve.metrics.items()}
            seconds = curve.seconds(start, target)
        report = Report(
            trial_id=assignment.trial_id,
            attempt=assignment.attempt,
            rung=assignment.rung,
            resource=completed,
            split=assignment.split,
            fold=assignment.fold,
            repeat=assignment.repeat,
            metrics=metrics,
            seconds=seconds,
            failure=failure,
            usage=curve.usage,
        )
        return self._disturbed(assignment, report) if self._disturbances != Disturbances() else report

    def _disturbed(self, assignment: Assignment, report: Report) -> Report:
        """The report with the faults that the assignment meets."""
        here = self._disturbances
        # Depends on the assignment alone, so that another order of submissions changes nothing.
        key = (here.seed, assignment.trial_id, assignment.resource_to, assignment.attempt)
        launch, straggles, fails, is_lost, when = np.random.default_rng(key).random(5)
        seconds = report.seconds * (here.straggler_factor if straggles < here.straggler_share else 1.0)
        seconds += here.launch_s * float(np.exp(_SPREAD_OF_LAUNCHES * (2.0 * launch - 1.0)))
        if is_lost < here.loss_share:
            failure = Failure(kind=FailureKind.INFRASTRUCTURE, message="its process was lost")
        elif fails < here.failure_share:
            failure = Failure(kind=FailureKind.TRIAL, message="its code raised an error")
        else:
            return replace(report, seconds=seconds)
        start = assignment.resource_from
        return replace(report, resource=start, metrics={}, seconds=seconds * float(when), failure=failure)
