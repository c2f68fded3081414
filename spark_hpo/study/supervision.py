"""Detects assignments whose ranks have stalled, and collects their stack traces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, AssignmentKey

logger = logging.getLogger(__name__)

_CHECKS = 5  # per timeout
_LONGEST_S, _SHORTEST_S = 30.0, 0.5  # between two checks
# Ranks watch themselves, and leave a stack trace when they give up: they get more time than their timeout.
_GRACE = 0.5  # of the timeout
_GRACE_S = 5.0


@dataclass(slots=True)
class _Heartbeat:
    value: bytes | None  # of the progress file
    since: float  # when the value last changed
    has_begun: bool = False


@dataclass(eq=False)
class Supervisor:
    """Reads the progress files of the ranks in flight, a few times per timeout.

    Ranks watch themselves first. A rank that the system has stopped cannot, nor one on a machine that is cut
    off: those are left to the supervisor.
    """

    storage: Storage
    _: KW_ONLY
    rank_timeout_s: float  # for one training step
    start_timeout_s: float  # from submission to the first progress
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._interval = min(max(self.rank_timeout_s / _CHECKS, _SHORTEST_S), _LONGEST_S)
        self._checked = self.clock()
        self._heartbeats: dict[tuple[AssignmentKey, int], _Heartbeat] = {}  # by key and attempt

    def stalled(self, running: Iterable[Assignment]) -> Iterator[tuple[Assignment, str]]:
        """The assignments to give up, each with the reason. Reads files only when a check is due."""
        now = self.clock()
        assignments = {(a.key, a.attempt): a for a in running}
        self._heartbeats = {key: beat for key, beat in self._heartbeats.items() if key in assignments}
        for key in assignments:
            self._heartbeats.setdefault(key, _Heartbeat(None, now))
        if now - self._checked < self._interval:
            return
        self._checked = now
        limit = self.rank_timeout_s * (1 + _GRACE) + _GRACE_S
        for key, assignment in assignments.items():
            beat = self._heartbeats[key]
            try:
                value = self.storage.read(_progress(assignment))
            except StorageError as exc:
                logger.warning("cannot read the progress of %s: %s", assignment, exc)
                value, beat.since = beat.value, now  # an outage of the storage must not end assignments
            if value != beat.value:
                beat.value, beat.since, beat.has_begun = value, now, True
            silence = now - beat.since
            if beat.has_begun and silence > limit:
                yield (
                    assignment,
                    f"its ranks have made no step for {silence:.0f} s (resources.rank_timeout_s)",
                )
            elif not beat.has_begun and silence > self.start_timeout_s + limit:
                yield assignment, f"its ranks did not start within {silence:.0f} s (resources.slot_timeout_s)"

    def take_stacks(self, assignment: Assignment) -> str:
        """Read and delete the stack traces that the ranks of an ended assignment have left."""
        prefix = _progress(assignment).removeprefix(f"{layout.PROGRESS}/")
        stacks = []
        for name in self.storage.names(layout.PROGRESS):
            path = f"{layout.PROGRESS}/{name}"
            if name.startswith(f"{prefix}-rank-"):
                text = (self.storage.read(path) or b"").decode(errors="replace")
                stacks.append(f"rank {name.rpartition('-')[2]}: {text}")
            if name == prefix or name.startswith(f"{prefix}-"):
                self.storage.delete(path)
        return "\n".join(stacks)


def _progress(assignment: Assignment) -> str:
    return layout.progress(assignment.trial_id, assignment.attempt, assignment.part)
