"""The paths of files in a study directory."""

from __future__ import annotations

from spark_hpo.trial import Assignment, AssignmentKey, Part, part_of

CHECKPOINTS = "checkpoints"
FILE = ".pt"
"""The suffix of a checkpoint that is one file."""
MANIFEST = ".json"
"""The suffix of the manifest of a checkpoint that has several files: see `manifest`."""
PEERS = "peers"
"""The folder of ended trials that the pruners of Optuna objectives compare with: see `peers`."""
PROGRESS = "progress"
STOP = "control/stop"
"""While this file exists, ranks save their state and stop."""
TABLE = "table"
"""The folder with the schema of a table that is not prepared; of a CSV, also with a copy of its rows."""
MLFLOW_MODEL = "mlflow_model"  # in a checkpoint that is a folder: the model to register


def checkpoints(trial_id: int, part: Part = None) -> str:
    """The folder of the checkpoints of a trial, or of one of its folds."""
    return f"{CHECKPOINTS}/trial-{trial_id:06d}{_of_part(part)}"


def trial_of(checkpoint: str) -> int | None:
    """Return the trial whose checkpoint it is; None: the path is not that of a checkpoint."""
    folder = checkpoint.removeprefix(f"{CHECKPOINTS}/trial-").partition("/")[0].partition("-")[0]
    return int(folder) if checkpoint.startswith(f"{CHECKPOINTS}/") and folder.isdecimal() else None


def parent_of(assignment: Assignment) -> int | None:
    """Return the trial whose weights a new trial begins with; None: it begins with its own."""
    parent = None if assignment.checkpoint is None else trial_of(assignment.checkpoint)
    return None if parent == assignment.trial_id else parent


def checkpoint(trial_id: int, resource: int, attempt: int, part: Part = None, *, suffix: str = FILE) -> str:
    """The checkpoint at the end of an assignment. Each attempt has its own, so none overwrites another's."""
    return f"{checkpoints(trial_id, part)}/{resource:06d}-{attempt}{suffix}"


def partial(trial_id: int, attempt: int, part: Part = None, *, suffix: str = FILE) -> str:
    """The latest checkpoint of an attempt within its assignment."""
    return f"{checkpoints(trial_id, part)}/partial-{attempt}{suffix}"


def fence(trial_id: int, rung: int, part: Part = None) -> str:
    """The number of the attempt that may save checkpoints. Exists from the second attempt on."""
    return f"fences/trial-{trial_id:06d}{_of_part(part)}-{rung}"


def progress(trial_id: int, attempt: int, part: Part = None) -> str:
    """The number of steps of an attempt's rank 0. Short attempts write none."""
    return f"{PROGRESS}/{trial_id:06d}{_of_part(part)}-{attempt}"


def stacks(trial_id: int, attempt: int, rank: int, part: Part = None) -> str:
    """The stack trace of a rank that has stalled."""
    return f"{progress(trial_id, attempt, part)}-rank-{rank}"


def _of_part(part: Part) -> str:
    if part is None:
        return ""
    return f"-fold-{part}" if isinstance(part, int) else f"-{part}"


def repeat_of(trial_id: int, seed: int, fold: int | None = None) -> AssignmentKey:
    """Return the key of a finalist's training with another seed, or of one fold of it."""
    return trial_id, part_of(fold, seed)


def peers(segment: int) -> str:
    """Some of the ended trials. The last segment is rewritten until it is full; the others do not change."""
    return f"{PEERS}/{segment:06d}.json"
