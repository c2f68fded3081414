"""The MLflow tracker: a thread of the driver writes the journal's content to MLflow, idempotently."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from spark_hpo.redact import one_line
from spark_hpo.tracking.connection import connect, resolve
from spark_hpo.tracking.environment import WRITING, environment
from spark_hpo.tracking.study_runs import Outcome, RunStatus, StudyCard, is_refusal
from spark_hpo.tracking.tracker import JournalView
from spark_hpo.trial import Trial

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0  # after the first failed call; doubled up to LONGEST_PAUSE_S
LONGEST_PAUSE_S = 60.0


class MlflowTracker:
    """A parent run for the study, a child run for each trial.

    `sync(journal)` takes a snapshot and returns; a daemon thread writes it. During an outage the thread
    retries, and then writes the last state of each trial.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        card: StudyCard,
        *,
        registry_uri: str | None = None,
        artifact_location: str | None = None,
    ) -> None:
        """Find or create the study's run, and set it to RUNNING.

        Args:
            tracking_uri: http(s)://, databricks, or a database, e.g. sqlite:///mlflow.db, whose directory is
                made.
            experiment: by name; made where it is missing.
            card: the study.
            registry_uri: of the model registry; None: the tracking server's own.
            artifact_location: of a new experiment; None: beside an SQLite file, else what the server says.

        Raises:
            TrackingError: the server cannot be reached or refuses. Within 10 s (a database: 120 s), and
                without the credentials of the URI.
        """
        self.tracking_uri = resolve(tracking_uri)
        self.registry_uri = registry_uri or self.tracking_uri
        self._store = connect(
            self.tracking_uri,
            experiment,
            card,
            registry_uri=registry_uri,
            artifact_location=artifact_location,
        )
        self._environment = ExitStack()
        self._environment.enter_context(environment(WRITING))

        self._changed = threading.Condition()
        self._seen = 0  # journal events taken over
        self._pending: dict[int, Trial] = {}
        self._outcome: Outcome | None = None
        self._refused: set[int] = set()
        self.num_written = 0  # trials that MLflow lacked, completely or partly
        self._is_writing = False
        self._is_closed = False
        self._pause_s = 0.0
        self._retry_at = 0.0  # monotonic
        self._thread = threading.Thread(target=self._run, name="spark_hpo-mlflow", daemon=True)
        self._thread.start()

    @property
    def client(self) -> MlflowClient:
        return self._store.client

    @property
    def card(self) -> StudyCard:
        return self._store.card

    @property
    def experiment_id(self) -> str:
        return self._store.experiment_id

    @property
    def run_id(self) -> str:
        return self._store.run_id

    def info(self) -> Mapping[str, Any]:
        """Return `experiment_id` and `run_id` of the study's run."""
        return {"experiment_id": self.experiment_id, "run_id": self.run_id}

    def describe(self, error: object) -> str:
        """Return an error in one line, without credentials."""
        return one_line(error)

    def sync(self, journal: JournalView) -> None:
        """Take over changed trials. Return at once, and never raise for an outage."""
        sequence = journal.sequence  # read before the trials, so that no event is missed
        if sequence == self._seen:
            return
        changed = {trial.trial_id: trial for trial in journal.changed_since(self._seen)}
        self._seen = sequence
        with self._changed:
            self._pending |= changed
            self._refused -= changed.keys()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds until everything is written. If not, log a warning."""
        missing = self.wait(timeout_s)
        if missing:
            log.warning(
                "MLflow at %s lacks %d runs of study %r. The journal has them: rerun the same "
                "command with --sync when the server is back",
                self.describe(self.tracking_uri),
                missing,
                self.card.name,
            )
        return not missing

    def wait(self, timeout_s: float) -> int:
        """Wait at most `timeout_s` seconds until everything is written. Return the number of missing runs."""
        with self._changed:
            self._pause_s = self._retry_at = 0.0  # retry now
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, timeout_s)
            return len(self._pending) + len(self._refused) + self._is_writing + (self._outcome is not None)

    def finish(
        self,
        status: RunStatus,
        *,
        metrics: Mapping[str, float],
        best: Trial | None = None,
        leaderboard: pd.DataFrame | None = None,
        artifacts: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        front: Collection[int] | None = None,
        timeout_s: float = 60.0,
    ) -> bool:
        """Write pending trials and the outcome of the study, then close.

        Args:
            timeout_s: seconds to wait. All other arguments are fields of `Outcome`.

        Returns:
            Whether everything is in MLflow. Never raises for an outage.
        """
        outcome = Outcome(
            status=status,
            time=time.time(),
            metrics=metrics,
            best=best,
            leaderboard=leaderboard,
            artifacts=artifacts or {},
            tags=tags or {},
            front=front,
        )
        with self._changed:
            self._outcome = outcome
        return self.close(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush, then end the thread. Idempotent."""
        if self._is_closed:
            return self._is_idle()
        is_complete = self.flush(timeout_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(1.0)  # a hanging call is left to its own timeout
        self._environment.close()
        return is_complete

    def _is_idle(self) -> bool:
        return not (self._pending or self._outcome or self._is_writing)

    def _is_due(self) -> bool:
        due = bool(self._pending or self._outcome) and time.monotonic() >= self._retry_at
        return self._is_closed or due

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    waits = bool(self._pending or self._outcome)
                    self._changed.wait(max(0.01, self._retry_at - time.monotonic()) if waits else None)
                if self._is_closed:
                    return
                # The pending trial with the lowest id or, if there is none, the outcome of the study.
                work = self._pending.pop(min(self._pending)) if self._pending else self._outcome
                assert work is not None, "something is due"
                self._is_writing = True
            error = self._attempt(work)
            with self._changed:
                self._is_writing = False
                self._settle(work, error)
                self._changed.notify_all()

    def _attempt(self, work: Trial | Outcome) -> Exception | None:
        try:
            if isinstance(work, Trial):
                self.num_written += self._store.write_trial(work)
            else:
                self._store.write_outcome(work)
        except Exception as exc:  # no error of MLflow may stop the study
            return exc
        return None

    def _settle(self, work: Trial | Outcome, error: Exception | None) -> None:
        if error is None:
            if self._pause_s:
                log.info("MLflow answers again; %d trials to write", len(self._pending))
            self._pause_s = 0.0
            if work is self._outcome:
                self._outcome = None
            return
        if isinstance(work, Trial) and is_refusal(error):
            self._refused.add(work.trial_id)
            log.warning("MLflow refuses trial %d, which is skipped: %s", work.trial_id, self.describe(error))
            return
        if isinstance(work, Trial):
            self._pending.setdefault(work.trial_id, work)  # unless it has changed meanwhile
        self._store.forget()
        if not self._pause_s:
            log.warning(
                "MLflow at %s does not answer; the study continues, and missing runs are written later: %s",
                self.describe(self.tracking_uri),
                self.describe(error),
            )
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._retry_at = time.monotonic() + self._pause_s
