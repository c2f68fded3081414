"""The contract of schedulers, for any order in which reports come back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_hpo.search.scheduler import Scheduler, Slot

_LOSSES = st.one_of(
    st.floats(-10, 10), st.sampled_from([0.0, 1.0]), st.sampled_from([math.inf, math.nan, -math.inf])
)
_SLOTS, _TRIALS = st.integers(1, 8), st.integers(1, 30)
_PROPERTY = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    # Several classes inherit one test function.
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


@dataclass
class _StudyLoop:
    """The driver's side: `num_slots` trials at a time, reports in an order drawn by `data`."""

    scheduler: Scheduler
    data: st.DataObject
    num_slots: int
    close_after: int | None = None  # slots
    drops: float = 0.0  # share of the reports after which a trial that waits is dropped
    events: list[tuple[Slot, float, list[int]] | Slot | list[int]] = field(default_factory=list)
    dropped: dict[int, int] = field(default_factory=dict)  # by trial: the number of events before

    def run(self, losses: st.SearchStrategy[float] = _LOSSES) -> _StudyLoop:
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
            if self.drops and self.data.draw(st.floats(0, 1)) < self.drops:
                self._drop({other.trial_id for other in running})
        assert self.scheduler.is_done()
        return self

    def _drop(self, running: set[int]) -> None:
        waiting = sorted({slot.trial_id for slot in self.slots} - running)
        trial_id = self.data.draw(st.sampled_from(waiting))
        out = self.scheduler.drop(trial_id)
        if out:
            assert trial_id in out
            assert out == sorted(out)
            self.dropped[trial_id] = len(self.events)
            self.events.append(out)

    @property
    def slots(self) -> list[Slot]:
        return [event for event in self.events if isinstance(event, Slot)]

    @property
    def reports(self) -> list[tuple[Slot, float, list[int]]]:
        return [event for event in self.events if isinstance(event, tuple)]

    @property
    def out(self) -> list[int]:
        returned = [e for e in self.events if isinstance(e, list)] + [out for _, _, out in self.reports]
        return [trial_id for trials in returned for trial_id in trials]


class SchedulerContract:
    """Tests that every scheduler passes. A subclass implements `build`."""

    max_resource = 9

    def build(self, max_trials: int | None) -> Scheduler:
        """Return a new scheduler with `max_resource`. Called several times per test."""
        raise NotImplementedError

    @given(data=st.data(), num_slots=_SLOTS, max_trials=_TRIALS)
    @_PROPERTY
    def test_study_ends_after_max_trials(self, data: st.DataObject, num_slots: int, max_trials: int) -> None:
        loop = _StudyLoop(self.build(max_trials), data, num_slots).run()
        assert loop.scheduler.next_slot() is None
        assert len({slot.trial_id for slot in loop.slots}) == max_trials

    @given(data=st.data(), num_slots=_SLOTS, max_trials=_TRIALS)
    @_PROPERTY
    def test_slot_opens_once_and_continues_from_the_last_report(
        self, data: st.DataObject, num_slots: int, max_trials: int
    ) -> None:
        loop = _StudyLoop(self.build(max_trials), data, num_slots).run()
        reached: dict[int, int] = {}  # resource that a trial has reported
        running: set[int] = set()
        for event in loop.events:
            if isinstance(event, tuple):
                reached[event[0].trial_id] = event[0].resource_to
                running.remove(event[0].trial_id)
            if not isinstance(event, Slot):
                continue
            if event.is_new:
                assert event.trial_id == len(reached), "trials are numbered in the order of their first slots"
            assert event.trial_id not in running
            source = event.trial_id if event.parent is None else event.parent
            assert event.resource_from == reached.get(source, 0)
            assert event.resource_from < event.resource_to <= self.max_resource
            reached.setdefault(event.trial_id, 0)
            running.add(event.trial_id)

    @given(data=st.data(), num_slots=_SLOTS, max_trials=_TRIALS)
    @_PROPERTY
    def test_every_trial_is_out_once_or_fully_trained(
        self, data: st.DataObject, num_slots: int, max_trials: int
    ) -> None:
        loop = _StudyLoop(self.build(max_trials), data, num_slots).run()
        trained = [
            slot.trial_id
            for slot, loss, _ in loop.reports
            if slot.resource_to == self.max_resource and math.isfinite(loss)
        ]
        assert sorted(trained + loop.out) == list(range(max_trials))
        assert all(out == sorted(out) for _, _, out in loop.reports)

    @given(data=st.data(), num_slots=_SLOTS)
    @_PROPERTY
    def test_failed_trial_is_out_at_once_and_never_promoted(
        self, data: st.DataObject, num_slots: int
    ) -> None:
        loop = _StudyLoop(self.build(20), data, num_slots).run()
        failed = {
            slot.trial_id: slot.resource_to for slot, loss, _ in loop.reports if not math.isfinite(loss)
        }
        for slot, loss, out in loop.reports:
            assert math.isfinite(loss) or slot.trial_id in out
            assert slot.resource_to <= failed.get(slot.trial_id, self.max_resource)

    @given(data=st.data(), num_slots=_SLOTS, max_trials=_TRIALS)
    @_PROPERTY
    def test_dropped_trial_gets_no_slot_and_nothing_waits_for_it(
        self, data: st.DataObject, num_slots: int, max_trials: int
    ) -> None:
        scheduler = self.build(max_trials)
        if not hasattr(scheduler, "drop"):
            return
        loop = _StudyLoop(scheduler, data, num_slots, drops=0.3).run(st.floats(-1, 1))
        for trial_id, count in loop.dropped.items():
            later = [event for event in loop.events[count:] if isinstance(event, Slot)]
            assert trial_id not in {slot.trial_id for slot in later}
        trained = [slot.trial_id for slot, _, _ in loop.reports if slot.resource_to == self.max_resource]
        assert sorted(trained + loop.out) == list(range(max_trials))

    @given(data=st.data(), num_slots=_SLOTS, close_after=st.integers(0, 25))
    @_PROPERTY
    def test_close_stops_new_trials_and_still_trains_one_fully(
        self, data: st.DataObject, num_slots: int, close_after: int
    ) -> None:
        loop = _StudyLoop(self.build(None), data, num_slots, close_after).run(st.floats(-1, 1))
        closed = next(i for i, event in enumerate(loop.events) if isinstance(event, list))
        assert not any(isinstance(event, Slot) and event.is_new for event in loop.events[closed:])
        started = {slot.trial_id for slot in loop.slots}
        trained = {slot.trial_id for slot in loop.slots if slot.resource_to == self.max_resource}
        assert bool(trained) == bool(started)
        assert loop.scheduler.close() == []

    @given(data=st.data(), num_slots=_SLOTS, close_after=st.none() | st.integers(0, 15))
    @_PROPERTY
    def test_replay_gives_the_same_decisions(
        self, data: st.DataObject, num_slots: int, close_after: int | None
    ) -> None:
        loop = _StudyLoop(self.build(20), data, num_slots, close_after).run()
        resumed = self.build(20)
        for event in loop.events:
            if isinstance(event, Slot):
                assert resumed.next_slot() == event
            elif isinstance(event, tuple):
                assert resumed.report(event[0], event[1]) == event[2]
            else:
                assert resumed.close() == event
        assert resumed.is_done()

    def test_next_slot_without_work_changes_nothing(self) -> None:
        scheduler = self.build(1)
        slot = scheduler.next_slot()
        assert slot is not None
        assert scheduler.next_slot() is scheduler.next_slot() is None
        assert not scheduler.is_done()
        scheduler.report(slot, math.inf)
        assert scheduler.is_done()

    def test_max_resource_is_what_it_was_built_with(self) -> None:
        assert self.build(None).max_resource == self.max_resource
