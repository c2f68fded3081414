from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from spark_hpo.backend.base import SharedSlots
from spark_hpo.backend.sharing import Member, SlotPool, open_share

SLOTS = 4
WAIT_S = 20.0


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Pool:
    """A pool of four slots on a virtual clock, and how often each study was woken."""

    clock: Clock = field(default_factory=Clock)
    woken: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = SlotPool(self.clock)

    @contextmanager
    def study(self, name: str, *, weight: float = 1.0, ranks: int = 1) -> Iterator[Member]:
        def wake() -> None:
            self.woken[name] = self.woken.get(name, 0) + 1

        slots = SharedSlots(key="test", size=lambda: Fraction(ranks, SLOTS), wake=wake)
        with self.pool.joined(slots, weight=weight) as member:
            yield member


@pytest.fixture
def pool() -> Pool:
    return Pool()


def fill(share: Member) -> int:
    running = 0
    while share.take(running):
        running += 1
    return running


def test_share_of_one_study_is_everything(pool: Pool) -> None:
    with pool.study("a") as share:
        assert share.num_slots(SLOTS) == SLOTS == fill(share)


def test_share_changes_when_a_study_starts_and_ends(pool: Pool) -> None:
    with pool.study("a") as a:
        with pool.study("b", weight=3) as b:
            assert (a.num_slots(SLOTS), b.num_slots(SLOTS)) == (1, 3)
            assert a.num_studies == 2
            pool.woken.clear()
        assert a.num_slots(SLOTS) == SLOTS
        assert pool.woken["a"] == 1, "it does not wait for its next poll"


def test_share_is_at_least_one_slot(pool: Pool) -> None:
    with ExitStack() as stack:
        shares = [stack.enter_context(pool.study(str(i), weight=i + 1)) for i in range(9)]
        assert min(share.num_slots(SLOTS) for share in shares) == 1


def test_free_slots_go_to_the_study_below_its_share(pool: Pool) -> None:
    with pool.study("a") as a, pool.study("b") as b:
        assert fill(a) == 4, "b wants nothing yet"
        assert not b.take(0)
        pool.woken.clear()
        assert not a.take(3), "the slot that became free is b's"
        assert pool.woken == {"b": 1}
        assert b.take(0)
        assert not b.take(1)
        assert not a.take(2), "also the next one"
        assert b.take(1)
        assert not b.take(2)
        assert a.take(1), "both have their share: each replaces what has ended"


def test_slots_that_a_study_leaves_go_to_the_others(pool: Pool) -> None:
    with pool.study("a") as a, pool.study("b") as b:
        assert a.take(0)
        assert b.take(0)
        b.rest(1)
        assert a.take(1)
        assert a.take(2)
        assert not a.take(3)


def test_share_of_a_study_that_does_not_answer_goes_to_the_others(pool: Pool) -> None:
    with pool.study("a") as a, pool.study("b") as b:
        fill(a)
        assert not b.take(0)
        assert not a.take(3)
        pool.clock.now = 0.9
        assert not a.take(3)
        pool.clock.now = 2.5  # longer than a driver loop takes
        assert a.take(3)
        assert not b.take(0), "it wants again"
        assert not a.take(3)
        assert b.take(0)


def test_slots_are_kept_until_all_ranks_fit(pool: Pool) -> None:
    with pool.study("narrow") as narrow, pool.study("wide", ranks=4) as wide:
        assert fill(narrow) == 4
        assert not wide.take(0)
        pool.clock.now = 10.0
        for running in (3, 2, 1):
            assert not narrow.take(running)
            assert not wide.take(0)
        narrow.rest(0)
        assert wide.take(0)
        assert not narrow.take(0)


def test_pool_never_exceeds_its_slots_when_studies_are_threads() -> None:
    lock, seconds = threading.Lock(), 0.002
    busy, most, done = 0, 0, {}

    def study(name: str, weight: float, ranks: int, until: float) -> None:
        nonlocal busy, most
        event = threading.Event()
        ended: list[int] = []
        slots = SharedSlots(key="threads", size=lambda: Fraction(ranks, SLOTS), wake=event.set)

        def end() -> None:
            nonlocal busy
            with lock:
                busy -= ranks
                ended.append(1)
            event.set()

        with open_share(slots, weight=weight) as share:
            started = 0
            while time.monotonic() < until or started > len(ended):
                while time.monotonic() < until and share.take(started - len(ended)):
                    with lock:
                        busy += ranks
                        most = max(most, busy)
                    started += 1
                    threading.Timer(seconds, end).start()
                if time.monotonic() >= until:
                    share.rest(started - len(ended))
                assert event.wait(WAIT_S)
                event.clear()
            done[name] = started * ranks

    until = time.monotonic() + 0.6
    kinds = [("a", 1.0, 1), ("b", 2.0, 2), ("c", 1.0, 1)]
    threads = [threading.Thread(target=study, args=(*kind, until)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert set(done) == {"a", "b", "c"}
    assert most <= SLOTS
    assert min(done.values()) > 0


def test_open_share_without_shared_slots_takes_all() -> None:
    with open_share(None, weight=1.0) as share:
        assert share.num_slots(3) == 3
        assert share.take(100)


def test_slots_are_kept_for_a_wide_assignment_of_another_study() -> None:
    pool = SlotPool(clock=lambda: 0.0)
    slots = SharedSlots(key="any", size=lambda: Fraction(1, 4), wake=lambda: None)
    with pool.joined(slots, weight=1) as ours, pool.joined(slots, weight=1) as others:
        assert ours.take(0)
        assert others.take(0)
        assert ours.take(1)
        assert not ours.hold(1, 3)  # one slot each is in use, so 2 are free
        assert not others.take(1)
        assert not ours.hold(1, 3)
        others.rest(0)
        assert ours.hold(1, 3)
        assert not others.take(0)


def test_two_wide_assignments_do_not_block_each_other() -> None:
    pool = SlotPool(clock=lambda: 0.0)
    slots = SharedSlots(key="any", size=lambda: Fraction(1, 4), wake=lambda: None)
    with pool.joined(slots, weight=1) as ours, pool.joined(slots, weight=1) as others:
        assert ours.take(0)
        assert others.take(0)
        assert ours.hold(0, 3)
        assert not others.hold(0, 4)
        ours.rest(0)
        assert others.hold(0, 4)
        assert not ours.take(0)
