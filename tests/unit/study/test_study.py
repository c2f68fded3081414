"""The driver loop, on the inline backend and the real journal; training is a formula."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.backend.base import SharedSlots
from spark_hpo.backend.inline import InlineBackend
from spark_hpo.backend.sharing import SlotPool
from spark_hpo.errors import (
    CapacityError,
    ConfigError,
    DataError,
    NoTrialSucceeded,
    StorageError,
    TooManyFailures,
)
from spark_hpo.objective import BestRule, Choice
from spark_hpo.search.registry import build_explorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.synchronous import FullScheduler
from spark_hpo.search.stopping import TargetReached
from spark_hpo.study import Budget, Study
from spark_hpo.study.dispatch import DispatchPolicy
from spark_hpo.study.failures import FailurePolicy
from spark_hpo.study.supervision import Supervisor
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import (
    Assignment,
    Failure,
    FailureKind,
    Report,
    Split,
    TrialState,
)
from tests.support.study_bench import (
    LOSS,
    RETRY_AT_ONCE,
    SPACE,
    ConcurrentBackend,
    Killed,
    StudyRunner,
    Training,
)


@pytest.fixture
def bench(tmp_path: Path) -> StudyRunner:
    return StudyRunner(tmp_path / "study")


def test_study_spends_the_budget_of_hyperbands_brackets(bench: StudyRunner) -> None:
    study = bench.study()
    assert study.run() == "trials"
    # Brackets of 9/3/1, 3/1 and 3 trials for R = 9, eta = 3; a promoted trial resumes from its checkpoint.
    assert study.progress.resource_spent == (9 * 1 + 3 * 2 + 1 * 6) + (3 * 3 + 1 * 6) + 3 * 9
    assert study.progress.run == 13 + 4 + 3


def test_best_is_the_trial_with_the_lowest_loss(bench: StudyRunner) -> None:
    study = bench.study()
    study.run()
    assert study.best is not None
    assert bench.journal is not None
    assert study.best.loss == min(trial.loss for trial in bench.journal.trials.values())


def test_trials_end_completed_or_stopped(bench: StudyRunner) -> None:
    bench.study().run()
    assert bench.journal is not None
    states = {trial.state for trial in bench.journal.trials.values()}
    assert states == {TrialState.COMPLETED, TrialState.STOPPED}
    completed = [t for t in bench.journal.trials.values() if t.state is TrialState.COMPLETED]
    assert {trial.resource for trial in completed} == {9}
    assert len(completed) == 1 + 1 + 3


def test_study_keeps_only_the_best_checkpoint_at_the_end(bench: StudyRunner) -> None:
    study = bench.study()
    study.run()
    assert study.best is not None
    assert bench.checkpoints == {study.best.checkpoint}


def test_study_continues_after_failed_trials(bench: StudyRunner) -> None:
    def even_ones(assignment: Assignment) -> Failure | None:
        if assignment.trial_id % 2 == 0:
            return Failure(kind=FailureKind.TRIAL, message="ValueError: no", traceback="Traceback")
        return None

    bench.training.fail = even_ones
    study = bench.study()
    study.run()
    assert bench.journal is not None
    for trial in bench.journal.trials.values():
        assert (trial.state is TrialState.FAILED) == (trial.trial_id % 2 == 0)
    assert study.progress.failed == 8
    assert all(a.rung == 0 for a in bench.training.asked if a.trial_id % 2 == 0)
    assert all(a.attempt == 1 for a in bench.training.asked)


def test_study_whose_trials_all_fail_names_the_reason(bench: StudyRunner) -> None:
    failure = Failure(kind=FailureKind.TRIAL, message="ValueError: no such thing")
    bench.training.fail = lambda assignment: failure
    with pytest.raises(NoTrialSucceeded, match=r"all 15 trials .* ValueError: no such thing"):
        bench.study().run()


def test_study_ends_at_once_when_data_is_damaged(bench: StudyRunner) -> None:
    failure = Failure(kind=FailureKind.DATA, message="part-0.parquet: row group 3: NaN in 'x'")
    bench.training.fail = lambda assignment: failure
    with pytest.raises(DataError, match=r"part-0\.parquet"):
        bench.study().run()
    assert len(bench.training.asked) == 1


def test_lost_assignment_is_retried_and_counted_once(bench: StudyRunner) -> None:
    lost = Failure(kind=FailureKind.INFRASTRUCTURE, message="executor lost")
    bench.training.fail = lambda a: lost if (a.trial_id, a.rung, a.attempt) == (0, 0, 1) else None
    study = bench.study()
    study.run()
    attempts = [a.attempt for a in bench.training.asked if (a.trial_id, a.rung) == (0, 0)]
    assert attempts == [1, 2]
    assert study.progress.failed == 0
    assert study.progress.run == 20


def test_lost_assignment_fails_its_trial_after_all_retries(bench: StudyRunner) -> None:
    lost = Failure(kind=FailureKind.INFRASTRUCTURE, message="executor lost")
    bench.training.fail = lambda a: lost if a.trial_id == 0 else None
    study = bench.study()
    study.run()
    assert [a.attempt for a in bench.training.asked if a.trial_id == 0] == [1, 2, 3]
    assert study.progress.failed == 1


def test_assignment_whose_ranks_find_no_slots_is_retried_until_they_do(bench: StudyRunner) -> None:
    crowded = Failure(kind=FailureKind.CAPACITY, message="too few slots")
    bench.training.fail = lambda a: crowded if a.trial_id == 0 and a.rung == 0 and a.attempt < 6 else None
    seconds = itertools.count()
    study = bench.study(clock=lambda: float(next(seconds)))
    study.run()
    assert study.progress.failed == 0, "not an error of the trial, however often"
    assert study.progress.run == 20


def test_study_ends_when_no_assignment_finds_slots_for_its_ranks(bench: StudyRunner) -> None:
    crowded = Failure(kind=FailureKind.CAPACITY, message="too few slots")
    bench.training.fail = lambda a: crowded if len(bench.training.asked) > 4 else None
    seconds = itertools.count()
    with pytest.raises(CapacityError, match="too few slots"):
        bench.study(
            clock=lambda: float(next(seconds)), policy=replace(RETRY_AT_ONCE, slot_timeout_s=100.0)
        ).run()


def test_study_waits_for_its_share_and_records_it(bench: StudyRunner) -> None:
    pool = SlotPool()
    quarter = SharedSlots(key="test", size=lambda: Fraction(1, 4), wake=lambda: None)
    with pool.joined(quarter, weight=1.0) as other, pool.joined(quarter, weight=3.0) as share:
        assert [other.take(running) for running in range(4)] == [True] * 4
        waited = threading.Event()
        policy = replace(RETRY_AT_ONCE, share=share, interrupted=waited.is_set)
        study = bench.study(backend=ConcurrentBackend(bench.training, 0), policy=policy)
        assert bench.journal is not None
        timer = threading.Timer(0.2, waited.set)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            study.run()
        assert bench.training.asked == []
        other.rest(1)
        study = bench.study(
            backend=ConcurrentBackend(bench.training, 0), policy=replace(policy, interrupted=bool)
        )
        assert study.run() == "trials"
        counts = [event.data for event in Journal(bench.storage, LOSS).past if event.kind is EventKind.SLOTS]
        assert counts == [{"slots": 3, "of": 4, "shared_with": 1}] * 2


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("killed_after", [0, 1, 5, 12, 19])
def test_resume_after_a_kill_changes_only_the_attempt(
    tmp_path: Path, killed_after: int, sampler: str
) -> None:
    undisturbed = StudyRunner(tmp_path / "undisturbed")
    expected = undisturbed.study(sampler=sampler)
    expected.run()

    bench = StudyRunner(tmp_path / "killed")
    bench.training.kill_after = killed_after
    with pytest.raises(Killed):
        bench.study(sampler=sampler).run()
    bench.training.kill_after = None
    resumed = bench.study(sampler=sampler)
    resumed.run()

    assert resumed.progress.replayed == killed_after
    assert resumed.progress.run == 20 - killed_after
    reported = [(a.trial_id, a.resource_to) for a in bench.training.asked]
    assert len(reported) == len(set(reported)), "no reported assignment runs twice"
    assert [(a.trial_id, a.params, a.resource_to, a.seed) for a in bench.training.asked] == [
        (a.trial_id, a.params, a.resource_to, a.seed) for a in undisturbed.training.asked
    ]
    assert resumed.best is not None
    assert expected.best is not None
    assert resumed.best.params == expected.best.params
    assert bench.checkpoints == {resumed.best.checkpoint}


@pytest.mark.medium
def test_resume_after_a_kill_at_any_journal_write_keeps_all_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Journal._append
    for killed_at in range(1, 30):
        bench = StudyRunner(tmp_path / str(killed_at))
        writes = 0

        def append(journal: Journal, *arguments: Any, limit: int = killed_at) -> None:
            nonlocal writes
            writes += 1
            if writes == limit:
                raise Killed
            original(journal, *arguments)

        monkeypatch.setattr(Journal, "_append", append)
        with pytest.raises(Killed):
            bench.study().run()
        monkeypatch.setattr(Journal, "_append", original)
        study = bench.study()
        study.run()
        assert bench.journal is not None
        # The reader of the whole journal finds each assignment reported once.
        events = Journal(bench.storage, LOSS).past
        reports = [(e.report.trial_id, e.report.rung) for e in events if e.kind is EventKind.REPORTED]
        assert len(reports) == len(set(reports)) == 20
        assert study.progress.run + study.progress.replayed == 20


def test_finished_study_runs_nothing_again(bench: StudyRunner) -> None:
    bench.study().run()
    asked = len(bench.training.asked)
    again = bench.study()
    assert again.run() == "trials"
    assert len(bench.training.asked) == asked
    assert again.progress.replayed == 20


def test_resume_with_other_settings_is_refused(bench: StudyRunner) -> None:
    bench.study().run()
    with pytest.raises(StorageError, match="journal"):
        bench.study(scheduler="full").resume()


def test_budget_of_resource_ends_a_study(bench: StudyRunner) -> None:
    study = bench.study(trials=None, budget=Budget(resource=10))
    assert study.run() == "resource"
    assert 10 <= study.progress.resource_spent < 10 + 9


def test_budget_of_seconds_ends_a_study(bench: StudyRunner) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    study = bench.study(trials=None, budget=Budget(seconds=30), clock=clock)
    assert study.run() == "seconds"
    assert 0 < study.progress.run <= 30


def test_study_evaluates_the_test_split_once(bench: StudyRunner) -> None:
    study = bench.study()
    study.run()
    assert study.best is not None
    first = study.test(study.best)
    assert study.test(study.best) == first
    again = bench.study()
    again.run()
    assert again.best is not None
    assert again.test(again.best) == first
    assert [a.split for a in bench.training.asked].count(Split.TEST) == 1


def test_objective_turns_missing_metrics_into_infinite_losses(bench: StudyRunner) -> None:
    assert LOSS.loss({"loss": math.nan}) == math.inf
    assert LOSS.loss({}) == math.inf


def test_best_keeps_the_checkpoint_of_a_trial_that_became_worse(bench: StudyRunner) -> None:
    """The model at the lower rung stays the best, although its trial was promoted."""
    original = bench.training.__class__.__call__

    def worsening(training: Training, assignment: Assignment, **rank: Any) -> Report:
        report = original(training, assignment, **rank)
        loss = assignment.params["x"] ** 2 + assignment.resource_to
        return dataclasses.replace(report, metrics={"loss": loss})

    bench.training.__class__ = type("Worsening", (Training,), {"__call__": worsening})
    anything = Choice(rule=BestRule.ANY)
    study = bench.study(choice=anything)
    study.run()
    assert study.best is not None
    assert bench.journal is not None
    assert study.best.resource == 1
    assert bench.journal.trials[study.best.trial_id].resource > 1, "it was promoted"
    assert bench.checkpoints == {study.best.checkpoint}
    study.test(study.best)
    assert bench.training.asked[-1].checkpoint == study.best.checkpoint
    again = bench.study(choice=anything)
    again.resume()
    assert again.best is not None
    for name in ("trial_id", "resource", "loss", "checkpoint", "rung"):
        assert getattr(again.best, name) == getattr(study.best, name), "a resumed study knows it too"


def population(bench: StudyRunner, *, explorer: str = "perturbation", **settings: Any) -> Study:
    # From few segments on, so that the model is asked in these short studies too.
    explore = {"num_startup_segments": 2} if explorer == "pb2" else {}
    return bench.study(
        scheduler="population_based",
        scheduler_settings={"interval": 2, "population_size": 4},
        explorer=build_explorer(explorer, SPACE, 0, **explore),
        **settings,
    )


def children(bench: StudyRunner) -> list[Assignment]:
    """The first assignments of trials that started from a parent's checkpoint."""
    first = {a.trial_id: a for a in reversed(bench.training.asked)}
    return [a for a in first.values() if a.resource_from > 0]


def test_child_starts_from_the_checkpoint_of_its_parent(bench: StudyRunner) -> None:
    population(bench).run()
    asked = bench.training.asked
    assert children(bench)
    for child in children(bench):
        assert child.checkpoint is not None
        parent = int(child.checkpoint.split("/")[1].removeprefix("trial-"))
        before = asked[: asked.index(child)]
        ahead = [a for a in before if a.trial_id == parent][-1]
        assert parent != child.trial_id
        assert child.resource_from == ahead.resource_to, "it starts where its parent stands"
        assert child.params != ahead.params, "it explores"
    longest = max(bench.training.asked, key=lambda a: a.resource_to)
    assert longest.resource_to == 9


@pytest.mark.parametrize("seed", range(6))
def test_checkpoint_of_a_parent_is_kept_until_its_child_has_loaded_it(bench: StudyRunner, seed: int) -> None:
    # Training refuses an assignment whose checkpoint is gone; here parents train on, or are out, while
    # their children still wait.
    study = population(bench, trials=40, backend=ConcurrentBackend(bench.training, seed))
    study.run()
    assert len(children(bench)) >= 3
    assert study.best is not None
    assert bench.checkpoints == {study.best.checkpoint}


@pytest.mark.medium
@pytest.mark.parametrize("explorer", ["perturbation", "pb2"])
@pytest.mark.parametrize("killed_after", [0, 3, 7, 12, 20, 31])
def test_resume_after_a_kill_rebuilds_the_population(
    tmp_path: Path, killed_after: int, explorer: str
) -> None:
    undisturbed = StudyRunner(tmp_path / "undisturbed")
    population(undisturbed, explorer=explorer).run()

    bench = StudyRunner(tmp_path / "killed")
    bench.training.kill_after = killed_after
    with pytest.raises(Killed):
        population(bench, explorer=explorer).run()
    bench.training.kill_after = None
    population(bench, explorer=explorer).run()
    assert [(a.trial_id, a.params, a.resource_from, a.resource_to) for a in bench.training.asked] == [
        (a.trial_id, a.params, a.resource_from, a.resource_to) for a in undisturbed.training.asked
    ]


@pytest.mark.parametrize("killed_after", [5, 11, 17, 23])
def test_resume_keeps_the_parents_checkpoint_of_a_child_in_flight(
    bench: StudyRunner, killed_after: int
) -> None:
    bench.training.kill_after = killed_after
    with pytest.raises(Killed):
        population(bench, trials=40, backend=ConcurrentBackend(bench.training, 1)).run()
    bench.training.kill_after = None
    study = population(bench, trials=40, backend=ConcurrentBackend(bench.training, 2))
    study.run()
    assert study.best is not None
    assert bench.checkpoints == {study.best.checkpoint}


def test_stopping_rule_ends_a_study_and_is_its_reason(bench: StudyRunner) -> None:
    study = bench.study(trials=None, budget=Budget(), stopping=[TargetReached(0.6)])
    assert study.run() == "target"
    assert study.best is not None
    assert study.best.loss <= 0.6
    again = bench.study(trials=None, budget=Budget(), stopping=[TargetReached(0.6)])
    asked = len(bench.training.asked)
    assert again.run() == "target"
    assert len(bench.training.asked) == asked, "a replay comes to the same end"


def test_enqueued_configurations_run_first(bench: StudyRunner) -> None:
    journal_first = [{"x": 0.5}, {"x": -0.25}]
    study = bench.study(sampler_settings={"enqueue": journal_first})
    study.run()
    params = {a.trial_id: a.params for a in bench.training.asked}
    assert [params[0], params[1]] == journal_first


@pytest.mark.medium
@pytest.mark.parametrize("killed_after", [4, 18])
@pytest.mark.parametrize(
    "scheduler", ["full", "successive_halving", "asha", "adaptive_asha", "async_hyperband", "median_stopping"]
)
def test_schedulers_resume_with_the_same_decisions(tmp_path: Path, scheduler: str, killed_after: int) -> None:
    undisturbed = StudyRunner(tmp_path / "undisturbed")
    undisturbed.study(sampler="tpe", scheduler=scheduler, trials=30).run()

    bench = StudyRunner(tmp_path / "killed")
    bench.training.kill_after = killed_after
    with pytest.raises(Killed):
        bench.study(sampler="tpe", scheduler=scheduler, trials=30).run()
    bench.training.kill_after = None
    bench.study(sampler="tpe", scheduler=scheduler, trials=30).run()
    assert [(a.trial_id, a.params, a.resource_to) for a in bench.training.asked] == [
        (a.trial_id, a.params, a.resource_to) for a in undisturbed.training.asked
    ]
    assert bench.checkpoints == undisturbed.checkpoints or len(bench.checkpoints) == 1


class Vanishing(InlineBackend):
    """A cluster that has no slot from time to time."""

    def __init__(self, *arguments: Any, without: int) -> None:
        super().__init__(*arguments)
        self.without = without

    @property
    def num_slots(self) -> int:  # type: ignore[override]
        self.without -= 1
        return 0 if self.without > 0 else 1


def test_study_waits_while_the_cluster_has_no_slot(bench: StudyRunner) -> None:
    study = bench.study()
    study._slots.backend = Vanishing(bench.training, without=5)
    assert study.run() == "trials"
    assert study.progress.run == 20


class Shrinking(ConcurrentBackend):
    """A cluster that loses two of its slots after five assignments."""

    @property
    def num_slots(self) -> int:  # type: ignore[override]
        return 4 if len(self.training.asked) < 5 else 2


def test_study_journals_changes_of_the_number_of_slots(bench: StudyRunner) -> None:
    study = bench.study(
        backend=Shrinking(bench.training, seed=0), policy=replace(RETRY_AT_ONCE, max_concurrent=3)
    )
    assert study.run() == "trials"
    slots = [e.data["slots"] for e in Journal(bench.storage, LOSS).past if e.kind is EventKind.SLOTS]
    assert slots == [3, 2]


def test_study_without_a_slot_for_too_long_is_an_error(bench: StudyRunner) -> None:
    now = itertools.count(0.0, 100.0)
    study = bench.study(clock=lambda: next(now))
    study._slots.backend = Vanishing(bench.training, without=1_000)
    with pytest.raises(CapacityError, match=r"600 s"):
        study.run()
    bench.study().run()


def test_interrupted_study_resumes_what_was_running(bench: StudyRunner) -> None:
    """Running trials are asked to stop and report that they did; the next driver restarts them."""
    asked = threading.Event()
    stopped = Failure(kind=FailureKind.INTERRUPTED, message="stopped, as the driver has asked")

    def answer(assignment: Assignment) -> Failure | None:
        if len(bench.training.asked) < 6:
            return None
        asked.set()
        return stopped

    bench.training.fail = answer
    with pytest.raises(KeyboardInterrupt):
        bench.study(policy=replace(RETRY_AT_ONCE, interrupted=asked.is_set)).run()
    assert bench.storage.read(layout.STOP) is None
    bench.training.fail = lambda assignment: None
    study = bench.study()
    study.run()
    assert study.progress.run + study.progress.replayed == 20
    assert study.progress.failed == 0
    again = bench.training.asked[6]
    assert (again.trial_id, again.attempt) == (bench.training.asked[5].trial_id, 2)


def test_study_deletes_signals_of_a_killed_driver(bench: StudyRunner) -> None:
    bench.storage.write(layout.STOP, b"")
    bench.storage.write(layout.progress(0, 1), b"7")
    bench.storage.write(layout.stacks(0, 1, 1), b"no step")
    bench.study().run()
    assert bench.storage.read(layout.STOP) is None
    assert bench.storage.names(layout.PROGRESS, hidden=True) == []


def test_study_deletes_late_progress_of_a_lost_attempt(bench: StudyRunner) -> None:
    def fail(assignment: Assignment) -> Failure | None:
        bench.storage.write(layout.stacks(0, 1, 1), b"no step")  # its peer had ended the attempt before
        return None

    bench.training.fail = fail
    bench.study().run()
    assert bench.storage.names(layout.PROGRESS, hidden=True) == []


def test_interrupt_asks_ranks_to_save_their_state(bench: StudyRunner) -> None:
    seen: list[bytes | None] = []
    backend = ConcurrentBackend(bench.training, 0)
    take = backend.wait

    def wait(timeout: float) -> Report | None:
        seen.append(bench.storage.read(layout.STOP))
        return take(timeout)

    backend.wait = wait  # type: ignore[method-assign]
    requests = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        bench.study(
            backend=backend, policy=replace(RETRY_AT_ONCE, interrupted=lambda: next(requests, True))
        ).run()
    assert seen == [None, None, *[b""] * (len(seen) - 2)]
    assert len(seen) > 3, "others were still running"
    assert bench.journal is not None
    assert len(seen) == len(bench.training.asked)
    assert not backend.running


def test_interrupt_waits_for_ranks_no_longer_than_the_grace_period(bench: StudyRunner) -> None:
    backend = ConcurrentBackend(bench.training, 0)
    backend.wait = lambda timeout: None  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.study(
            backend=backend, policy=replace(RETRY_AT_ONCE, interrupted=lambda: True, grace_s=0.05)
        ).run()
    assert backend.running == []


def test_retry_fences_off_the_lost_attempt_and_deletes_its_files(bench: StudyRunner) -> None:
    lost = Failure(kind=FailureKind.INFRASTRUCTURE, message="executor lost")

    def lose(assignment: Assignment) -> Failure | None:
        if (assignment.trial_id, assignment.rung, assignment.attempt) != (0, 0, 1):
            return None
        bench.storage.write(layout.partial(0, 1), b"what it had")
        return lost

    bench.training.fail = lose
    study = bench.study()
    study.run()
    assert bench.storage.read(layout.fence(0, rung=0)) == b"2"
    assert study.best is not None
    assert bench.checkpoints == {study.best.checkpoint}


def test_resume_keeps_partial_checkpoints_of_open_assignments(bench: StudyRunner) -> None:
    bench.training.kill_after = 3
    with pytest.raises(Killed):
        bench.study().run()
    bench.training.kill_after = None
    [trial_id] = [t.trial_id for t in Journal(bench.storage, LOSS).trials.values() if not t.resource]
    bench.storage.write(layout.partial(trial_id, 1), b"what it had")
    bench.storage.write(layout.partial(77, 1), b"of a trial that is over")
    bench.study().resume()
    assert bench.storage.read(layout.partial(trial_id, 1)) is not None
    assert bench.storage.read(layout.partial(77, 1)) is None


def test_unreadable_files_are_excluded_from_all_later_assignments(bench: StudyRunner) -> None:
    bad = Failure(kind=FailureKind.DATA, message="b.parquet: damaged", file="b.parquet")
    bench.training.fail = lambda a: None if "b.parquet" in a.excluded_files or a.trial_id < 5 else bad
    policy = DispatchPolicy(failures=FailurePolicy(on_bad_files=lambda files: None))
    bench.training.kill_after = 8
    with pytest.raises(Killed):
        bench.study(policy=policy).run()
    bench.training.kill_after = None
    study = bench.study(policy=policy)
    study.run()
    without = [a.excluded_files for a in bench.training.asked]
    found = without.index(("b.parquet",))
    assert set(without[:found]) == {()}
    assert set(without[found:]) == {("b.parquet",)}, "also after a resume"
    assert study.progress.failed == 0


def test_study_stops_after_too_many_failures(bench: StudyRunner) -> None:
    broken = Failure(kind=FailureKind.TRIAL, message="ValueError: no")
    bench.training.fail = lambda a: broken if a.trial_id > 1 else None
    policy = DispatchPolicy(failures=FailurePolicy(max_trial_failures=2))
    with pytest.raises(TooManyFailures, match="3 of 5 trials have failed"):
        bench.study(policy=policy).run()


def test_study_that_is_built_changes_nothing_on_disk(bench: StudyRunner) -> None:
    bench.training.kill_after = 7
    with pytest.raises(Killed):
        bench.study().run()
    bench.storage.write(layout.partial(77, 1), b"of a trial that is over")
    checkpoints = bench.checkpoints
    study = bench.study()
    assert bench.journal is not None
    assert bench.journal.sequence == len(bench.journal.past) + 1, "only the driver's opening was written"
    assert bench.checkpoints == checkpoints
    study.resume()
    assert bench.checkpoints < checkpoints
    assert study.progress.replayed == 7


class Stalling(InlineBackend):
    """Never reports the first attempt of trial 0, but all others at once. Each wait takes a second."""

    num_slots = 2
    now = 0.0
    cancelled_at: float | None = None

    def submit(self, assignment: Assignment) -> None:
        if (assignment.trial_id, assignment.attempt) != (0, 1):
            super().submit(assignment)

    def wait(self, timeout: float) -> Report | None:
        self.now += 1.0
        return super().wait(timeout)

    def cancel(self, trial_id: int, fold: int | None = None) -> None:
        assert (trial_id, fold) == (0, None)
        self.cancelled_at = self.now


def test_trial_that_exceeds_its_time_limit_is_cancelled_and_has_failed(bench: StudyRunner) -> None:
    backend = Stalling(bench.training)
    policy = replace(RETRY_AT_ONCE, trial_timeout_s=10.0)
    study = bench.study(
        scheduler="full", trials=30, backend=backend, policy=policy, clock=lambda: backend.now
    )
    study.run()
    assert backend.cancelled_at is not None
    assert 10 < backend.cancelled_at < 15
    failed = {trial_id for trial_id, trial in study.trials.items() if trial.failure is not None}
    assert failed == {0}
    assert study.trials[0].failure is not None
    assert "resources.trial_timeout_s" in study.trials[0].failure.message
    assert all(a.trial_id != 0 for a in bench.training.asked), "it is not retried"


def test_study_gives_up_a_stalled_assignment_while_others_report(bench: StudyRunner) -> None:
    backend = Stalling(bench.training)
    supervisor = Supervisor(
        bench.storage, rank_timeout_s=1.0, start_timeout_s=20.0, clock=lambda: backend.now
    )
    study = bench.study(
        scheduler="full", trials=100, backend=backend, policy=replace(RETRY_AT_ONCE, supervisor=supervisor)
    )
    study.run()
    assert backend.cancelled_at is not None
    assert backend.cancelled_at < 40, "not only when the other trials have ended"
    assert [a.attempt for a in bench.training.asked if a.trial_id == 0] == [2]


def test_scheduler_of_a_plugin_that_opens_no_slot_is_named(bench: StudyRunner) -> None:
    class Lazy(FullScheduler):
        def next_slot(self) -> Slot | None:
            return None

    study = bench.study(scheduler=Lazy(max_resource=9, max_trials=3))
    with pytest.raises(ConfigError) as caught:
        study.run()
    assert caught.value.key == "search.scheduler"
    assert str(caught.value.value).endswith("Lazy")
