"""What may go of a study's directory: checkpoints that nobody needs, and what killed attempts have left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spark_hpo.errors import LeaseError
from spark_hpo.ranking import pareto_front
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState

_MAY_GO_ON = (TrialState.RUNNING, TrialState.PAUSED)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was deleted, or could be."""

    files: int
    bytes: int


def clean_study(storage: Storage, *, ended_for_s: float | None = None, dry_run: bool = False) -> Cleaned:
    """Delete what no further driver of the study needs.

    Args:
        ended_for_s: of a study that has come to its end so long ago, only the checkpoints of the best trial
            and of the Pareto front stay: it cannot go on with a larger budget then. None: what could still be
            promoted stays, too.
        dry_run: only count.

    Raises:
        LeaseError: a driver works on it.
        ConfigError: there is no study.
    """
    Definition.require(storage)
    # Without taking the lease, which says who drove the study last. On a local file system no driver starts
    # while we hold the lock; elsewhere what a driver writes after this listing is not in it.
    with storage.locked("lease.lock"):
        _check_unheld(storage)
        files = list(_files(storage))
        status = StudyStatus.read(storage)
        needed = _needed(status, ended_for_s)
        waste = [
            name for name in files if not any(name == one or name.startswith(f"{one}/") for one in needed)
        ]
        size = sum(storage.size(name) for name in waste)
        _check_unheld(storage)
        if not dry_run:
            storage.delete_all(waste)
    return Cleaned(files=len(waste), bytes=size)


def _check_unheld(storage: Storage) -> None:
    if is_held(storage):
        raise LeaseError(f"{storage.url}: a driver works on this study; nothing of it is deleted")


def _files(storage: Storage) -> Iterator[str]:
    """All that is ever deleted from a study, whoever needs it."""
    for folder in storage.names(layout.CHECKPOINTS):
        for name in storage.names(f"{layout.CHECKPOINTS}/{folder}", hidden=True):
            yield f"{layout.CHECKPOINTS}/{folder}/{name}"
    for name in storage.names(layout.PROGRESS, hidden=True):
        yield f"{layout.PROGRESS}/{name}"


def _needed(status: StudyStatus, ended_for_s: float | None) -> set[str]:
    """Files, and whole folders, that stay."""
    record, event = status.record, status.last_event
    trials = record.trials.values()
    keepers = [*pareto_front(trials, record.objective)]
    keepers += [] if status.answer.best is None else [status.answer.best]
    needed = {trial.checkpoint for trial in keepers if trial.checkpoint is not None}
    has_ended = status.state is StudyState.FINISHED and event is not None
    if has_ended and ended_for_s is not None and event is not None and status.now - event.time >= ended_for_s:
        return needed
    for trial in trials:
        if trial.state in _MAY_GO_ON and trial.checkpoint is not None:
            needed.add(trial.checkpoint)
        if trial.state is TrialState.RUNNING:  # it goes on from what it has saved in between
            needed.add(layout.checkpoints(trial.trial_id))
    # A new trial may begin with its parent's.
    begun = [attempt.assignment for attempt in record.attempts if attempt.ended is None]
    return needed | {assignment.checkpoint for assignment in begun if assignment.checkpoint is not None}
