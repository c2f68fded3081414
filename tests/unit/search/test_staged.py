"""A scheduler whose number of trials changes while a study is resumed."""

from __future__ import annotations

from functools import partial

import pytest

from spark_hpo.search.registry import SCHEDULERS, build_scheduler
from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.schedulers.staged import StagedScheduler


def make(name: str, max_trials: int | None) -> Scheduler:
    return build_scheduler(name, max_resource=9, max_trials=max_trials)


def loss(slot: Slot) -> float:
    return (slot.trial_id * 7 % 11) / slot.resource_to


def run(scheduler: Scheduler, slots_at_once: int = 3) -> list[tuple[Slot, list[int]]]:
    """Run to the end, reports in the order of the slots."""
    events: list[tuple[Slot, list[int]]] = []
    running: list[Slot] = []
    while True:
        while len(running) < slots_at_once and (slot := scheduler.next_slot()):
            running.append(slot)
        if not running:
            assert scheduler.is_done()
            return events
        slot = running.pop(0)
        events.append((slot, scheduler.report(slot, loss(slot))))


def trials(events: list[tuple[Slot, list[int]]]) -> list[int]:
    return sorted({slot.trial_id for slot, _ in events})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_staged_scheduler_with_one_stage_decides_as_its_scheduler(name: str) -> None:
    staged = StagedScheduler(partial(make, name), 12)
    assert run(staged) == run(make(name, 12))
    assert staged.max_resource == 9


@pytest.mark.parametrize("name", SCHEDULERS)
def test_staged_scheduler_continues_with_a_larger_limit(name: str) -> None:
    scheduler = StagedScheduler(partial(make, name), 5)
    first = run(scheduler)
    scheduler.limit_trials(5)
    assert scheduler.is_done()
    scheduler.limit_trials(12)
    assert not scheduler.is_done()
    second = run(scheduler)
    assert trials(first) == list(range(5))
    assert trials(second) == list(range(5, 12))
    assert max(slot.bracket for slot, _ in first) < min(slot.bracket for slot, _ in second)
    assert all(slot.parent is None or slot.parent >= 5 for slot, _ in second)
    assert {i for _, out in second for i in out} <= set(range(5, 12))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_staged_scheduler_may_be_extended_before_it_is_done(name: str) -> None:
    scheduler = StagedScheduler(partial(make, name), 5)
    slot = scheduler.next_slot()
    assert slot is not None
    scheduler.limit_trials(9)
    scheduler.report(slot, 0.5)
    assert max(trials(run(scheduler))) == 8


@pytest.mark.parametrize("name", SCHEDULERS)
def test_staged_scheduler_completes_its_rungs_at_a_lower_limit(name: str) -> None:
    scheduler = StagedScheduler(partial(make, name), 100)
    running = [scheduler.next_slot() for _ in range(4)]
    scheduler.limit_trials(3)
    for slot in running:
        assert slot is not None
        scheduler.report(slot, loss(slot))
    assert max(trials(run(scheduler)), default=0) <= 3
    scheduler.limit_trials(6)
    assert trials(run(scheduler)) == [4, 5]


def test_staged_scheduler_lowered_below_its_stage_stops_there() -> None:
    scheduler = StagedScheduler(partial(make, "hyperband"), 100)
    slot = scheduler.next_slot()
    assert slot is not None
    scheduler.limit_trials(4)
    scheduler.report(slot, 0.5)
    assert trials(run(scheduler)) == [0, 1, 2, 3] or trials(run(scheduler)) == [1, 2, 3]


def test_staged_scheduler_without_a_limit_runs_until_close() -> None:
    scheduler = StagedScheduler(partial(make, "asha"), 2)
    run(scheduler)
    scheduler.limit_trials(None)
    slots = [scheduler.next_slot() for _ in range(5)]
    assert [slot.trial_id for slot in slots if slot] == [2, 3, 4, 5, 6]
    scheduler.close()
    for slot in slots:
        assert slot is not None
        scheduler.report(slot, loss(slot))
    run(scheduler)
    assert scheduler.is_done()


def test_staged_scheduler_passes_violations_on_to_a_scheduler_that_handles_them() -> None:
    scheduler = StagedScheduler(partial(make, "asha"), 3)
    assert scheduler.handles_limits
    slots = [scheduler.next_slot() for _ in range(3)]
    for slot, (value, violation) in zip(slots, [(0.1, 2.0), (0.9, 0.0), (0.8, 0.0)], strict=True):
        assert slot is not None
        scheduler.report(slot, value, violation=violation)
    promoted = scheduler.next_slot()
    assert promoted is not None
    assert promoted.trial_id == 2
