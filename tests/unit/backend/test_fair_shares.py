from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.backend.fair_shares import Claim, FairQueue, fair_shares

_WEIGHTS = st.floats(0.01, 100)
_DEMANDS = st.one_of(st.floats(0, 2), st.just(math.inf))
_CLAIMS = st.lists(st.tuples(_WEIGHTS, _DEMANDS), min_size=1, max_size=8)


def shares_of(claims: list[tuple[float, float]]) -> list[float]:
    return fair_shares([weight for weight, _ in claims], [demand for _, demand in claims])


def test_fair_shares_pass_on_what_a_study_does_not_need() -> None:
    assert fair_shares([1, 1, 2], [0.1, 1, 1]) == pytest.approx([0.1, 0.3, 0.6])


@given(claims=_CLAIMS)
def test_fair_shares_are_used_up_and_no_more(claims: list[tuple[float, float]]) -> None:
    shares = shares_of(claims)
    assert sum(shares) == pytest.approx(min(1.0, sum(demand for _, demand in claims)))
    assert all(0 <= share <= demand for share, (_, demand) in zip(shares, claims, strict=True))


@given(claims=_CLAIMS)
def test_fair_shares_starve_nobody(claims: list[tuple[float, float]]) -> None:
    total = sum(weight for weight, _ in claims)
    for share, (weight, demand) in zip(shares_of(claims), claims, strict=True):
        assert share >= min(demand, weight / total) - 1e-9


@given(claims=_CLAIMS, factor=st.floats(1, 10), data=st.data())
def test_fair_share_grows_with_its_weight(
    claims: list[tuple[float, float]], factor: float, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, len(claims) - 1))
    before = shares_of(claims)[chosen]
    weight, demand = claims[chosen]
    claims[chosen] = weight * factor, demand
    assert shares_of(claims)[chosen] >= before - 1e-9


@dataclass(eq=False, kw_only=True)
class Load:
    """A study of the simulation. Amounts of slots are whole."""

    weight: float = 1.0
    ranks: int = 1
    begin: float = 0.0
    end: float = math.inf
    most: int = 10**6  # assignments at once
    seconds: Callable[[np.random.Generator], float] = lambda rng: rng.exponential(10)
    claim: Claim = field(init=False)
    started: list[float] = field(default_factory=list)
    used_s: float = 0.0  # slots times seconds


def simulate(loads: list[Load], *, slots: int, until: float, seed: int = 0) -> tuple[float, float]:
    """Run studies against each other. Check at each moment that assignments fit.

    Returns:
        Slot seconds that were idle while a study wanted them, and those in all.
    """
    rng = np.random.default_rng(seed)
    queue, now, idle_s = FairQueue(), 0.0, 0.0
    events: list[tuple[float, int, Load, str]] = []
    number = 0

    def push(at: float, load: Load, what: str) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, load, what))

    for load in loads:
        load.claim = Claim(weight=load.weight, size=Fraction(load.ranks, slots))
        push(load.begin, load, "join")
        push(load.end, load, "leave")
    while events and events[0][0] <= until:
        at, _, load, what = heapq.heappop(events)
        used = {one: one.claim.running * one.ranks for one in loads}
        assert sum(used.values()) <= slots
        free = slots - sum(used.values())
        if any(c.wants for c in queue.claims):
            idle_s += free * (at - now)
        for one in loads:
            one.used_s += used[one] * (at - now)
        now = at
        queue.advance(now)
        claim = load.claim
        if what == "join":
            queue.claims.append(claim)
        elif what == "leave":
            claim.wants = False
            push(math.inf, load, "gone")
        else:
            queue.update(claim, running=claim.running - 1, size=claim.size)
        for one in loads:
            is_there = one.begin <= now < one.end
            one.claim.wants = is_there and one.claim.running < one.most
        while (chosen := queue.next()) is not None and queue.fits(chosen):
            queue.start(chosen)
            owner = next(one for one in loads if one.claim is chosen)
            owner.started.append(now)
            chosen.wants = chosen.running < owner.most
            push(now + owner.seconds(rng), owner, "ended")
    return idle_s, slots * until


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 5), (1, 30), (0.1, 0.2)])
@pytest.mark.parametrize("slots", [1, 2, 7, 32])
def test_fair_queue_shares_by_weight_over_time(weights: tuple[float, ...], slots: int) -> None:
    loads = [Load(weight=weight) for weight in weights]
    idle_s, all_s = simulate(loads, slots=slots, until=30_000 / slots)
    assert idle_s == 0
    for load in loads:
        assert load.used_s / all_s == pytest.approx(load.weight / sum(weights), rel=0.05, abs=0.01)


def test_fair_queue_does_not_favour_longer_or_shorter_assignments() -> None:
    loads = [Load(seconds=lambda rng: rng.exponential(1)), Load(seconds=lambda rng: rng.uniform(30, 60))]
    _, all_s = simulate(loads, slots=5, until=4_000)
    assert loads[0].used_s / all_s == pytest.approx(0.5, abs=0.03)


def test_fair_queue_gives_what_others_leave() -> None:
    small, large = Load(most=2, weight=9), Load()
    idle_s, all_s = simulate([small, large], slots=8, until=5_000)
    assert idle_s == 0
    assert small.used_s / all_s == pytest.approx(2 / 8, abs=0.01)
    assert large.used_s / all_s == pytest.approx(6 / 8, abs=0.01)


def test_fair_queue_lets_a_late_study_catch_up_and_inherit() -> None:
    early, late = Load(end=2_000), Load(begin=1_000)
    idle_s, _ = simulate([early, late], slots=10, until=3_000)
    assert idle_s == 0
    # It gets every slot that becomes free until it has its share: after about half of the mean length.
    assert late.started[4] < 1_030
    assert late.used_s == pytest.approx(10 * 1_000 * 0.5 + 10 * 1_000, rel=0.05)


@pytest.mark.parametrize("slots", [4, 8, 9])
def test_fair_queue_starts_all_ranks_or_none(slots: int) -> None:
    loads = [Load(ranks=4), Load(), Load(ranks=2)]
    _, all_s = simulate(loads, slots=slots, until=10_000)
    for load in loads:
        assert load.used_s / all_s > 0.12
        assert max(np.diff(load.started), default=math.inf) < 500


def test_fair_queue_serves_more_studies_than_slots_in_turn() -> None:
    loads = [Load() for _ in range(20)]
    idle_s, all_s = simulate(loads, slots=2, until=10_000)
    assert idle_s == 0
    for load in loads:
        assert load.used_s / all_s == pytest.approx(1 / 20, rel=0.2)
        assert max(np.diff(load.started)) < 20 * 10 * 4
