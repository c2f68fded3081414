"""The runs of one study in MLflow: found by their tags, created once, written in batches.

All writes are idempotent: after an error, call `forget` and repeat them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from spark_hpo.objective import Objective
from spark_hpo.redact import redact, redact_all
from spark_hpo.tracking import projection
from spark_hpo.tracking.projection import (
    DESCRIPTION,
    KIND,
    PARETO_FRONT,
    POINTS,
    STUDY_ID,
    TRIAL_ID,
    WRITTEN,
    RunUpdate,
)
from spark_hpo.trial import Trial, flatten

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

RUNS_PER_PAGE = 1_000
_MAX_DIGEST = 36  # characters that MLflow takes
# Not 403 and 404, which a gateway returns while its server restarts or a token is renewed.
_PERMANENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


class RunStatus(StrEnum):
    """The final status of the study's run."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"  # interrupted; it may be resumed


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTable:
    """The table of a study."""

    url: str
    format: str  # parquet, delta or iceberg
    version: int | None  # of a Delta or Iceberg table
    rows: Mapping[str, int]  # by split
    digest: str

    def to_mlflow(self) -> DatasetInput:
        """Return the table as an input of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        is_delta = self.format == "delta"
        url = redact(self.url)
        source: dict[str, Any] = {"path" if is_delta else "uri": url}
        if self.version is not None:
            # The names are those of MLflow's own class for Delta tables.
            source["delta_table_version" if is_delta else "snapshot_id"] = self.version
        dataset = Dataset(
            name=url.rstrip("/").rpartition("/")[2] or url,
            digest=self.digest[:_MAX_DIGEST],
            source_type="delta_table" if is_delta else self.format,
            source=json.dumps(source),
            profile=json.dumps({"rows": self.rows}),
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCard:
    """The facts of a study that its run in MLflow shows."""

    study_id: str  # unique; the run is found by it
    name: str
    objective: Objective
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)  # complete, including credentials
    space: Mapping[str, Any] = field(default_factory=dict)
    git_commit: str | None = None  # None: unknown
    tags: Mapping[str, str] = field(default_factory=dict)
    table: InputTable | None = None  # None: the study has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The final content of the study's run."""

    status: RunStatus  # children that still run are KILLED
    time: float  # seconds since 1970
    metrics: Mapping[str, float] = field(default_factory=dict)  # e.g. {"best_accuracy": 0.97}
    tags: Mapping[str, str] = field(default_factory=dict)
    best: Trial | None = None  # None: no trial has succeeded
    artifacts: Mapping[str, str] = field(default_factory=dict)  # text by path, e.g. "report.html"
    leaderboard: pd.DataFrame | None = None  # logged as a table, leaderboard.json, and as leaderboard.csv
    front: Collection[int] | None = None  # trials on the Pareto front; None: only one objective


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    """The known state of one trial's run in MLflow."""

    run_id: str
    status: str
    written: int | None = None  # number of the last event written; None: none
    points: int = 0
    is_on_front: bool = False


@dataclass(eq=False)
class StudyRuns:
    """One parent run and its children. Not thread-safe: one thread at a time."""

    client: MlflowClient
    experiment_id: str
    card: StudyCard

    def __post_init__(self) -> None:
        self._children: dict[int, _Child] | None = None  # None: ask MLflow
        self.run_id = self._parent()

    def describe(self) -> None:
        """Write parameters, tags, configuration and space of the study to its run."""
        there = self.client.get_run(self.run_id).data.params
        config = redact_all(_plain(self.card.config))
        is_set = {path: value for path, value in flatten(config) if value not in (None, {}, [])}
        params = projection.param_texts(is_set)
        self._write(
            self.run_id,
            # MLflow does not allow parameters to change; config.yaml has what changed on resume.
            RunUpdate(
                params={key: value for key, value in params.items() if key not in there}, tags=self._tags()
            ),
        )
        if config:
            self.client.log_dict(self.run_id, config, "config.yaml")
        if self.card.space:
            self.client.log_dict(self.run_id, _plain(self.card.space), "space.yaml")
        if self.card.table is not None:  # MLflow keeps one of several equal inputs
            self.client.log_inputs(self.run_id, [self.card.table.to_mlflow()])

    def describe_experiment(self) -> None:
        """Say what the experiment's page shows, unless another study or its owner has."""
        from mlflow.exceptions import MlflowException

        there = self._experiment_tags()
        for key, value in projection.experiment_tags(self.card.objective).items():
            if key in there:
                continue
            try:
                self.client.set_experiment_tag(self.experiment_id, key, value)
            except MlflowException:
                if key not in self._experiment_tags():  # else another study has set it at the same moment
                    raise

    def _experiment_tags(self) -> Mapping[str, str]:
        return self.client.get_experiment(self.experiment_id).tags

    def write_outcome(self, outcome: Outcome) -> None:
        """Write leaderboard, artifacts, metrics and front; then the status, also of unfinished trials."""
        tags = dict(outcome.tags)
        if outcome.leaderboard is not None:
            # The layout of MlflowClient.log_table, which would append to an existing table.
            table = outcome.leaderboard.to_json(orient="split", index=False)
            self.client.log_text(self.run_id, table, "leaderboard.json")
            self.client.log_text(self.run_id, outcome.leaderboard.to_csv(index=False), "leaderboard.csv")
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": "leaderboard.json", "type": "table"}])
        for path, text in outcome.artifacts.items():
            self.client.log_text(self.run_id, text, path)
        there = self.client.get_run(self.run_id).data.metrics
        points = [
            projection.Point(
                key=projection.name(key), value=float(value), time_ms=int(outcome.time * 1000), step=0
            )
            for key, value in outcome.metrics.items()
            if there.get(projection.name(key)) != value
        ]
        if outcome.best is not None:
            tags |= self._best(outcome.best)
        self._write(self.run_id, RunUpdate(points=points, tags=tags))
        self.forget()  # a slow server or a replaced driver may have created runs meanwhile
        for trial_id, child in self._index().items():
            if outcome.front is not None:
                self._mark(trial_id, is_on_front=trial_id in outcome.front)
            if child.status == "RUNNING":
                self._set_status(trial_id, "KILLED", outcome.time)
        self.client.set_terminated(self.run_id, outcome.status, end_time=int(outcome.time * 1000))

    def _best(self, best: Trial) -> dict[str, str]:
        """Return tags that describe the best trial. They are no parameters, which could not change later."""
        child = self._index().get(best.trial_id)
        tags = projection.best_tags(best)
        if DESCRIPTION not in self.card.tags:  # else it is the user's own
            link = "" if child is None else f"#/experiments/{self.experiment_id}/runs/{child.run_id}"
            tags[DESCRIPTION] = projection.describe_best(best, self.card.objective, link)
        return tags

    def _parent(self) -> str:
        # There are several if the reply to a creation was lost. The described one has the trials.
        found = sorted(self._search("study"), key=lambda run: not run.data.params)
        for second in found[1:]:
            self.client.delete_run(second.info.run_id)
        if found:
            if found[0].info.status != "RUNNING":
                self.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        run = self.client.create_run(
            self.experiment_id, start_time=int(time.time() * 1000), tags=self._tags(), run_name=self.card.name
        )
        return str(run.info.run_id)

    def _tags(self) -> dict[str, str]:
        card = self.card
        return {
            **{key: projection.cut(redact(value), projection.MAX_TAG) for key, value in card.tags.items()},
            STUDY_ID: card.study_id,
            KIND: "study",
            "spark_hpo.study": card.name,
            "spark_hpo.metric": card.objective.metric,
            "spark_hpo.mode": str(card.objective.mode),
            "mlflow.source.name": "spark_hpo",
            **({"mlflow.source.git.commit": card.git_commit} if card.git_commit else {}),
        }

    def write_trial(self, trial: Trial) -> bool:
        """Write what a trial's run lacks. Return whether it lacked anything."""
        child = self._index().get(trial.trial_id) or self._create(trial)
        status = projection.STATUS[trial.state]
        if child.written == trial.changed_at and child.status == status:
            return False
        if child.written != trial.changed_at:
            if trial.failure is not None and trial.failure.traceback:
                text = redact(trial.failure.traceback)
                self.client.log_text(child.run_id, text, "traceback.txt")
            record = projection.project(trial, written=child.written is not None, points=child.points)
            self._write(child.run_id, record)
        if child.status != status:
            self._set_status(trial.trial_id, status, trial.ended_at)
        self._index()[trial.trial_id] = replace(
            child, status=status, written=trial.changed_at, points=len(trial.curve)
        )
        return True

    def forget(self) -> None:
        """List the runs again before the next write, because the reply to a creation may have been lost."""
        self._children = None

    def _create(self, trial: Trial) -> _Child:
        tags = {
            STUDY_ID: self.card.study_id,
            KIND: "trial",
            TRIAL_ID: str(trial.trial_id),
            "mlflow.parentRunId": self.run_id,
            "mlflow.source.name": "spark_hpo",
        }
        started = int(trial.started_at * 1000)
        name = f"trial {trial.trial_id}"
        run = self.client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name)
        child = _Child(run_id=run.info.run_id, status=run.info.status)
        self._index()[trial.trial_id] = child
        return child

    def _index(self) -> dict[int, _Child]:
        if self._children is None:
            children: dict[int, _Child] = {}
            for run in self._search("trial"):
                trial_id, child = int(run.data.tags[TRIAL_ID]), _child(run)
                other = children.setdefault(trial_id, child)
                if other is not child:
                    # A slow server created the first one after the runs were listed.
                    children[trial_id], second = sorted((other, child), key=lambda c: -(c.written or 0))
                    self.client.delete_run(second.run_id)
            self._children = children
        return self._children

    def _mark(self, trial_id: int, *, is_on_front: bool) -> None:
        """Set the tag of the Pareto front, if it has changed."""
        child = self._index()[trial_id]
        if child.is_on_front != is_on_front:
            self.client.set_tag(child.run_id, PARETO_FRONT, str(is_on_front).lower())
            self._index()[trial_id] = replace(child, is_on_front=is_on_front)

    def _set_status(self, trial_id: int, status: str, time: float | None) -> None:
        child = self._index()[trial_id]
        if status == "RUNNING":
            self.client.update_run(child.run_id, status=status)
        else:
            self.client.set_terminated(child.run_id, status, end_time=int(time * 1000) if time else None)
        self._index()[trial_id] = replace(child, status=status)

    def _search(self, kind: str) -> list[Run]:
        """Return this study's runs of one kind, the oldest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{STUDY_ID}` = '{self.card.study_id}' and tags.`{KIND}` = '{kind}'",
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _write(self, run_id: str, record: RunUpdate) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for batch in record.batches():
            self.client.log_batch(
                run_id,
                metrics=[Metric(p.key, p.value, p.time_ms, p.step) for p in batch.points],
                params=[Param(key, value) for key, value in batch.params.items()],
                tags=[RunTag(key, redact(value)) for key, value in batch.tags.items()],
                synchronous=True,
            )


def _child(run: Run) -> _Child:
    tags = run.data.tags
    written = tags.get(WRITTEN)
    return _Child(
        run_id=run.info.run_id,
        status=run.info.status,
        written=None if written is None else int(written),
        points=int(tags.get(POINTS, 0)),
        is_on_front=tags.get(PARETO_FRONT) == "true",
    )


def is_refusal(error: Exception) -> bool:
    """Return whether MLflow refused the call, so a retry would not help."""
    return getattr(error, "error_code", None) in _PERMANENT


def is_outage(error: Exception) -> bool:
    """Return whether MLflow or the network did not answer, so a retry may succeed."""
    is_theirs = type(error).__module__.partition(".")[0] in ("mlflow", "requests", "sqlalchemy", "urllib3")
    return (is_theirs or isinstance(error, OSError)) and not is_refusal(error)


def _plain(value: Any) -> Any:
    """Convert values to JSON types; others become text."""
    return json.loads(json.dumps(value, default=str))
