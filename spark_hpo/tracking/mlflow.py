"""The MLflow tracker: a thread of the driver writes the journal's content to MLflow, idempotently."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from spark_hpo.redact import one_line
from spark_hpo.tracking.connection import connect, resolve
from spark_hpo.tracking.environment import WRITING, environment
from spark_hpo.tracking.outbox import Outbox
from spark_hpo.tracking.study_runs import Outcome, RunStatus, StudyCard, is_refusal
from spark_hpo.tracking.tracker import JournalView
from spark_hpo.trial import Trial

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_OUTCOME = -1  # key of the outcome of the study; trials have keys from 0


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

        self._seen = 0  # journal events taken over
        self.num_written = 0  # trials that MLflow lacked, completely or partly
        self._is_closed = False
        self._outbox: Outbox[int, Trial | Outcome] = Outbox(
            "spark_hpo-mlflow",
            self._write,
            gives_up=self._gives_up,
            on_outage=self._warn,
            on_return=lambda: log.info("MLflow answers again; %d runs to write", self._outbox.num_missing),
        )

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
        changed = sorted(journal.changed_since(self._seen), key=lambda trial: trial.trial_id)
        self._seen = sequence
        for trial in changed:
            self._outbox.put(trial.trial_id, trial)

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
        return self._outbox.wait(timeout_s)

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
        self._outbox.put(_OUTCOME, outcome)
        return self.close(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Flush, then end the thread. Idempotent."""
        if self._is_closed:
            return not self._outbox.num_missing
        is_complete = self.flush(timeout_s)
        self._is_closed = True
        self._outbox.close(0.0, ending_s=1.0)
        self._environment.close()
        return is_complete

    def _write(self, key: int, content: Trial | Outcome) -> None:
        try:
            if isinstance(content, Trial):
                self.num_written += self._store.write_trial(content)
            else:
                self._store.write_outcome(content)
        except Exception as exc:  # MLflow raises errors of its stores, such as those of a database
            if not (key != _OUTCOME and is_refusal(exc)):
                self._store.forget()
            raise

    def _gives_up(self, key: int, error: Exception, attempts: int) -> bool:
        """Skip a trial that MLflow refuses: another attempt would not help."""
        if key == _OUTCOME or not is_refusal(error):
            return False
        log.warning("MLflow refuses trial %d, which is skipped: %s", key, self.describe(error))
        return True

    def _warn(self, error: Exception) -> None:
        log.warning(
            "MLflow at %s does not answer; the study continues, and missing runs are written later: %s",
            self.describe(self.tracking_uri),
            self.describe(error),
        )
