"""ASHA with pioneers, controls, and promotions that a model chooses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.registry import build_scheduler
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.guided_asha import GuidedAshaScheduler
from spark_hpo.search.schedulers.staged import StagedScheduler


def played(
    scheduler: GuidedAshaScheduler, num_slots: int, resource: int, loss: Callable[[Slot], float]
) -> list[Slot]:
    """Run slots side by side, all at the same speed, until so much resource was used. Returns them."""
    slots: list[Slot] = []
    running: list[tuple[int, int, Slot]] = []  # end, number, slot
    clock = 0
    while sum(slot.resource_to - slot.resource_from for slot in slots) < resource:
        while len(running) < num_slots:
            slot = scheduler.next_slot()
            assert slot is not None
            running.append((clock + slot.resource_to - slot.resource_from, len(slots), slot))
            slots.append(slot)
        running.sort()
        clock, _, slot = running.pop(0)
        scheduler.report(slot, loss(slot))
    return slots


def last_of(trial_id: int, slots: list[Slot]) -> Slot:
    return [slot for slot in slots if slot.trial_id == trial_id][-1]


def by_trial(slot: Slot) -> float:
    """Trial 5 is the best, then 6, 7, 0, 1 ..."""
    return float((slot.trial_id - 5) % 8)


def test_better_half_of_the_first_trials_is_trained_to_the_end_without_waiting() -> None:
    slots = played(GuidedAshaScheduler(81, num_controls=0), 8, 8 * 81, by_trial)
    reached = {
        resource: {slot.trial_id for slot in slots if slot.resource_to >= resource and slot.trial_id < 8}
        for resource in (9, 27, 81)
    }
    assert reached[9] == set(range(8))  # cheap rungs select none of them
    assert len(reached[27]) == 4
    assert len(reached[81]) == 2
    assert 5 in reached[81]
    by_end = sum(slot.resource_to - slot.resource_from for slot in slots[: slots.index(last_of(5, slots))])
    assert by_end < 8 * 81 / 2  # it has not waited for later trials


def test_trials_that_start_later_are_no_pioneers() -> None:
    scheduler = GuidedAshaScheduler(81, num_pioneers=8, num_controls=0)
    first = scheduler.next_slot()
    assert first is not None
    scheduler.report(first, 0.5)
    promoted = scheduler.next_slot()
    assert promoted is not None
    assert promoted.trial_id == 0  # the only pioneer
    later = scheduler.next_slot()
    assert later is not None
    scheduler.report(later, 0.1)
    third = scheduler.next_slot()
    assert third is not None
    assert third.is_new  # 2 of 3 reported: none is due by ASHA's rule


def test_without_pioneers_and_guide_it_is_asha() -> None:
    slots = played(GuidedAshaScheduler(81, num_pioneers=0, num_controls=0), 4, 2000, by_trial)
    asha = build_scheduler("asha", max_resource=81)
    assert slots == played(asha, 4, 2000, by_trial)  # type: ignore[arg-type]


def test_rung_promotes_the_trial_that_is_chosen() -> None:
    seen: list[list[int]] = []

    def choose(trials: Sequence[int]) -> int:
        seen.append(list(trials))
        return trials[-1]

    scheduler = GuidedAshaScheduler(9, num_pioneers=0, num_controls=0)
    scheduler.guide(choose)
    slots = [scheduler.next_slot() for _ in range(3)]
    for slot, loss in zip(slots, (0.3, 0.1, 0.2), strict=True):
        assert slot is not None
        scheduler.report(slot, loss)
    promoted = scheduler.next_slot()
    assert promoted is not None
    assert (promoted.trial_id, promoted.resource_to) == (0, 3)
    assert seen == [[1, 2, 0]]  # the lowest loss first


def test_failed_trial_is_no_choice() -> None:
    scheduler = GuidedAshaScheduler(9, num_pioneers=0, num_controls=0)
    scheduler.guide(lambda trials: trials[-1])
    for loss in (0.3, 0.1, float("nan")):
        slot = scheduler.next_slot()
        assert slot is not None
        scheduler.report(slot, loss)
    promoted = scheduler.next_slot()
    assert promoted is not None
    assert promoted.trial_id == 0


def test_controls_stay_within_their_share() -> None:
    slots = played(GuidedAshaScheduler(27, control_share=0.1), 4, 3000, by_trial)
    controls = {slot.trial_id for slot in slots if slot.bracket == 1}
    assert len(controls) == 6
    assert {slot.trial_id for slot in slots if slot.bracket == 1 and slot.resource_to == 27} == controls
    spent = 0
    for slot in slots:
        if slot.bracket == 1 and slot.is_new:
            assert spent >= 10 * 27
        spent += slot.resource_to - slot.resource_from


@pytest.mark.parametrize("max_trials", [1, 3, 12, 40])
def test_few_trials_leave_places_for_better_ones(max_trials: int) -> None:
    scheduler = GuidedAshaScheduler(81, max_trials=max_trials)
    running = [slot for _ in range(8) if (slot := scheduler.next_slot())]
    promotions = []
    while running:
        slot = running.pop(0)
        scheduler.report(slot, by_trial(slot))
        while len(running) < 8 and (opened := scheduler.next_slot()):
            running.append(opened)
            promotions += [] if opened.is_new or opened.bracket else [opened]
    assert scheduler.is_done()
    # As many as successive halving would promote, with a few more of a complete rung.
    assert len([slot for slot in promotions if slot.rung == 1]) <= max(1, max_trials // 3)


def test_choices_of_a_later_stage_are_numbered_from_its_first_trial() -> None:
    chosen: list[list[int]] = []

    def choose(trials: Sequence[int]) -> int:
        chosen.append(list(trials))
        return trials[-1]

    def make(max_trials: int | None) -> GuidedAshaScheduler:
        return GuidedAshaScheduler(9, max_trials=max_trials, num_pioneers=0, num_controls=0)

    scheduler = StagedScheduler(make, 9)
    scheduler.guide(choose)
    for _ in range(2):
        running = []
        while slot := scheduler.next_slot() or (running.pop(0) if running else None):
            if slot.trial_id in [open_.trial_id for open_ in running] or not slot.is_new:
                scheduler.report(slot, by_trial(slot))
            else:
                running.append(slot)
                scheduler.report(running.pop(), by_trial(slot))
        scheduler.limit_trials(18)
    assert max(max(trials) for trials in chosen) >= 9
    assert all(max(trials) - min(trials) < 9 for trials in chosen)
    copy.deepcopy(scheduler)


@pytest.mark.parametrize("key", ["num_pioneers", "num_controls", "control_share"])
def test_settings_are_checked(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"scheduler_settings\.{key}"):
        build_scheduler("guided_asha", max_resource=9, **{key: -1})
