"""Predicts how long assignments take, from those that have reported."""

from __future__ import annotations

from bisect import bisect_left, insort

from spark_hpo.trial import Report

_SLOW = 0.9  # quantile of the trials' seconds per unit for a cautious estimate


class Speed:
    """A time to launch an assignment, and a time per unit of the resource.

    Reports with a learning curve tell both apart, because they measure the training alone. Without curves, a
    line through the assignments is used, of which some are longer than others.

    A trace: note(1 epoch: 3 s, of which 1 s training); seconds(9) -> 2 + 9 x 1 = 11
    """

    def __init__(self) -> None:
        self._launches: list[float] = []  # ascending
        self._trained: dict[int, tuple[float, int]] = {}  # by trial: measured seconds, and units
        self._paces: list[float] = []  # ascending: measured seconds per unit of each trial
        self._measured_s, self._measured = 0.0, 0
        self._count, self._sum_n, self._sum_s, self._sum_nn, self._sum_ns = 0, 0, 0.0, 0, 0.0

    @property
    def is_known(self) -> bool:
        return self._count > 0

    def note(self, report: Report, units: int) -> None:
        """Take an assignment that has succeeded.

        Args:
            report: its report.
            units: of the resource that it has trained.
        """
        if report.failure is not None or units <= 0:
            return
        seconds, measured = report.seconds, sum(measured.seconds for measured in report.curve)
        self._count += 1
        self._sum_n, self._sum_s = self._sum_n + units, self._sum_s + seconds
        self._sum_nn, self._sum_ns = self._sum_nn + units * units, self._sum_ns + units * seconds
        if 0 < measured <= seconds * 1.01:  # folds that ran side by side measure their own time
            insort(self._launches, max(0.0, seconds - measured))
            self._measured_s, self._measured = self._measured_s + measured, self._measured + units
            before_s, before = self._trained.get(report.trial_id, (0.0, 0))
            if before:
                del self._paces[bisect_left(self._paces, before_s / before)]
            self._trained[report.trial_id] = (before_s + measured, before + units)
            insort(self._paces, (before_s + measured) / (before + units))

    def seconds(self, units: int, trial_id: int | None = None, *, cautious: bool = False) -> float:
        """Return the expected seconds of an assignment; 0 if nothing has been seen.

        Args:
            units: of the resource to train.
            trial_id: the trial, if it is known; trials differ in speed.
            cautious: take an unknown trial for a slow one: nine of ten trials so far were faster.
        """
        launch_s, unit_s = self._line()
        if trial_id in self._trained:
            measured_s, trained = self._trained[trial_id]
            unit_s = measured_s / trained
        elif cautious and self._paces:
            unit_s = max(unit_s, self._paces[int(_SLOW * (len(self._paces) - 1) + 0.5)])
        return launch_s + unit_s * units

    def longest(self, units: int) -> float:
        """Return the seconds that the slowest trial so far would need."""
        launch_s, unit_s = self._line()
        if self._paces:
            launch_s, unit_s = self._launches[-1], self._paces[-1]
        return launch_s + unit_s * units

    def _line(self) -> tuple[float, float]:
        """Return the seconds of a launch and of a unit."""
        if self._measured:
            return self._launches[len(self._launches) // 2], self._measured_s / self._measured
        if not self._count:
            return 0.0, 0.0
        spread = self._count * self._sum_nn - self._sum_n**2
        if spread == 0:
            return 0.0, self._sum_s / self._sum_n
        unit_s = max(0.0, (self._count * self._sum_ns - self._sum_n * self._sum_s) / spread)
        launch_s = (self._sum_s - unit_s * self._sum_n) / self._count
        return (launch_s, unit_s) if launch_s >= 0 else (0.0, self._sum_s / self._sum_n)
