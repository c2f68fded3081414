"""Estimates the time that is left of a running study."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from spark_hpo.errors import StorageError
from spark_hpo.study.callback import Callback, RunningStudy
from spark_hpo.study.decider import Decider
from spark_hpo.study.dispatch import Dispatcher
from spark_hpo.study.end_of_search import EndOfSearch
from spark_hpo.study.forecast import seconds_left
from spark_hpo.study.progress import Progress
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Report, Trial

logger = logging.getLogger(__name__)

_WRITE_S = 2.0  # between two estimates in the study directory
_LARGEST_LOAD = 0.02  # of the driver's time that may be spent on forecasts
_MOST = 10**9  # trials or units; a larger budget, as of a program that ends its study by itself, is no limit


@dataclass(eq=False)
class TimeLeft:
    """Estimates the seconds until a study ends. An estimate is renewed when it costs little to do so."""

    decider: Decider
    dispatcher: Dispatcher
    end: EndOfSearch
    progress: Progress
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._estimate: tuple[float, float | None] | None = None  # when, and seconds
        self._cost_s = 0.0

    def seconds(self) -> float | None:
        """Return the seconds that are left; None: nothing has been seen yet, or nothing limits the study."""
        now = self.clock()
        if self._estimate is not None and now - self._estimate[0] < self._cost_s / _LARGEST_LOAD:
            then, left = self._estimate
            return None if left is None else max(0.0, left - (now - then))
        began = time.perf_counter()
        left = self._seconds(now)
        self._estimate, self._cost_s = (now, left), time.perf_counter() - began
        return left

    def _seconds(self, now: float) -> float | None:
        budget, decider = self.end.budget, self.decider
        deadline = None if budget.seconds is None else max(0.0, budget.seconds - self.progress.seconds)
        if not decider.speed.is_known:
            return deadline
        search_ended = self.end.reason() is not None
        limits = [limit for limit in (budget.trials, budget.resource) if limit is not None and limit < _MOST]
        if not search_ended and not limits:
            return deadline
        max_resource = math.inf
        if budget.resource is not None:
            max_resource = budget.resource - self.progress.resource_spent
        left = seconds_left(
            None if search_ended else decider.scheduler,
            decider.running(self.dispatcher.elapsed(now)),
            speed=decider.speed,
            losses=decider.losses,
            num_slots=max(1, self.progress.slots),
            max_resource=max_resource,
        )
        if search_ended:
            return left + self.end.reserve_seconds()
        return left if deadline is None else min(left, deadline)


class ForecastWriter(Callback):
    """Writes the estimate to the study directory, where `spark-hpo status` and the live page find it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written: Forecast | None = None

    def on_study_start(self, study: RunningStudy) -> None:
        self._write(None)  # there may be one of an earlier driver

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        self._renew(study)

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._renew(study)

    def _renew(self, study: RunningStudy) -> None:
        known = self._written
        is_new = known is not None and known.seconds_left is not None and time.time() - known.time < _WRITE_S
        if is_new:
            return
        left_s = study.seconds_left
        if known is None or left_s is not None or known.seconds_left is not None:
            self._write(left_s)

    def _write(self, left_s: float | None) -> None:
        self._written = Forecast(time=time.time(), seconds_left=left_s)
        try:
            self._written.write(self._storage)
        except StorageError as exc:
            logger.debug("the time left could not be written: %s", exc)
