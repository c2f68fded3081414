"""The simulated backend: assignments take the time that a table or a function says, on a virtual clock."""

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
from spark_hpo.trial import Assignment, Failure, FailureKind, Params, Report

_SPREAD_OF_LAUNCHES = 0.2  # launches take from e^-0.2 to e^0.2 of launch_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What training one configuration to the end shows; index r - 1 is after r epochs.

    Where a metric is not finite the training has diverged: it fails there, and never reaches what follows.
    """

    metrics: Mapping[str, npt.NDArray[np.float64]]  # by name, [max_resource]
    elapsed_s: npt.NDArray[np.float64]  # [max_resource], since the start of training, never falling

    @property
    def diverges_at(self) -> int | None:
        """The first epoch after which a metric is not finite; None: there is none."""
        broken = ~np.logical_and.reduce([np.isfinite(values) for values in self.metrics.values()])
        return int(np.argmax(broken)) + 1 if broken.any() else None

    def seconds(self, resource_from: int, resource_to: int) -> float:
        """The time of the epochs between two resources."""
        start = self.elapsed_s[resource_from - 1] if resource_from else 0.0
        return float(self.elapsed_s[resource_to - 1] - start) if resource_to else 0.0


class Curves(Protocol):
    """Answers for any configuration what training it would show."""

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of a trial: the same whenever it is asked for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbances:
    """What goes wrong in a real cluster. With the same seed the same assignments meet it, in any order."""

    seed: int = 0
    launch_s: float = 0.0  # median time from submission to the first step
    straggler_share: float = 0.0  # of assignments run on a slow machine
    straggler_factor: float = 3.0  # by which they take longer
    failure_share: float = 0.0  # of assignments whose own code raises, at a random point of their time
    loss_share: float = 0.0  # of assignments that lose their process, at a random point of their time
    slots_from: tuple[tuple[float, int], ...] = ()  # (virtual second, slots from then on), ascending

    def __post_init__(self) -> None:
        for name in ("straggler_share", "failure_share", "loss_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1")
        if any(slots < 1 for _, slots in self.slots_from):
            raise ConfigError(f"slots_from is {self.slots_from}; at least one slot must stay")


@dataclass(frozen=True, slots=True)
class _Run:
    number: int  # in the order of submission
    began: float
    report: Report


class SimulatedBackend:
    """K slots and a virtual clock. Time passes only in `wait`, from one report to the next.

    A trace, two slots, one second an epoch:
        submit(trial 0: 0 -> 1); submit(trial 1: 0 -> 3); wait(5) -> report of 0; clock() -> 1.0
        submit(trial 0: 1 -> 3); wait(5) -> report of 1; wait(5) -> report of 0; clock() -> 3.0

    A trial that goes on costs only the epochs that it adds. An evaluation (`resource_from` equal to
    `resource_to`) takes a launch. Give `clock` to the study: then its seconds are virtual.

    Args:
        curves: what training shows.
        num_slots: assignments at the same time; more wait for a free slot.
        disturbances: what goes wrong; None: nothing.
    """

    def __init__(self, curves: Curves, num_slots: int, disturbances: Disturbances | None = None) -> None:
        if num_slots < 1:
            raise ConfigError(f"num_slots is {num_slots}; it must be at least 1")
        self.num_slots = num_slots
        self._curves = curves
        self._disturbances = disturbances or Disturbances()
        self._changes = deque(sorted(self._disturbances.slots_from))
        self._now = 0.0
        self._num_submitted = 0
        self._running: dict[int, _Run] = {}  # by trial
        self._ends: list[tuple[float, int, int]] = []  # (virtual second, number, trial), a heap
        self._queue: deque[Assignment] = deque()  # submitted beyond the slots
        self._lost: deque[Report] = deque()  # of slots that have gone
        self._occupied: list[tuple[float, float]] = []  # slot time of the assignments that have ended
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
        """The next report. While something runs, the clock goes to its end, whatever `timeout` is."""
        while True:
            if self._lost:
                return self._lost.popleft()
            ends_at = self._next_end()
            changes_at = self._changes[0][0] if self._changes else np.inf
            if ends_at is None and changes_at > self._now + timeout:
                self._now += timeout
                return None
            if ends_at is not None and ends_at <= changes_at:
                _, _, trial_id = heapq.heappop(self._ends)
                self._now = ends_at
                return self._end(trial_id).report
            self._change_slots()

    def cancel(self, trial_id: int) -> None:
        self._queue = deque(a for a in self._queue if a.trial_id != trial_id)
        self._lost = deque(r for r in self._lost if r.trial_id != trial_id)
        if trial_id in self._running:
            self._end(trial_id)

    def close(self) -> None:
        self._queue.clear()
        self._lost.clear()
        for trial_id in list(self._running):
            self._end(trial_id)

    def busy(self, until: float) -> float:
        """The share of slot time, from the start to a virtual second, that assignments have filled."""
        filled = [*self._occupied, *((run.began, self._now) for run in self._running.values())]
        changes = [*self._capacity, (until, 0)]
        there = sum(
            slots * (min(end, until) - min(start, until)) for (start, slots), (end, _) in pairwise(changes)
        )
        return sum(min(end, until) - min(start, until) for start, end in filled) / there

    def _start(self, assignment: Assignment) -> None:
        self._num_submitted += 1
        report = self._outcome(assignment)
        self._running[assignment.trial_id] = _Run(self._num_submitted, self._now, report)
        heapq.heappush(self._ends, (self._now + report.seconds, self._num_submitted, assignment.trial_id))

    def _next_end(self) -> float | None:
        while self._ends:
            end, number, trial_id = self._ends[0]
            if trial_id in self._running and self._running[trial_id].number == number:
                return end
            heapq.heappop(self._ends)  # of one that was cancelled or lost
        return None

    def _end(self, trial_id: int) -> _Run:
        run = self._running.pop(trial_id)
        self._occupied.append((run.began, self._now))
        if self._queue and len(self._running) < self.num_slots:
            self._start(self._queue.popleft())
        return run

    def _change_slots(self) -> None:
        """Slots come or go. Those that go take their assignments with them, the latest first."""
        self._now, self.num_slots = self._changes.popleft()
        self._capacity.append((self._now, self.num_slots))
        latest_first = sorted(self._running, key=lambda trial_id: -self._running[trial_id].number)
        for trial_id in latest_first[: max(0, len(self._running) - self.num_slots)]:
            run = self._end(trial_id)
            failure = Failure(kind=FailureKind.INFRASTRUCTURE, message="its slot has gone")
            self._lost.append(replace(run.report, metrics={}, failure=failure, seconds=self._now - run.began))
        while self._queue and len(self._running) < self.num_slots:
            self._start(self._queue.popleft())

    def _outcome(self, assignment: Assignment) -> Report:
        """What the assignment will report, and when; decided at its start."""
        curve = self._curves.curve(assignment.trial_id, assignment.params)
        start, target, diverges_at = assignment.resource_from, assignment.resource_to, curve.diverges_at
        completed, failure, metrics = target, None, {}
        if diverges_at is not None and diverges_at <= target:
            completed = max(start, diverges_at - 1)
            failure = Failure(
                kind=FailureKind.TRIAL, message=f"the training has diverged in epoch {diverges_at}"
            )
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
            metrics=metrics,
            seconds=seconds,
            failure=failure,
        )
        return self._disturbed(assignment, report) if self._disturbances != Disturbances() else report

    def _disturbed(self, assignment: Assignment, report: Report) -> Report:
        """The report with the time that it takes here, and the failure that it meets, if any."""
        here = self._disturbances
        # Of the assignment alone, so that another order of submissions changes nothing.
        key = (here.seed, assignment.trial_id, assignment.resource_to, assignment.attempt)
        launch, straggles, fails, is_lost, when = np.random.default_rng(key).random(5)
        seconds = report.seconds * (here.straggler_factor if straggles < here.straggler_share else 1.0)
        seconds += here.launch_s * float(np.exp(_SPREAD_OF_LAUNCHES * (2.0 * launch - 1.0)))
        if is_lost < here.loss_share:
            failure = Failure(kind=FailureKind.INFRASTRUCTURE, message="its process was lost")
        elif fails < here.failure_share:
            failure = Failure(kind=FailureKind.TRIAL, message="its code has raised")
        else:
            return replace(report, seconds=seconds)
        start = assignment.resource_from
        return replace(report, resource=start, metrics={}, seconds=seconds * float(when), failure=failure)
