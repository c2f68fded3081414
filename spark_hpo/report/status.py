"""The status of a study, read from its directory: for `spark-hpo status` and `spark-hpo watch`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from spark_hpo.errors import NoTrialSucceeded, StudyInterrupted
from spark_hpo.redact import redact_all
from spark_hpo.report.answer import Answer, answer_of
from spark_hpo.report.causes import Cause, causes_of
from spark_hpo.report.confirmation import confirmation_of
from spark_hpo.report.events import share_in_words
from spark_hpo.report.reserve import ReserveUse, reserve_of
from spark_hpo.report.study_record import Attempt, StudyRecord
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.lease import Holder
from spark_hpo.study_dir.steered import Course
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState


class StudyState(StrEnum):
    """The state of a study."""

    RUNNING = "running"
    PAUSED = "paused"  # its driver runs, and waits for somebody to resume the study
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"  # an error has ended its driver
    DEAD = "dead"  # its driver is gone without a word: killed, or its machine is


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A limit of the budget, and how much of it is spent."""

    kind: str  # trials, epochs (or parts), seconds
    spent: float
    limit: float


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyStatus:
    """The status of a study at one moment."""

    record: StudyRecord
    driver: Holder | None  # the last one; None: no driver has run yet
    settings: Settings | None  # of the last driver; None: written by an early version
    now: float  # wall clock, seconds since 1970
    forecast: Forecast | None = None  # of the last driver; None: it has written none

    @classmethod
    def read(cls, storage: Storage) -> StudyStatus:
        """Read the status. The study's driver is not disturbed.

        Raises:
            ConfigError: there is no study.
            JournalError: it cannot be read.
        """
        # The lease is read first, so that a driver that ends meanwhile is shown as running, not as failed.
        now, driver = time.time(), Holder.read(storage)
        is_running = driver is not None and driver.is_alive(storage)
        record = StudyRecord.read(storage, is_running=is_running)
        return cls(
            record=record,
            driver=driver,
            settings=Settings.load(storage),
            now=now,
            forecast=Forecast.load(storage) if is_running else None,
        )

    @property
    def state(self) -> StudyState:
        if self.record.is_running:
            is_paused = self.record.steered.course is Course.PAUSED
            return StudyState.PAUSED if is_paused else StudyState.RUNNING
        if self.record.ending == "interrupted":
            return StudyState.INTERRUPTED
        if self.record.ending is not None:
            return StudyState.FINISHED
        if self.record.error is not None:
            return StudyState.FAILED
        was_released = self.driver is not None and self.driver.released
        return StudyState.FAILED if was_released else StudyState.DEAD

    @property
    def seconds_left(self) -> float | None:
        """The expected seconds until the end of the study; None: not known, or it does not run."""
        is_running = self.state is StudyState.RUNNING and self.record.ending is None
        return self.forecast.left_s(self.now) if self.forecast is not None and is_running else None

    @property
    def exit_code(self) -> int:
        """The exit code for a command that waited for the study: that of its driver, as far as known."""
        if self.state is StudyState.FINISHED:
            return 0
        if self.state is StudyState.INTERRUPTED:
            return StudyInterrupted.exit_code
        is_hopeless = self.state is StudyState.FAILED and self.record.trials and self.answer.best is None
        return NoTrialSucceeded.exit_code if is_hopeless else 1

    @cached_property
    def answer(self) -> Answer:
        return answer_of(self.record)

    @cached_property
    def causes(self) -> Sequence[Cause]:
        return causes_of(self.record)

    @cached_property
    def trials(self) -> dict[str, int]:
        """The number of trials in each state. If no driver runs, running trials are called `unfinished`."""
        counts = Counter(trial.state for trial in self.record.trials.values())
        names = {} if self.record.is_running else {TrialState.RUNNING: "unfinished"}
        return {names.get(state, str(state)): counts[state] for state in TrialState if counts[state]}

    @cached_property
    def running(self) -> list[Attempt]:
        """The attempts in flight."""
        if not self.record.is_running:
            return []
        opened = self.record.drivers[-1].opened if self.record.drivers else 0.0
        # Attempts that an earlier driver left open count only once this driver has restarted them.
        return [a for a in self.record.attempts if a.ended is None and a.began >= opened]

    @cached_property
    def _last_slots(self) -> Mapping[str, Any]:
        counts = [event for event in self._events if event.kind is EventKind.SLOTS]
        return counts[-1].data if counts else {}

    @property
    def slots(self) -> int | None:
        """Slots for assignments, as last reported by the driver. None: not reported."""
        return self._last_slots.get("slots")

    @property
    def share(self) -> str:
        """The slots as a share of all, for people; "" if no other study shares them."""
        return share_in_words(self._last_slots)

    @cached_property
    def budget(self) -> list[Spent]:
        config = self.record.definition.config if self.settings is None else self.settings.config
        budget = config.get("budget", {})
        trained = [a.report.resource - a.assignment.resource_from for a in self.record.reported if a.report]
        trained += [
            a.report.resource - a.assignment.resource_from
            for a in self.record.attempts
            if a.report and a.assignment.repeat
        ]
        out = sum(trial.state.is_out for trial in self.record.trials.values())
        spent = {
            "trials": ("trials", out),
            "resource": (self.record.unit, sum(trained)),
            "seconds": ("seconds", self.record.seconds),
        }
        return [
            Spent(
                kind=kind,
                spent=float(amount),
                limit=float(self.record.steered.limit(key, budget[key]) or budget[key]),
            )
            for key, (kind, amount) in spent.items()
            if isinstance(budget.get(key), int | float)
        ]

    @cached_property
    def reserve(self) -> ReserveUse:
        return reserve_of(self.record)

    @property
    def last_event(self) -> Event | None:
        return self._events[-1] if self._events else None

    @property
    def _events(self) -> Sequence[Event]:
        return self.record.drivers[-1].events if self.record.drivers else ()

    def to_json(self) -> dict[str, Any]:
        """Return the output of `spark-hpo status --json`."""
        record, answer, driver, event = self.record, self.answer, self.driver, self.last_event
        return {
            "study": record.name,
            "study_dir": record.url,
            "state": str(self.state),
            "ended_by": record.ending,
            "error": record.error,
            "metric": record.objective.metric,
            "mode": str(record.objective.mode),
            "best": answer.best
            and {
                "trial": answer.best.trial_id,
                "params": dict(answer.best.params),
                "value": answer.value,
                **({} if answer.spread is None else {"spread": answer.spread}),
                "resource": answer.best.resource,
                "peak": answer.peak and {"value": answer.peak.value, "resource": answer.peak.resource},
            },
            "test": answer.test,
            "warnings": list(answer.warnings),
            "outlook": answer.outlook,
            "trials": self.trials,
            "running": [
                {
                    "trial": attempt.assignment.trial_id,
                    "attempt": attempt.assignment.attempt,
                    "rung": attempt.assignment.rung,
                    "resource_from": attempt.assignment.resource_from,
                    "resource_to": attempt.assignment.resource_to,
                    "seconds": round(self.now - attempt.began, 1),
                }
                for attempt in self.running
            ],
            "slots": self.slots,
            "slots_shared_with": self._last_slots.get("shared_with", 0),
            "budget": {s.kind: {"spent": round(s.spent, 1), "limit": s.limit} for s in self.budget},
            "confirmation": [each.to_json() for each in confirmation_of(record)],
            "reserve": self.reserve.to_json(),
            "seconds": round(record.seconds, 1),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "driver": driver
            and {
                "host": driver.host,
                "pid": driver.pid,
                "alive": record.is_running,
                "drivers": len(record.drivers),
                "command": record.drivers[-1].facts.get("command") if record.drivers else None,
            },
            "last_event": event
            and {"kind": str(event.kind), "time": event.time, "seconds_ago": round(self.now - event.time, 1)},
            "failures": [
                redact_all(
                    {
                        "kind": str(cause.kind),
                        "message": cause.message,
                        "example": cause.example,
                        "failed": cause.failed,
                        "retried": cause.retried,
                        "trials": list(cause.trials),
                    }
                )
                for cause in self.causes
            ],
        }
