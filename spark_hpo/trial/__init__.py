"""The values that driver, ranks and journal exchange: Assignment, Report, Trial and their parts.

All are frozen and made of JSON types, so that the journal can store them and no process has to unpickle them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from spark_hpo.objective import Score
from spark_hpo.redact import redact
from spark_hpo.trial.usage import RankUse as RankUse
from spark_hpo.trial.usage import UseSample as UseSample

Part = int | str | None
"""A fold of a trial, by number, or its training with another seed, such as `seed-2`; None: the trial."""

AssignmentKey = tuple[int, Part]
"""A trial, and the part of it that is an assignment of its own. At most one of a key is in flight."""

Params = Mapping[str, Any]
"""Parameters by name: numbers, strings, booleans, None, or nested mappings and lists of these."""


class TrialState(StrEnum):
    """The state of a trial: `running -> paused -> running -> ... -> completed | stopped | failed`."""

    RUNNING = "running"  # an assignment is in flight
    PAUSED = "paused"  # waits at its rung for a promotion
    STOPPED = "stopped"  # will not be promoted
    COMPLETED = "completed"  # fully trained
    FAILED = "failed"  # raised, diverged or crashed

    @property
    def is_out(self) -> bool:
        """True if the trial has ended for good."""
        return self in (TrialState.STOPPED, TrialState.COMPLETED, TrialState.FAILED)


class FailureKind(StrEnum):
    """The cause of a failed assignment."""

    TRIAL = "trial"  # user code raised, or a metric is not finite
    MEMORY = "memory"  # out of memory; a retry would fail again
    DATA = "data"  # the table is damaged; every trial would fail
    INFRASTRUCTURE = "infrastructure"  # a process, executor or connection was lost
    STORAGE = "storage"  # the study directory cannot be written; every trial would fail
    CAPACITY = "capacity"  # not all of its ranks could start
    INTERRUPTED = "interrupted"  # the driver asked it to save its state and stop

    @property
    def is_passing(self) -> bool:
        """True if another attempt may succeed."""
        return self not in (FailureKind.TRIAL, FailureKind.MEMORY, FailureKind.DATA)


class Split(StrEnum):
    """The parts of a table."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Purpose(StrEnum):
    """The reason why a trial is trained."""

    SEARCH = "search"  # the scheduler decided it
    FINISH = "finish"  # the budget is spent, and the trial is one of the best


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an assignment failed. Credentials are removed from both texts."""

    kind: FailureKind
    message: str
    traceback: str = ""
    file: str | None = None  # the damaged file of the table, if there is one

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redact(self.message))
        object.__setattr__(self, "traceback", redact(self.traceback))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Metrics on the validation split after `resource` epochs."""

    resource: int  # epochs completed, 1..max_resource
    metrics: Mapping[str, float]
    time: float  # wall clock of the rank that measured, seconds since 1970
    seconds: float  # training and evaluation of this epoch
    rows: int  # rows trained on in this epoch, over all ranks


# Journals keep the keys that earlier versions wrote.
_JOURNAL_KEYS = {"excluded_files": "without", "is_define_by_run": "is_proposal"}
_FIELDS = {key: field for field, key in _JOURNAL_KEYS.items()}


def part_of(fold: int | None, repeat: int | None) -> Part:
    """Return the part of a trial that a fold or a training with another seed is."""
    if repeat is None:
        return fold
    return f"seed-{repeat}" if fold is None else f"seed-{repeat}-fold-{fold}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Work for a backend: train one trial from `resource_from` to `resource_to`.

    If both are equal, the checkpoint is only evaluated on `split`.
    """

    trial_id: int
    attempt: int  # 1, 2, ... of the same slot
    params: Params
    bracket: int
    rung: int
    resource_from: int  # epochs completed by the checkpoint, 0 for a new trial
    resource_to: int  # epochs completed when this assignment is done
    checkpoint: str | None  # path inside the study directory; None: start from scratch
    seed: int
    split: Split = Split.VALIDATION  # that is evaluated
    excluded_files: tuple[str, ...] = ()  # unreadable files of the table, which are skipped
    is_define_by_run: bool = False  # the trial chooses its parameters as it runs
    fold: int | None = None  # 1, 2, ...: train and evaluate this fold, from scratch; None: no folds
    purpose: Purpose = Purpose.SEARCH
    repeat: int | None = None  # 1, 2, ...: train a finalist again with this other seed

    @property
    def part(self) -> Part:
        return part_of(self.fold, self.repeat)

    @property
    def key(self) -> AssignmentKey:
        return self.trial_id, self.part

    @property
    def is_evaluation(self) -> bool:
        """True if the checkpoint is only evaluated."""
        return self.resource_from == self.resource_to

    @property
    def is_final(self) -> bool:
        """True if this trains the final model of a cross-validation, on all training rows."""
        return self.split is Split.TRAIN

    def __str__(self) -> str:
        if self.is_evaluation:
            return f"trial {self.trial_id}: evaluate on {self.split}"
        if self.is_final:
            return f"trial {self.trial_id}: train the final model"
        if self.repeat is not None and self.fold is not None:
            return f"trial {self.trial_id}, seed {self.repeat}: fold {self.fold}"
        if self.repeat is not None:
            return f"trial {self.trial_id}, seed {self.repeat}"
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"trial {self.trial_id}, rung {self.rung}{fold}"

    def to_json(self) -> dict[str, Any]:
        record = {_JOURNAL_KEYS.get(key, key): value for key, value in asdict(self).items()}
        if not self.is_define_by_run:  # true of few studies; lines stay short
            del record["is_proposal"]
        if self.fold is None:
            del record["fold"]
        if self.purpose is Purpose.SEARCH:
            del record["purpose"]
        if self.repeat is None:
            del record["repeat"]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Assignment:
        fields = {_FIELDS.get(key, key): value for key, value in record.items()}
        fields["split"] = Split(record["split"])
        fields["excluded_files"] = tuple(record.get("without", ()))
        fields["purpose"] = Purpose(record.get("purpose", Purpose.SEARCH))
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of an assignment, or its failure."""

    trial_id: int
    attempt: int
    rung: int
    resource: int  # epochs completed; below the target when training stopped on a plateau
    split: Split = Split.VALIDATION  # that was evaluated
    metrics: Mapping[str, float] = field(default_factory=dict)  # at `resource`
    curve: tuple[Measurement, ...] = ()
    checkpoint: str | None = None  # path inside the study directory
    seconds: float = 0.0  # from submission to report
    failure: Failure | None = None
    is_pruned: bool = False  # the training function pruned the trial
    params: Params | None = None  # of a define-by-run trial
    notes: Mapping[str, Any] = field(default_factory=dict)  # user attributes: JSON values
    fold: int | None = None  # of the assignment
    repeat: int | None = None  # of the assignment
    spread: Mapping[str, float] = field(default_factory=dict)  # see `Trial.spread`
    usage: tuple[RankUse, ...] = field(default=(), compare=False)  # of some of its ranks; see `merge_usage`

    @property
    def key(self) -> AssignmentKey:
        """The key of the assignment."""
        return self.trial_id, part_of(self.fold, self.repeat)

    @classmethod
    def started(cls, assignment: Assignment) -> Report:
        """Return the report of an assignment that has done nothing so far."""
        return cls(
            trial_id=assignment.trial_id,
            attempt=assignment.attempt,
            rung=assignment.rung,
            resource=assignment.resource_from,
            split=assignment.split,
            fold=assignment.fold,
            repeat=assignment.repeat,
        )

    @classmethod
    def failed(cls, assignment: Assignment, failure: Failure) -> Report:
        """Return the report of an assignment that has failed before anything was measured."""
        return replace(cls.started(assignment), failure=failure)

    @property
    def scored_metrics(self) -> Mapping[str, float]:
        """The metrics that the search uses: none of a failed or pruned trial."""
        return self.metrics if self.failure is None and not self.is_pruned else {}

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)  # fields with these values are omitted
        record["usage"] = [use.to_json() for use in self.usage]
        unsaid: dict[str, Any] = {
            "is_pruned": False,
            "params": None,
            "notes": {},
            "fold": None,
            "repeat": None,
            "spread": {},
            "usage": [],
        }
        return {key: value for key, value in record.items() if key not in unsaid or value != unsaid[key]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Report:
        failure = record["failure"]
        return cls(
            **{
                **record,
                "split": Split(record["split"]),
                "curve": tuple(Measurement(**m) for m in record["curve"]),
                "failure": failure and Failure(**{**failure, "kind": FailureKind(failure["kind"])}),
                "usage": tuple(RankUse.from_json(use) for use in record.get("usage", ())),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A trial with everything that was reported of it so far."""

    trial_id: int
    params: Params
    state: TrialState
    bracket: int
    rung: int
    resource: int = 0  # epochs completed
    metrics: Mapping[str, float] = field(default_factory=dict)  # at `resource`
    loss: float = math.inf  # at `resource`; infinite before the first report and after a failure
    violation: float = 0.0  # by how much its metrics break the study's limits
    curve: tuple[Measurement, ...] = ()
    checkpoint: str | None = None
    seconds: float = 0.0  # sum over its assignments
    started_at: float = 0.0  # wall clock, seconds since 1970
    ended_at: float | None = None  # of the last report
    failure: Failure | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # user attributes: JSON values
    is_define_by_run: bool = False  # while it runs, `params` are only what was proposed
    parent: int | None = None  # in population based training, the trial whose weights it began with
    has_folds: bool = False  # the resource counts folds, and `metrics` are means over them
    spread: Mapping[str, float] = field(default_factory=dict)
    """Standard deviation of each metric over the folds so far (of the population); empty for one fold."""
    usage: tuple[RankUse, ...] = ()  # of the last report
    changed_at: int = 0  # sequence number of the last journal event that touched it

    @property
    def score(self) -> Score:
        """The score by which trials are compared."""
        return Score.of(self.loss, self.violation)

    def with_report(self, report: Report, *, score: Score, time: float) -> Trial:
        """Return the trial after a report: paused, stopped or failed. The scheduler then decides on it."""
        common = replace(
            self,
            params=self.params if report.params is None else report.params,
            notes={**self.notes, **report.notes},
            seconds=self.seconds + report.seconds,
            curve=self.curve + report.curve,
            ended_at=time,
            rung=report.rung,
            usage=report.usage,
        )
        if report.failure is not None:
            return replace(common, state=TrialState.FAILED, loss=math.inf, failure=report.failure)
        return replace(
            common,
            state=TrialState.STOPPED if report.is_pruned else TrialState.PAUSED,
            resource=report.resource,
            metrics=report.metrics,
            spread=report.spread,
            loss=score.loss,
            violation=score.violation,
            checkpoint=report.checkpoint,
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted name. An empty mapping is a value; lists are not entered.

    A trace: {"optimizer": {"name": "sgd"}, "layers": [8, 4]} -> ("optimizer.name", "sgd"), ("layers", [8, 4])
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def in_words(params: Params) -> str:
    """Return parameters in one line, with four significant digits: `lr=0.1  optimizer.name=sgd`."""
    texts = {name: f"{item:.4g}" if isinstance(item, float) else item for name, item in flatten(params)}
    return "  ".join(f"{name}={text}" for name, text in texts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class HalvedBatches:
    """Batches that did not fit a device, as `training.micro_batch: auto` notes them."""

    rows: int  # that a rank trains on at a time since then
    times: int

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> HalvedBatches | None:
        """Read the notes of a trial or a report; None: all batches fitted."""
        match notes.get("micro_batch"):
            case {"rows": int(rows), "halved": int(times)}:
                return cls(rows=rows, times=times)
        return None
