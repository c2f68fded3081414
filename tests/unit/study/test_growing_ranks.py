"""Assignments of high rungs take several slots: none starves, and none runs without all of its slots."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from spark_hpo.backend.base import RanksByRung
from spark_hpo.errors import CapacityError
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Assignment, Report, TrialState
from tests.support.study_bench import RETRY_AT_ONCE, ConcurrentBackend, Killed, StudyRunner, Training

RANKS = RanksByRung.of({0: 1, 1: 2, 2: 4})
POLICY = replace(RETRY_AT_ONCE, ranks=RANKS)


class SlotsBackend(ConcurrentBackend):
    """Fails the test if assignments use more slots than there are."""

    def __init__(self, training: Training, seed: int) -> None:
        super().__init__(training, seed)
        self.shared_slots = None
        self.submitted: list[tuple[int, int, int]] = []
        self.full = 0

    def submit(self, assignment: Assignment) -> None:
        super().submit(assignment)
        used = sum(RANKS.slots(a.rung) for a in self.running)
        assert used <= self.num_slots, f"{used} of {self.num_slots} slots"
        self.full += used == self.num_slots
        self.submitted.append((assignment.trial_id, assignment.rung, assignment.attempt))


@pytest.fixture
def bench(tmp_path: Path) -> StudyRunner:
    return StudyRunner(tmp_path / "study")


def assigned(bench: StudyRunner) -> list[tuple[int, int, int]]:
    assert bench.journal is not None
    bench.journal.close()
    bench.journal = Journal.open(bench.storage, bench.objective)
    found = [event.assignment for event in bench.journal.past if event.kind is EventKind.ASSIGNED]
    return [(a.trial_id, a.rung, a.attempt) for a in found]


def test_ranks_by_rung_grow_from_each_rung_that_is_named() -> None:
    ranks = RanksByRung.of({3: 8, 0: 2})
    assert [ranks.ranks(rung) for rung in range(5)] == [2, 2, 2, 8, 8]
    assert [ranks.slots(rung) for rung in (0, 3)] == [1, 4]
    assert (ranks.fewest, ranks.most) == (2, 8)
    assert RanksByRung.of(3).slots(7) == 1


@pytest.mark.parametrize("scheduler", ["hyperband", "asha", "adaptive_asha"])
def test_study_starts_assignments_in_the_order_of_its_decisions(bench: StudyRunner, scheduler: str) -> None:
    """So no narrow assignment overtakes a wide one that waits for its slots."""
    backend = SlotsBackend(bench.training, seed=3)
    study = bench.study(scheduler=scheduler, trials=18, backend=backend, policy=POLICY)
    assert study.run() == "trials"
    assert backend.full
    assert {rung for _, rung, _ in backend.submitted} == {0, 1, 2}
    states = {trial.state for trial in study.trials.values()}
    assert states == {TrialState.COMPLETED, TrialState.STOPPED}
    assert backend.submitted == assigned(bench)


@pytest.mark.parametrize("kill_after", range(4, 20, 3))
def test_study_resumes_with_the_decisions_made_while_an_assignment_was_held(
    bench: StudyRunner, kill_after: int
) -> None:
    bench.training.kill_after = kill_after
    with pytest.raises(Killed):
        bench.study(
            scheduler="asha", trials=18, backend=SlotsBackend(bench.training, seed=kill_after), policy=POLICY
        ).run()
    bench.training.kill_after = None
    backend = SlotsBackend(bench.training, seed=1)
    study = bench.study(scheduler="asha", trials=18, backend=backend, policy=POLICY)
    assert study.run() == "trials"
    assert len(study.trials) == 18


def test_interrupt_while_an_assignment_is_held_loses_nothing(bench: StudyRunner) -> None:
    backend = SlotsBackend(bench.training, seed=3)

    def is_held() -> bool:
        assert bench.journal is not None
        return len(bench.journal.trials) > 3 and len(study.progress.running) > len(backend.running)

    policy = replace(POLICY, interrupted=is_held)
    study = bench.study(scheduler="asha", trials=18, backend=backend, policy=policy)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    last = assigned(bench)[-1]
    assert last not in backend.submitted
    resumed = SlotsBackend(bench.training, seed=3)
    assert bench.study(scheduler="asha", trials=18, backend=resumed, policy=POLICY).run() == "trials"
    trial_id, rung, attempt = last
    assert (trial_id, rung, attempt + 1) in resumed.submitted


def test_study_without_the_slots_for_a_wide_assignment_ends(bench: StudyRunner) -> None:
    class Shrinking(SlotsBackend):
        def wait(self, timeout: float) -> Report | None:
            if len(self.submitted) > 9:
                self.num_slots = 2
            return super().wait(timeout)

    seconds = itertools.count()
    study = bench.study(
        scheduler="asha",
        trials=18,
        backend=Shrinking(bench.training, seed=3),
        policy=replace(POLICY, slot_timeout_s=30.0),
        clock=lambda: float(next(seconds)),
    )
    with pytest.raises(CapacityError):
        study.run()
