"""Where things lie in a study directory, for those who write them and those who read them."""

from __future__ import annotations

CHECKPOINTS = "checkpoints"
PEERS = "peers"
"""The folder of ended trials that the pruners of Optuna objectives compare with: see `peers`."""
PROGRESS = "progress"
STOP = "control/stop"
"""While it is there, ranks save what they have and stop."""


def checkpoints(trial_id: int) -> str:
    """The folder of a trial's checkpoints."""
    return f"{CHECKPOINTS}/trial-{trial_id:06d}"


def checkpoint(trial_id: int, resource: int, attempt: int) -> str:
    """What a trial was after an assignment. An attempt never writes over another one's."""
    return f"{checkpoints(trial_id)}/{resource:06d}-{attempt}.pt"


def partial(trial_id: int, attempt: int) -> str:
    """What an attempt has come to within its assignment; each one that is saved replaces the last."""
    return f"{checkpoints(trial_id)}/partial-{attempt}.pt"


def fence(trial_id: int, rung: int) -> str:
    """The number of the attempt that may save checkpoints; not there before the second."""
    return f"fences/trial-{trial_id:06d}-{rung}"


def progress(trial_id: int, attempt: int) -> str:
    """How many steps an attempt's rank 0 has made. Not there for short ones."""
    return f"{PROGRESS}/{trial_id:06d}-{attempt}"


def stacks(trial_id: int, attempt: int, rank: int) -> str:
    """Where a rank stood that made no step any more."""
    return f"{progress(trial_id, attempt)}-rank-{rank}"


def peers(segment: int) -> str:
    """Some of the ended trials. The last segment is rewritten until it is full; the others do not change."""
    return f"{PEERS}/{segment:06d}.json"
