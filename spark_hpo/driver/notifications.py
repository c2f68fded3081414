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
from spark_hpo.errors import ConfigError, within
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
        self._study = {"study": config.name, "study_dir": redact(config.study_dir)}
        self._objective: Objective = config.objective.build()
        with within("notify"):
            self._webhook = Webhook(_address(config.notify), _key(config.notify))
        self._best: Trial | None = None
        self._num_trials = 0
        self._running: RunningStudy | None = None
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
            self._send("end", f"has ended after {self._num_trials} trials{self._best_text()}")
        else:
            self._send("failure", f"has ended early: {one_line(error) or kind}{self._best_text()}")
        self._webhook.close(_CLOSE_S)

    def on_study_start(self, study: RunningStudy) -> None:
        self._running, self._best = study, study.best
        self._reported_at = time.monotonic()
        self._clock.start()

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._reported_at = time.monotonic()
        self._num_trials = len(study.trials)
        if self._has_stalled:
            self._has_stalled = False
            self._send("stall", "goes on: a trial has reported")
        best = study.best
        if best is not None and best is not self._best and best.trial_id == trial.trial_id:
            self._best = best
            self._send("best", f"has a new best{self._best_text()}")

    def on_study_end(self, study: RunningStudy) -> None:
        self._ended.set()
        self._best, self._num_trials = study.best, len(study.trials)

    def _watch(self) -> None:
        """Report that no trial has reported for a while, once for each stall."""
        limit_s = self._settings.stall_s
        while not self._ended.wait(limit_s / 10):
            silent_s = time.monotonic() - self._reported_at
            if silent_s > limit_s and not self._has_stalled:
                self._has_stalled = True
                self._send("stall", f"has stalled: no trial has reported for {silent_s / 60:.0f} minutes")

    def _best_text(self) -> str:
        if self._best is None:
            return ""
        metric = self._objective.metric
        return f": trial {self._best.trial_id}, {metric} {self._best.metrics[metric]:.4g}"

    def _send(self, event: str, text: str) -> None:
        if event not in self._events:
            return
        sentence = redact(f"Study {self._study['study']} {text}")
        if self._settings.format == "slack":
            self._webhook.send({"text": sentence})
            return
        message: dict[str, Any] = {"event": event, "text": sentence, **self._study, "time": time.time()}
        if self._best is not None:
            metric = self._objective.metric
            message |= {"trial": self._best.trial_id, "metric": metric, "value": self._best.metrics[metric]}
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
