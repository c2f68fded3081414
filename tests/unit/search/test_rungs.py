"""Rungs and brackets, against the Hyperband paper and their own plan."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.objective import NO_SCORE, Score
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.bracket import Bracket
from spark_hpo.search.schedulers.rungs import (
    Rounding,
    Rung,
    bracket_rungs,
    hyperband_rungs,
    resource_levels,
)
from spark_hpo.search.schedulers.synchronous import HyperbandScheduler, SuccessiveHalvingScheduler
from tests.support.planned_resource import planned_resource


def sizes(brackets: tuple[tuple[Rung, ...], ...]) -> list[list[int]]:
    return [[rung.size for rung in rungs] for rungs in brackets]


def test_hyperband_floor_is_table_1_of_the_paper() -> None:
    brackets = hyperband_rungs(1, 81, 3)
    assert [[(rung.size, rung.resource) for rung in rungs] for rungs in brackets] == [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        [(27, 3), (9, 9), (3, 27), (1, 81)],
        [(9, 9), (3, 27), (1, 81)],
        [(6, 27), (2, 81)],
        [(5, 81)],
    ]


def test_hyperband_ceiling_is_algorithm_1() -> None:
    brackets = sizes(hyperband_rungs(1, 81, 3, Rounding.CEILING))
    assert [rungs[0] for rungs in brackets] == [81, 34, 15, 8, 5]
    assert brackets[1] == [34, 11, 3, 1]


def test_resource_levels_of_a_power_of_eta_are_complete() -> None:
    assert len(hyperband_rungs(1, 243, 3)) == 6
    for eta in (2, 3, 5, 10):
        for power in range(1, 12):
            assert resource_levels(1, eta**power, eta)[0] == 1
            assert len(resource_levels(1, eta**power, eta)) == power + 1
            assert len(resource_levels(1, eta**power - 1, eta)) == power


def test_resource_levels_round_down() -> None:
    assert resource_levels(1, 100, 3) == (1, 3, 11, 33, 100)
    assert resource_levels(2, 27, 3) == (3, 9, 27)
    assert resource_levels(5, 5, 3) == (5,)


@given(st.integers(1, 100), st.integers(0, 1000), st.integers(2, 10))
def test_resource_levels_ascend_to_the_maximum(low: int, more: int, eta: int) -> None:
    levels = resource_levels(low, low + more, eta)
    assert list(levels) == sorted(set(levels))
    assert levels[-1] == low + more
    assert levels[0] >= low > levels[0] // eta
    assert all((low + more) // eta**k == level for k, level in enumerate(reversed(levels)))


def run(scheduler: HyperbandScheduler | SuccessiveHalvingScheduler, num_slots: int, seed: int) -> int:
    """Resource spent by the first brackets, reports in random order, until the scheduler is done."""
    rng = random.Random(seed)
    running: list[Slot] = []
    spent = 0
    while True:
        while len(running) < num_slots and (slot := scheduler.next_slot()):
            running.append(slot)
        if not running:
            return spent
        slot = running.pop(rng.randrange(len(running)))
        spent += slot.resource_to - slot.resource_from
        scheduler.report(slot, rng.random())


@given(
    st.integers(1, 300),
    st.sampled_from([2, 3, 4]),
    st.sampled_from(Rounding),
    st.integers(1, 40),
    st.integers(),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_hyperband_round_spends_its_plan(
    max_resource: int, eta: int, rounding: Rounding, num_slots: int, seed: int
) -> None:
    plan = hyperband_rungs(1, max_resource, eta, rounding)
    one_round = sum(rungs[0].size for rungs in plan)
    scheduler = HyperbandScheduler(
        max_resource, reduction_factor=eta, max_trials=one_round, rounding=rounding.value
    )
    assert run(scheduler, num_slots, seed) == sum(map(planned_resource, plan))


@pytest.mark.parametrize("eta", [2, 3, 4])
def test_one_slot_spends_the_plan_for_every_maximum(eta: int) -> None:
    for max_resource in range(1, 301):
        levels = resource_levels(1, max_resource, eta)
        scheduler = SuccessiveHalvingScheduler(max_resource=max_resource, reduction_factor=eta, max_trials=7)
        assert run(scheduler, 1, seed=0) == planned_resource(bracket_rungs(7, levels, eta))


def test_planned_resource_counts_each_epoch_once() -> None:
    # 9 x 1, then 3 from 1 to 3, then 1 from 3 to 9.
    assert planned_resource((Rung(9, 1), Rung(3, 3), Rung(1, 9))) == 9 + 6 + 6


class TestBracket:
    def full(self, num_trials: int = 9) -> tuple[Bracket, list[Slot]]:
        bracket = Bracket(0, bracket_rungs(9, (1, 3, 9), 3), 3)
        slots = [bracket.next_slot(i) for i in range(num_trials)]
        return bracket, [slot for slot in slots if slot is not None]

    def test_rung_opens_when_the_rung_below_has_reported(self) -> None:
        bracket, slots = self.full()
        for slot in slots[:-1]:
            assert bracket.report(slot, Score.of(float(slot.trial_id))) == []
            assert bracket.next_slot(9) is None
        assert bracket.report(slots[-1], Score.of(8.0)) == [3, 4, 5, 6, 7, 8]
        promoted = [bracket.next_slot(9) for _ in range(4)]
        assert [slot and slot.trial_id for slot in promoted] == [0, 1, 2, None]
        assert promoted[0] == Slot(trial_id=0, bracket=0, rung=1, resource_from=1, resource_to=3)

    def test_equal_losses_promote_the_lower_trial_id(self) -> None:
        bracket, slots = self.full()
        outs = [bracket.report(slot, Score.of(0.5)) for slot in reversed(slots)]
        assert outs[-1] == [3, 4, 5, 6, 7, 8]

    def test_bracket_closed_at_four_of_nine_promotes_one(self) -> None:
        bracket, slots = self.full(4)
        assert bracket.close() == []
        outs = [bracket.report(slot, Score.of(float(slot.trial_id))) for slot in slots]
        assert outs[-1] == [1, 2, 3]
        assert bracket.next_slot(4).trial_id == 0  # type: ignore[union-attr]

    def test_close_after_all_reports_completes_the_rung(self) -> None:
        bracket, slots = self.full(4)
        for slot in slots:
            assert bracket.report(slot, Score.of(float(slot.trial_id))) == []
        assert bracket.close() == [1, 2, 3]

    def test_bracket_closed_before_the_first_trial_is_done(self) -> None:
        bracket, _ = self.full(0)
        assert bracket.close() == []
        assert bracket.is_done

    def test_failures_shrink_the_next_rung(self) -> None:
        bracket, slots = self.full()
        outs = [bracket.report(s, Score.of(1.0 if s.trial_id < 2 else float("nan"))) for s in slots]
        assert outs == [[], [], [2], [3], [4], [5], [6], [7], [8]]
        assert [bracket.next_slot(9), bracket.next_slot(9), bracket.next_slot(9)][2] is None

    def test_bracket_is_done_when_all_trials_fail(self) -> None:
        bracket, slots = self.full()
        for slot in slots:
            bracket.report(slot, NO_SCORE)
        assert bracket.is_done


class TestOverlap:
    def test_next_bracket_opens_when_the_first_has_no_work(self) -> None:
        scheduler = HyperbandScheduler(9)
        slots = [scheduler.next_slot() for _ in range(10)]
        assert [slot and slot.bracket for slot in slots] == [0] * 9 + [1]

    def test_promotion_precedes_a_new_trial(self) -> None:
        scheduler = HyperbandScheduler(9)
        slots = [scheduler.next_slot() for _ in range(10)]
        for slot in slots[:9]:
            assert slot is not None
            scheduler.report(slot, float(slot.trial_id))
        following = [scheduler.next_slot() for _ in range(4)]
        assert [(s.trial_id, s.bracket, s.rung) for s in following if s] == [
            (0, 0, 1),
            (1, 0, 1),
            (2, 0, 1),
            (10, 1, 0),
        ]

    def test_hyperband_repeats_its_brackets(self) -> None:
        scheduler = HyperbandScheduler(9)
        first_of = {}
        for _ in range(9 + 3 + 3 + 1):
            slot = scheduler.next_slot()
            assert slot is not None
            first_of.setdefault(slot.bracket, slot.resource_to)
        assert first_of == {0: 1, 1: 3, 2: 9, 3: 1}

    def test_many_slots_never_wait_while_trials_remain(self) -> None:
        scheduler = HyperbandScheduler(81)
        assert all(scheduler.next_slot() is not None for _ in range(300))
