"""What every scheduler keeps to, whatever the order in which reports come back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_hpo.search.scheduler import Scheduler, Slot
from spark_hpo.search.schedulers.adaptive_asha import AdaptiveAshaScheduler
from spark_hpo.search.schedulers.asha import AshaScheduler, AsyncHyperbandScheduler
from spark_hpo.search.schedulers.full import FullScheduler
from spark_hpo.search.schedulers.hyperband import HyperbandScheduler
from spark_hpo.search.schedulers.median_stopping import MedianStoppingScheduler
from spark_hpo.search.schedulers.population_based import PopulationBasedScheduler
from spark_hpo.search.schedulers.successive_halving import SuccessiveHalvingScheduler

LOSSES = st.one_of(
    st.floats(-10, 10), st.sampled_from([0.0, 1.0]), st.sampled_from([math.inf, math.nan, -math.inf])
)

PROPERTY = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    # A contract is inherited: one test function, run by several classes.
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


@dataclass
class Play:
    """A study's side of the seam: `num_slots` at once, reports in an order that `data` chooses."""

    scheduler: Scheduler
    data: st.DataObject
    num_slots: int
    close_after: int | None = None
    events: list[tuple[Slot, float, list[int]] | Slot | list[int]] = field(default_factory=list)

    def to_the_end(self, losses: st.SearchStrategy[float] = LOSSES) -> Play:
        running: list[Slot] = []
        for _ in range(100_000):
            while len(running) < self.num_slots and (slot := self.scheduler.next_slot()):
                running.append(slot)
                self.events.append(slot)
            if self.close_after is not None and len(self.slots) >= self.close_after:
                self.close_after = None
                self.events.append(self.scheduler.close())
                continue
            if not running:
                break
            slot = running.pop(self.data.draw(st.integers(0, len(running) - 1)))
            loss = self.data.draw(losses)
            self.events.append((slot, loss, self.scheduler.report(slot, loss)))
        assert self.scheduler.is_done()
        return self

    @property
    def slots(self) -> list[Slot]:
        return [event for event in self.events if isinstance(event, Slot)]

    @property
    def reports(self) -> list[tuple[Slot, float, list[int]]]:
        return [event for event in self.events if isinstance(event, tuple)]

    @property
    def out(self) -> list[int]:
        returned = [e for e in self.events if isinstance(e, list)] + [out for _, _, out in self.reports]
        return [trial_id for batch in returned for trial_id in batch]


class SchedulerContract:
    """Every scheduler passes these. A subclass says how to build one of at most `max_trials` trials."""

    max_resource = 9

    def build(self, max_trials: int | None) -> Scheduler:
        raise NotImplementedError

    @given(data=st.data(), num_slots=st.integers(1, 8), max_trials=st.integers(1, 30))
    @PROPERTY
    def test_any_order_of_reports_comes_to_an_end(
        self, data: st.DataObject, num_slots: int, max_trials: int
    ) -> None:
        play = Play(self.build(max_trials), data, num_slots).to_the_end()
        assert play.scheduler.next_slot() is None
        assert len({slot.trial_id for slot in play.slots}) == max_trials

    @given(data=st.data(), num_slots=st.integers(1, 8), max_trials=st.integers(1, 30))
    @PROPERTY
    def test_no_slot_opens_twice_and_each_trial_goes_on_where_it_stood(
        self, data: st.DataObject, num_slots: int, max_trials: int
    ) -> None:
        play = Play(self.build(max_trials), data, num_slots).to_the_end()
        stands: dict[int, int] = {}  # resource that a trial has reported
        running: set[int] = set()
        for event in play.events:
            if isinstance(event, tuple):
                stands[event[0].trial_id] = event[0].resource_to
                running.remove(event[0].trial_id)
            if not isinstance(event, Slot):
                continue
            if event.is_new:
                assert event.trial_id == len(stands), "trials are numbered in the order of their first slots"
            assert event.trial_id not in running
            source = event.trial_id if event.parent is None else event.parent
            assert event.resource_from == stands.get(source, 0)
            assert event.resource_from < event.resource_to <= self.max_resource
            stands.setdefault(event.trial_id, 0)
            running.add(event.trial_id)

    @given(data=st.data(), num_slots=st.integers(1, 8), max_trials=st.integers(1, 30))
    @PROPERTY
    def test_every_trial_is_out_once_or_trained_to_the_end(
        self, data: st.DataObject, num_slots: int, max_trials: int
    ) -> None:
        play = Play(self.build(max_trials), data, num_slots).to_the_end()
        finished = [
            s.trial_id
            for s, loss, _ in play.reports
            if s.resource_to == self.max_resource and math.isfinite(loss)
        ]
        assert sorted(finished + play.out) == list(range(max_trials))
        assert all(out == sorted(out) for _, _, out in play.reports)

    @given(data=st.data(), num_slots=st.integers(1, 8))
    @PROPERTY
    def test_a_failure_is_out_at_once_and_never_promoted(self, data: st.DataObject, num_slots: int) -> None:
        play = Play(self.build(20), data, num_slots).to_the_end()
        failed = {s.trial_id: s.resource_to for s, loss, _ in play.reports if not math.isfinite(loss)}
        for slot, loss, out in play.reports:
            assert (slot.trial_id in out) >= (not math.isfinite(loss))
            assert slot.resource_to <= failed.get(slot.trial_id, self.max_resource)

    @given(data=st.data(), num_slots=st.integers(1, 8), close_after=st.integers(0, 25))
    @PROPERTY
    def test_after_close_no_trial_starts_and_one_is_trained_to_the_end(
        self, data: st.DataObject, num_slots: int, close_after: int
    ) -> None:
        play = Play(self.build(None), data, num_slots, close_after).to_the_end(st.floats(-1, 1))
        closed = next(i for i, event in enumerate(play.events) if isinstance(event, list))
        assert not any(isinstance(e, Slot) and e.is_new for e in play.events[closed:])
        started = {slot.trial_id for slot in play.slots}
        finished = {slot.trial_id for slot in play.slots if slot.resource_to == self.max_resource}
        assert bool(finished) == bool(started)
        assert play.scheduler.close() == []

    @given(data=st.data(), num_slots=st.integers(1, 8), close_after=st.none() | st.integers(0, 15))
    @PROPERTY
    def test_a_record_replayed_rebuilds_the_scheduler(
        self, data: st.DataObject, num_slots: int, close_after: int | None
    ) -> None:
        play = Play(self.build(20), data, num_slots, close_after).to_the_end()
        again = self.build(20)
        for event in play.events:
            if isinstance(event, Slot):
                assert again.next_slot() == event
            elif isinstance(event, tuple):
                assert again.report(event[0], event[1]) == event[2]
            else:
                assert again.close() == event
        assert again.is_done()

    def test_waiting_changes_nothing(self) -> None:
        scheduler = self.build(1)
        slot = scheduler.next_slot()
        assert slot is not None
        assert scheduler.next_slot() is scheduler.next_slot() is None
        assert not scheduler.is_done()
        scheduler.report(slot, math.inf)
        assert scheduler.is_done()

    def test_it_says_how_far_a_trial_can_be_trained(self) -> None:
        assert self.build(None).max_resource == self.max_resource


class TestFullScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return FullScheduler(9, max_trials)


class TestSuccessiveHalvingScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return SuccessiveHalvingScheduler(num_trials=9, max_resource=9, max_trials=max_trials)


class TestHyperbandScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return HyperbandScheduler(9, max_trials=max_trials)


class TestAshaScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return AshaScheduler(9, max_trials=max_trials)


class TestAdaptiveAshaScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return AdaptiveAshaScheduler(9, num_probes=5, reduction_factor=2, max_trials=max_trials)


class TestAdaptiveAshaOfFourRungs(SchedulerContract):
    max_resource = 16

    def build(self, max_trials: int | None) -> Scheduler:
        # No ranking agrees so well: the entry moves up as far as it can.
        return AdaptiveAshaScheduler(
            16, reduction_factor=2, num_probes=5, least_agreement=1.0, max_trials=max_trials
        )


class TestAsyncHyperbandScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return AsyncHyperbandScheduler(9, max_trials=max_trials)


class TestMedianStoppingScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return MedianStoppingScheduler(9, 2, max_trials=max_trials)


class TestPopulationBasedScheduler(SchedulerContract):
    def build(self, max_trials: int | None) -> Scheduler:
        return PopulationBasedScheduler(9, 2, population_size=4, max_trials=max_trials)


class TestHyperbandOfTwo(SchedulerContract):
    max_resource = 10

    def build(self, max_trials: int | None) -> Scheduler:
        return HyperbandScheduler(10, 2, reduction_factor=2, max_trials=max_trials, rounding="ceiling")
