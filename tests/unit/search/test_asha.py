"""ASHA and its brackets: promotions and budget."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.errors import ConfigError
from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.schedulers.adaptive_asha import AdaptiveAshaScheduler
from spark_hpo.search.schedulers.asha import AshaScheduler, AsyncHyperbandScheduler
from spark_hpo.search.schedulers.rungs import bracket_rungs, resource_levels
from tests.support.planned_resource import planned_resource

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


def spent(scheduler: Scheduler, num_slots: int = 3, seed: int = 0) -> int:
    """What a study spends when trials report in any order and none fails."""
    rng = np.random.default_rng(seed)
    running: list[Slot] = []
    total = 0
    while True:
        while len(running) < num_slots and (slot := scheduler.next_slot()):
            running.append(slot)
        if not running:
            return total
        slot = running.pop(int(rng.integers(len(running))))
        total += slot.resource_to - slot.resource_from
        scheduler.report(slot, float(rng.random()))


@given(data=st.data(), num_slots=st.integers(1, 6), eta=st.integers(2, 4))
@PROPERTY
def test_rung_promotes_its_best_trials_up_to_its_share(data: st.DataObject, num_slots: int, eta: int) -> None:
    scheduler = AsyncHyperbandScheduler(27, reduction_factor=eta, max_trials=40)
    running: list[Slot] = []
    reported: dict[tuple[int, int], int] = defaultdict(int)
    promoted: dict[tuple[int, int], int] = defaultdict(int)
    waiting: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    while True:
        while len(running) < num_slots and (slot := scheduler.next_slot()):
            running.append(slot)
            if slot.rung == 0:
                continue
            below = (slot.bracket, slot.rung - 1)
            best = min(waiting[below])
            assert best[1] == slot.trial_id, "the best of those waiting goes on"
            waiting[below].remove(best)
            promoted[below] += 1
            assert promoted[below] <= max(1, reported[below] // eta)
        if not running:
            break
        slot = running.pop(data.draw(st.integers(0, len(running) - 1)))
        loss = data.draw(st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf]))
        out = scheduler.report(slot, loss)
        here = (slot.bracket, slot.rung)
        reported[here] += 1
        if math.isfinite(loss) and slot.resource_to < 27:
            waiting[here].append((loss, slot.trial_id))
        for key, entries in waiting.items():
            waiting[key] = [entry for entry in entries if entry[1] not in out]
    assert not any(waiting.values())


def test_leader_trains_to_the_end_without_waiting() -> None:
    def slots(has_leader: bool) -> list[Slot]:
        scheduler = AdaptiveAshaScheduler(27, num_probes=0, num_controls=0, has_leader=has_leader)
        opened = []
        for _ in range(9):
            slot = scheduler.next_slot()
            assert slot is not None
            opened.append(slot)
            scheduler.report(slot, float(slot.trial_id != 1))
        return opened

    assert [slot.resource_to for slot in slots(has_leader=True)] == [1, 1, 1, 3, 9, 27, 1, 1, 1]
    assert [slot.trial_id for slot in slots(has_leader=True)][3:6] == [1, 1, 1], "the best of the first three"
    assert [slot.resource_to for slot in slots(has_leader=False)] == [1, 1, 1, 3, 1, 1, 1, 3, 1]


@pytest.mark.parametrize(("max_trials", "leads"), [(17, False), (18, True)])
def test_leader_needs_a_second_place_in_the_last_rung(max_trials: int, leads: bool) -> None:
    scheduler = AdaptiveAshaScheduler(9, max_trials=max_trials, num_controls=0, num_probes=0, has_leader=True)
    resources = []
    for _ in range(5):
        slot = scheduler.next_slot()
        assert slot is not None
        resources.append(slot.resource_to)
        scheduler.report(slot, float(slot.trial_id))
    assert resources == ([1, 1, 1, 3, 9] if leads else [1, 1, 1, 3, 1])


def test_controls_with_a_leader_wait_until_their_share_covers_them() -> None:
    scheduler = AdaptiveAshaScheduler(27, control_share=0.1, has_leader=True)
    rng = np.random.default_rng(0)
    num_controls = 0
    for _ in range(600):
        slot = scheduler.next_slot()
        assert slot is not None
        if slot.bracket == scheduler.controls.number and slot.is_new:
            spent = scheduler.bracket.committed + scheduler.controls.committed - 27
            assert scheduler.controls.committed <= 0.1 * spent
            num_controls += 1
        scheduler.report(slot, float(rng.random()))
    assert num_controls == 6


@pytest.mark.parametrize("max_resource", [27, 81, 243])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_asha_spends_what_a_bracket_of_successive_halving_plans(max_resource: int, eta: int) -> None:
    levels = resource_levels(1, max_resource, eta)
    for num_trials in (1, 10, 57):
        planned = planned_resource(bracket_rungs(num_trials, levels, eta))
        for seed in range(3):
            scheduler = AshaScheduler(max_resource, reduction_factor=eta, max_trials=num_trials)
            assert spent(scheduler, seed=seed) == planned


def test_bracket_spends_its_plan_for_maxima_up_to_300() -> None:
    for max_resource in range(1, 301):
        levels = resource_levels(1, max_resource, 3)
        planned = planned_resource(bracket_rungs(11, levels, 3))
        assert spent(AshaScheduler(max_resource, max_trials=11)) == planned


def test_asha_slot_never_waits_for_the_slowest_trial() -> None:
    scheduler = AshaScheduler(9, max_trials=100)
    slow = scheduler.next_slot()
    assert slow is not None
    for _ in range(60):
        slot = scheduler.next_slot()
        assert slot is not None
        scheduler.report(slot, 0.5)


def test_trial_without_a_chance_is_out_before_its_rung_is_complete() -> None:
    scheduler = AshaScheduler(9, max_trials=9)  # a rung of 9 promotes 3
    slots = [scheduler.next_slot() for _ in range(9)]
    out = [scheduler.report(slot, loss) for slot, loss in zip(slots, (1, 2, 3, 4), strict=False) if slot]
    assert out == [[], [], [], [3]]


def test_async_hyperband_brackets_share_the_budget() -> None:
    scheduler = AsyncHyperbandScheduler(27, max_trials=300)
    committed: list[int] = []
    rng = np.random.default_rng(0)
    for _ in range(500):
        if (slot := scheduler.next_slot()) is None:
            break
        scheduler.report(slot, float(rng.random()))
    committed = [bracket.committed for bracket in scheduler.brackets]
    assert max(committed) - min(committed) <= 2 * 27


def test_num_brackets_above_the_number_of_levels_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        AsyncHyperbandScheduler(27, num_brackets=5)
    assert (error.value.key, error.value.value) == ("num_brackets", 5)


def played(noise_below: int, num_trials: int = 60) -> AdaptiveAshaScheduler:
    """Losses that say nothing below a resource, and everything from there on."""
    scheduler = AdaptiveAshaScheduler(81, max_trials=num_trials, num_controls=0)
    rng = np.random.default_rng(1)
    quality = rng.random(num_trials)
    while slot := scheduler.next_slot():
        means_something = slot.resource_to >= noise_below
        scheduler.report(slot, float(quality[slot.trial_id] if means_something else rng.random()))
    assert scheduler.is_done()
    return scheduler


def test_adaptive_asha_keeps_an_informative_lowest_rung() -> None:
    assert played(noise_below=0).bracket.entry == 0


def test_adaptive_asha_raises_its_entry_past_noise() -> None:
    assert played(noise_below=3).bracket.entry == 1


def test_adaptive_asha_does_not_probe_expensive_rungs() -> None:
    assert played(noise_below=81).bracket.entry == 2


def test_adaptive_asha_starts_new_trials_at_the_raised_entry() -> None:
    scheduler = AdaptiveAshaScheduler(81, max_trials=200, num_controls=0)
    rng = np.random.default_rng(0)
    first: dict[int, int] = {}
    for _ in range(150):
        slot = scheduler.next_slot()
        assert slot is not None
        if slot.is_new:
            first[slot.trial_id] = slot.resource_to
        scheduler.report(slot, float(rng.random()))
    assert first[0] == 1
    assert first[max(first)] == 9


def test_adaptive_asha_trusts_the_lowest_rung_with_few_trials() -> None:
    scheduler = AdaptiveAshaScheduler(27, max_trials=12)
    plain = AshaScheduler(27, max_trials=12)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        while slot := plain.next_slot():
            assert scheduler.next_slot() == slot
            loss = float(rng.random())
            assert scheduler.report(slot, loss) == plain.report(slot, loss)


def with_controls(sign: float, misled_below: int, num_trials: int = 120) -> AdaptiveAshaScheduler:
    """Trials whose losses below a resource are `sign` times those at the end."""
    scheduler = AdaptiveAshaScheduler(27, max_trials=num_trials)
    quality = np.random.default_rng(2).random(num_trials)
    while slot := scheduler.next_slot():
        loss = float(quality[slot.trial_id])
        scheduler.report(slot, sign * loss if slot.resource_to < misled_below else loss)
    assert scheduler.is_done()
    return scheduler


@pytest.mark.parametrize(("misled_below", "entry"), [(3, 1), (9, 2), (27, 3)])
def test_controls_detect_rungs_that_contradict_the_end(misled_below: int, entry: int) -> None:
    assert with_controls(-1, misled_below).bracket.entry == entry
    assert with_controls(1, misled_below).bracket.entry == 0


def test_controls_stop_only_on_failure_and_use_their_share() -> None:
    scheduler = AdaptiveAshaScheduler(27, num_controls=6, control_share=0.25)
    rng = np.random.default_rng(0)
    controls: dict[int, list[int]] = defaultdict(list)
    for _ in range(600):
        slot = scheduler.next_slot()
        assert slot is not None
        is_control = slot.bracket == scheduler.controls.number
        if is_control:
            controls[slot.trial_id].append(slot.resource_to)
            assert (scheduler.controls.started - 1) * 27 <= 0.25 * (
                scheduler.bracket.committed + scheduler.controls.committed
            )
        fails = is_control and len(controls) == 2 and slot.resource_to == 3
        out = scheduler.report(slot, math.nan if fails else float(rng.random()))
        assert (slot.trial_id in out) == fails or not is_control
        assert not (controls.keys() - {slot.trial_id}) & set(out)
    histories = sorted(controls.values(), key=len)
    assert histories == [[1, 3], *[[1, 3, 9, 27]] * 5]


@pytest.mark.parametrize("max_resource", [27, 81, 243])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_adaptive_asha_spends_its_plan_and_the_controls(max_resource: int, eta: int) -> None:
    levels = resource_levels(1, max_resource, eta)
    for num_slots in (1, 5):
        scheduler = AdaptiveAshaScheduler(max_resource, reduction_factor=eta, max_trials=100)
        quality = np.random.default_rng(0).random(100)
        running: list[Slot] = []
        total = 0
        while True:
            while len(running) < num_slots and (slot := scheduler.next_slot()):
                running.append(slot)
            if not running:
                break
            slot = running.pop(0)
            total += slot.resource_to - slot.resource_from
            scheduler.report(slot, float(quality[slot.trial_id]))
        num_controls = scheduler.controls.started
        assert 1 <= num_controls <= 6
        plan = planned_resource(bracket_rungs(100 - num_controls, levels, eta))
        assert total == plan + num_controls * max_resource


@pytest.mark.parametrize("eta", [2, 3, 4])
def test_asynchronous_hyperband_spends_the_plan_of_each_bracket(eta: int) -> None:
    for max_resource in (27, 81, 243):
        levels = resource_levels(1, max_resource, eta)
        scheduler = AsyncHyperbandScheduler(max_resource, reduction_factor=eta, max_trials=90)
        total = spent(scheduler)
        planned = [
            planned_resource(bracket_rungs(bracket.started, levels[bracket.number :], eta))
            for bracket in scheduler.brackets
            if bracket.started
        ]
        assert total == sum(planned)
