"""Deletes what studies no longer need: old checkpoints, what killed attempts left behind, and snapshots."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spark_hpo.errors import LeaseError
from spark_hpo.ranking import pareto_front
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.snapshots.snapshot_folder import Snapshot, SnapshotFolder
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState

_UNFINISHED = (TrialState.RUNNING, TrialState.PAUSED)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The amount that was deleted, or would be."""

    files: int
    bytes: int


def clean_study(storage: Storage, *, ended_for_s: float | None = None, dry_run: bool = False) -> Cleaned:
    """Delete the files that no later driver of the study needs.

    Args:
        ended_for_s: if the study ended at least this long ago, keep only the checkpoints of the best trial
            and of the Pareto front. It can then no longer continue with a larger budget. None also keeps the
            checkpoints of trials that could still be promoted.
        dry_run: only count.

    Raises:
        LeaseError: a driver is running.
        ConfigError: there is no study.
    """
    Definition.require(storage)
    # This does not take the lease, which records the last driver. On a local file system, no driver can start
    # while we hold the lock. Elsewhere, files that a driver writes after the listing are not in it.
    with storage.locked("lease.lock"):
        _check_unheld(storage)
        files = list(_files(storage))
        status = StudyStatus.read(storage)
        needed = _with_parts(storage, _needed(status, ended_for_s))
        waste = [
            name for name in files if not any(name == one or name.startswith(f"{one}/") for one in needed)
        ]
        sizes = [storage.size(name) for name in waste]
        incomplete = _incomplete_tables(storage)
        for folder in incomplete:
            sizes += [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        _check_unheld(storage)
        if not dry_run:
            storage.delete_all(waste)
            for folder in incomplete:
                shutil.rmtree(folder)
    return Cleaned(files=len(sizes), bytes=sum(sizes))


def _check_unheld(storage: Storage) -> None:
    if is_held(storage):
        raise LeaseError(f"{storage.url}: a driver is running this study, so nothing was deleted")


def _files(storage: Storage) -> Iterator[str]:
    """Yield all files that may ever be deleted from a study, needed or not."""
    for folder in storage.names(layout.CHECKPOINTS):
        for name in storage.names(f"{layout.CHECKPOINTS}/{folder}", hidden=True):
            yield f"{layout.CHECKPOINTS}/{folder}/{name}"
    for name in storage.names(layout.PROGRESS, hidden=True):
        yield f"{layout.PROGRESS}/{name}"


def _incomplete_tables(storage: Storage) -> list[Path]:
    """Return the folders of drivers that were killed while they described the table.

    A description gets its name when it is complete. On object stores it has that name from the beginning, and
    the next driver overwrites it.
    """
    if storage.local is None:
        return []
    found = Path(storage.path(layout.TABLE)).parent.glob(f".{layout.TABLE}.*")
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _needed(status: StudyStatus, ended_for_s: float | None) -> set[str]:
    """Return the files and folders to keep."""
    record = status.record
    trials = record.trials.values()
    keepers = [*pareto_front(trials, record.objective)]
    keepers += [] if status.answer.best is None else [status.answer.best]
    needed = {trial.checkpoint for trial in keepers if trial.checkpoint is not None}
    if _has_ended(status, ended_for_s):
        return needed
    # A trial that trains on may become the best one with an earlier checkpoint.
    for trial in (*trials, *record.at_best):
        if trial.state in _UNFINISHED and trial.checkpoint is not None:
            needed.add(trial.checkpoint)
    for assignment in (attempt.assignment for attempt in record.attempts):
        is_training = record.trials[assignment.trial_id].state is TrialState.RUNNING
        if (assignment.is_final and assignment.trial_id not in record.finals) or is_training:
            needed.add(layout.checkpoints(*assignment.key))  # it continues from its partial checkpoint
    # A new trial may start from its parent's checkpoint.
    begun = [attempt.assignment for attempt in record.attempts if attempt.ended is None]
    return needed | {assignment.checkpoint for assignment in begun if assignment.checkpoint is not None}


def _with_parts(storage: Storage, needed: set[str]) -> set[str]:
    parts = {manifest.part_path(path, part) for path in needed for part in manifest.parts(storage, path)}
    return needed | parts


def _has_ended(status: StudyStatus, for_s: float | None) -> bool:
    """Return True if the study ended at least so many seconds ago."""
    event = status.last_event
    if for_s is None or event is None or status.state is not StudyState.FINISHED:
        return False
    return status.now - event.time >= for_s


def clean_snapshots(
    studies: Sequence[Storage], folder: str | None, *, ended_for_s: float | None = None, dry_run: bool = False
) -> dict[str, Cleaned]:
    """Delete the snapshots that no study needs, in the folders where these studies have theirs.

    Args:
        folder: another folder of snapshots.
        ended_for_s: a study that ended at least this long ago needs its snapshot no longer, if it is one of
            `studies`. None: a study needs it as long as its directory exists.
        dry_run: only count.

    Returns:
        The amounts, by folder.
    """
    taken = {study.url: Snapshot.of_study(study) for study in studies}
    folders = [snapshot.folder for snapshot in taken.values() if snapshot is not None]
    ended = [study.url for study in studies if _has_ended(StudyStatus.read(study), ended_for_s)]
    found = {}
    for url in dict.fromkeys([*folders, *([] if folder is None else [SnapshotFolder(folder).url])]):
        count, size = SnapshotFolder(url).collect(ended=ended, dry_run=dry_run)
        found[url] = Cleaned(count, size)
    return found
