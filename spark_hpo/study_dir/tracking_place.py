"""Where MLflow has the runs of a study, so that other programs find them without asking it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from urllib.parse import quote, urlsplit

from spark_hpo.redact import redact
from spark_hpo.study_dir.storage import Storage

_NAME = "tracking.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingPlace:
    """The tracking server, and the study's experiment and run there."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    @classmethod
    def load(cls, storage: Storage) -> TrackingPlace | None:
        """Return the one in a study directory. None: there is none, or it cannot be read."""
        data = storage.read(_NAME)
        try:
            found = None if data is None else cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        return found if found and all(isinstance(text, str) for text in asdict(found).values()) else None

    def write(self, storage: Storage) -> None:
        record = {**asdict(self), "tracking_uri": redact(self.tracking_uri)}
        storage.write(_NAME, json.dumps(record).encode())

    def address(self, trial_id: int | None = None) -> str | None:
        """Return the page of the study's run, or of a trial's, for a browser; None: MLflow has no server."""
        parts = urlsplit(self.tracking_uri)
        if parts.scheme not in ("http", "https"):
            return None
        server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        experiment = f"{server}/#/experiments/{quote(self.experiment_id)}/runs"
        if trial_id is None:
            return f"{experiment}/{quote(self.run_id)}"
        wanted = f"tags.mlflow.parentRunId = '{self.run_id}' and tags.`spark_hpo.trial_id` = '{trial_id}'"
        return f"{experiment}?searchFilter={quote(wanted)}"
