"""Reports a study to a webhook: that it has ended, failed or stalled, or has a new best trial."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Any, Self

from spark_hpo.config import StudyConfig
from spark_hpo.config.notify import NotifyConfig
from spark_hpo.driver.webhook import Webhook
from spark_hpo.errors import ConfigError, count, within
from spark_hpo.objective import Objective
from spark_hpo.redact import one_line, redact
from spark_hpo.study.callback import Callback, RunningStudy
from spark_hpo.trial import Report, Trial

_CLOSE_S = 10.0  # that the end of a study waits for the last messages


def check_notify(settings: NotifyConfig | None) -> None:
    """Check that the environment has what the section names.

    Raises:
        ConfigError: a variable is missing, or the address is not that of a web server.
    """
    if settings is not None:
        with within("notify"):
            _address(settings)
            _key(settings)


class Notifications(Callback):
    """Observes a study as a callback, and its driver as a context.

    Args:
        config: of the study, with a section `notify`.

    Raises:
        ConfigError: as `check_notify`.
    """

    def __init__(self, config: StudyConfig) -> None:
        assert config.notify is not None
        self._settings = config.notify
        self._events = frozenset(config.notify.events)
        self._names = {"study": config.name, "study_dir": redact(config.study_dir)}
        self._objective: Objective = config.objective.build()
        with within("notify"):
            self._webhook = Webhook(_address(config.notify), _key(config.notify))
        self._study: RunningStudy | None = None  # None: the search has not begun
        self._announced: Trial | None = None  # the best trial when it was last reported
        self._reported_at = time.monotonic()
        self._has_stalled = False
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._watch, name="spark_hpo-stall", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if error is None:
            num_trials = len(self._study.trials) if self._study else 0
            self._send("end", f"has ended after {count(num_trials, 'trial')}{self._best_text()}")
        else:
            self._send("failure", f"has ended early: {one_line(error) or kind}{self._best_text()}")
        self._webhook.close(_CLOSE_S)

    def on_study_start(self, study: RunningStudy) -> None:
        self._study, self._announced = study, study.best
        self._reported_at = time.monotonic()
        self._clock.start()

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._reported_at = time.monotonic()
        if self._has_stalled:
            self._has_stalled = False
            self._send("stall", "goes on: a trial has reported")
        best = self._best
        if best is not None and best is not self._announced and best.trial_id == trial.trial_id:
            self._announced = best
            self._send("best", f"has a new best{self._best_text()}")

    def on_study_end(self, study: RunningStudy) -> None:
        self._ended.set()

    @property
    def _best(self) -> Trial | None:
        return None if self._study is None else self._study.best

    def _watch(self) -> None:
        """Report that no trial has reported for a while, once for each stall."""
        limit_s = self._settings.stall_s
        while not self._ended.wait(limit_s / 10):
            if self._study is not None and self._study.is_paused:
                self._reported_at = time.monotonic()
            silent_s = time.monotonic() - self._reported_at
            if silent_s > limit_s and not self._has_stalled:
                self._has_stalled = True
                self._send("stall", f"has stalled: no trial has reported for {silent_s / 60:.0f} minutes")

    def _best_text(self) -> str:
        best, metric = self._best, self._objective.metric
        return "" if best is None else f": trial {best.trial_id}, {metric} {best.metrics[metric]:.4g}"

    def _send(self, event: str, text: str) -> None:
        if event not in self._events:
            return
        sentence = redact(f"Study {self._names['study']} {text}")
        if self._settings.format == "slack":
            self._webhook.send({"text": sentence})
            return
        message: dict[str, Any] = {"event": event, "text": sentence, **self._names, "time": time.time()}
        best, metric = self._best, self._objective.metric
        if best is not None:
            message |= {"trial": best.trial_id, "metric": metric, "value": best.metrics[metric]}
        self._webhook.send(message)


def _address(settings: NotifyConfig) -> str:
    url = os.environ.get(settings.url_variable, "")
    if not url.startswith(("https://", "http://")):
        raise ConfigError(
            "must name an environment variable of the driver with an address that begins with https://",
            key="url_variable",
            value=settings.url_variable,
            cure=f"export {settings.url_variable}=https://...",
        )
    return url


def _key(settings: NotifyConfig) -> bytes | None:
    if settings.key_variable is None:
        return None
    key = os.environ.get(settings.key_variable, "")
    if not key:
        raise ConfigError(
            "must name an environment variable of the driver with a key",
            key="key_variable",
            value=settings.key_variable,
        )
    return key.encode()
