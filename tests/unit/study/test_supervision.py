"""Supervisor: which assignments are given up, and the stack traces of their ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.errors import StorageError
from spark_hpo.study.supervision import Supervisor
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def assignment(trial_id: int, attempt: int = 1) -> Assignment:
    return Assignment(
        trial_id=trial_id,
        attempt=attempt,
        params={},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=1,
        checkpoint=None,
        seed=0,
    )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervisor(storage: Storage, clock: Clock) -> Supervisor:
    return Supervisor(storage, rank_timeout_s=10.0, start_timeout_s=100.0, clock=clock)


def watch(supervisor: Supervisor, clock: Clock, seconds: int, *running: Assignment) -> list[tuple[int, str]]:
    """Check once a second. Returns the first trials that are given up, with the reasons."""
    for _ in range(seconds):
        clock.now += 1
        if given_up := [(a.trial_id, reason) for a, reason in supervisor.stalled(running)]:
            return given_up
    return []


def test_ranks_that_make_progress_are_not_given_up(
    supervisor: Supervisor, storage: Storage, clock: Clock
) -> None:
    for steps in range(30):
        storage.write(layout.progress(1, 1), str(steps).encode())
        assert watch(supervisor, clock, 9, assignment(1)) == []


def test_ranks_that_stall_are_given_up(supervisor: Supervisor, storage: Storage, clock: Clock) -> None:
    storage.write(layout.progress(1, 1), b"7")
    storage.write(layout.progress(2, 1), b"7")
    assert watch(supervisor, clock, 15, assignment(1), assignment(2)) == []
    storage.write(layout.progress(2, 1), b"8")
    [(trial_id, reason)] = watch(supervisor, clock, 20, assignment(1), assignment(2))
    assert trial_id == 1
    assert "no step for" in reason
    assert "resources.rank_timeout_s" in reason


def test_ranks_that_do_not_start_are_given_up_later(supervisor: Supervisor, clock: Clock) -> None:
    assert watch(supervisor, clock, 100, assignment(1)) == []
    [(_, reason)] = watch(supervisor, clock, 40, assignment(1))
    assert "did not start" in reason


def test_timeouts_are_counted_per_attempt(supervisor: Supervisor, clock: Clock) -> None:
    assert watch(supervisor, clock, 100, assignment(1)) == []
    assert watch(supervisor, clock, 100, assignment(1, attempt=2)) == []


def test_outage_of_the_storage_gives_up_no_assignment(
    supervisor: Supervisor, storage: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(layout.progress(1, 1), b"7")
    assert watch(supervisor, clock, 3, assignment(1)) == []

    def refuse(storage: Storage, name: str) -> bytes:
        raise StorageError(f"{name}: connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read", refuse)
        assert watch(supervisor, clock, 200, assignment(1)) == []
    assert watch(supervisor, clock, 40, assignment(1)) != []


def test_take_stacks_reads_and_deletes_them(supervisor: Supervisor, storage: Storage) -> None:
    storage.write(layout.progress(1, 2), b"7")
    storage.write(layout.stacks(1, 2, 0), b"in backward")
    storage.write(layout.stacks(1, 2, 1), b"in all_reduce")
    storage.write(layout.progress(1, 21), b"another attempt's")
    assert supervisor.take_stacks(assignment(1, attempt=2)) == "rank 0: in backward\nrank 1: in all_reduce"
    assert supervisor.take_stacks(assignment(1, attempt=2)) == ""
    assert storage.names(layout.PROGRESS) == ["000001-21"]
