"""ASHA with pioneers on top of its promotions, and an entry above rungs that rank badly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.objective import Score
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.entry import Entry
from spark_hpo.search.schedulers.pioneer_asha import PioneerAshaScheduler


def noted(*scores: list[float], least_agreement: float = 0.4) -> Entry:
    """An entry that has seen these scores at each rung, by trial."""
    entry = Entry(len(scores), least_agreement)
    for rung, losses in enumerate(scores):
        for trial_id, loss in enumerate(losses):
            entry.note(trial_id, rung, Score.of(loss))
    return entry


def played(scheduler: PioneerAshaScheduler, num_trials: int, loss: Callable[[Slot], float]) -> list[Slot]:
    """Run one slot after the other until so many trials have started. Returns the slots."""
    slots: list[Slot] = []
    while sum(slot.is_new for slot in slots) < num_trials:
        slot = scheduler.next_slot()
        assert slot is not None
        slots.append(slot)
        scheduler.report(slot, loss(slot))
    return slots


def reversed_below(resource: int) -> Callable[[Slot], float]:
    """Losses whose order at resources below is the opposite of that from there on."""
    return lambda slot: (-1.0 if slot.resource_to < resource else 1.0) * (slot.trial_id * 7 % 31)


def test_entry_stays_where_rungs_agree_or_few_trials_have_reached_the_next() -> None:
    agreeing = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert noted(agreeing, agreeing, agreeing).rung == 0
    assert noted(agreeing, [0.4, 0.3, 0.2, 0.1]).rung == 0
    assert noted(agreeing, [0.3, 0.1, 0.5, 0.2, 0.4]).rung == 0  # five trials that hardly agree


def test_entry_moves_above_a_rung_that_contradicts_the_next() -> None:
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert noted(losses, losses[::-1], losses[::-1]).rung == 1
    assert noted(losses, losses, losses[::-1]).rung == 2  # the lowest rung is no better than the one above
    assert noted(losses, losses[::-1], losses[::-1], least_agreement=-1.0).rung == 0


def test_entry_ignores_trials_that_failed() -> None:
    entry = noted([0.1, 0.2, 0.3, 0.4, 0.5])
    for trial_id in range(5):
        entry.note(trial_id, 1, Score.of(float("nan")))
    assert entry.rung == 0


def test_new_trials_start_above_misleading_rungs() -> None:
    slots = played(PioneerAshaScheduler(27), 120, reversed_below(9))
    assert [slot.resource_to for slot in slots if slot.is_new and not slot.bracket][-1] == 9
    agreeing = played(PioneerAshaScheduler(27), 120, reversed_below(0))
    assert {slot.resource_to for slot in agreeing if slot.is_new and not slot.bracket} == {1}


def test_trials_are_fully_trained_where_only_the_end_counts() -> None:
    slots = played(PioneerAshaScheduler(27, num_controls=0), 200, reversed_below(27))
    assert [slot.resource_to for slot in slots if slot.is_new][-1] == 27


@pytest.mark.parametrize("is_extra", [True, False])
def test_pioneers_take_places_of_others_unless_they_are_extra(is_extra: bool) -> None:
    scheduler = PioneerAshaScheduler(
        81, num_pioneers=6, extra_pioneers=is_extra, num_controls=0, least_agreement=-1.0
    )
    first = [scheduler.next_slot() for _ in range(6)]
    for slot in first:
        assert slot is not None
        scheduler.report(slot, 1.0 + slot.trial_id)
    # The six pioneers go on; of six others, two may.
    for _ in range(6):
        slot = scheduler.next_slot()
        assert slot is not None
        assert (slot.rung, slot.trial_id < 6) == (1, True)
    others = [scheduler.next_slot() for _ in range(6)]
    for slot in others:
        assert slot is not None
        assert slot.is_new
        scheduler.report(slot, 0.1)
    promotions = [slot for _ in range(3) if (slot := scheduler.next_slot()) and not slot.is_new]
    assert len(promotions) == (2 if is_extra else 0)


@pytest.mark.parametrize("max_trials", [12, 30])
def test_few_trials_leave_half_of_the_places_for_better_ones(max_trials: int) -> None:
    scheduler = PioneerAshaScheduler(27, max_trials=max_trials, least_agreement=-1.0)
    running = [slot for _ in range(4) if (slot := scheduler.next_slot())]
    promoted = []
    while running:
        slot = running.pop(0)
        scheduler.report(slot, -float(slot.trial_id))  # each trial is better than all before
        while len(running) < 4 and (opened := scheduler.next_slot()):
            running.append(opened)
            promoted += [opened.trial_id] if opened.rung == 1 else []
    assert scheduler.is_done()
    assert len(promoted) <= max_trials // 3
    assert sum(trial_id >= 4 for trial_id in promoted) >= max_trials // 6


def test_least_agreement_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        PioneerAshaScheduler(27, least_agreement=1.5)
    assert (caught.value.key, caught.value.value) == ("least_agreement", 1.5)
