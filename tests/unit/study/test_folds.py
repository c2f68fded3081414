"""Cross-validation in the driver loop: folds are assignments, the search sees one report per slot."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spark_hpo.backend.inline import InlineBackend
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.schedulers.asha import AshaScheduler
from spark_hpo.search.schedulers.synchronous import FullScheduler
from spark_hpo.study import Budget, Study
from spark_hpo.study.folds import Folds
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.trial import Failure, FailureKind, Report, Split, TrialState
from tests.support.simulated import Curve, SimulatedBackend
from tests.support.study_bench import RETRY_AT_ONCE, ConcurrentBackend, Killed, StudyRunner

FOLDS = 5


@pytest.fixture
def bench(tmp_path: Path) -> StudyRunner:
    return StudyRunner(tmp_path / "study")


def full(trials: int = 2) -> FullScheduler:
    return FullScheduler(max_resource=FOLDS, max_trials=trials)


def halving(trials: int = 9) -> AshaScheduler:
    return AshaScheduler(max_resource=FOLDS, min_resource=1, reduction_factor=FOLDS, max_trials=trials)


def cross_validate(bench: StudyRunner, *, scheduler: Any = None, **settings: Any) -> Study:
    study = bench.study(scheduler=scheduler or full(), has_folds=True, **settings)
    study.run()
    return study


def is_of(trial_id: int, fold: int, attempt: int = 1) -> Any:
    return lambda a: (a.trial_id, a.fold, a.attempt) == (trial_id, fold, attempt)


def lost(when: Any) -> Any:
    failure = Failure(kind=FailureKind.INFRASTRUCTURE, message="its executor was lost")
    return lambda assignment: failure if when(assignment) else None


def raised(when: Any) -> Any:
    failure = Failure(kind=FailureKind.TRIAL, message="it raised")
    return lambda assignment: failure if when(assignment) else None


def fold_report(fold: int, loss: float, **fields: Any) -> Report:
    return Report(trial_id=7, attempt=1, rung=0, resource=fold, fold=fold, metrics={"loss": loss}, **fields)


def test_folds_are_assignments_of_one_unit_each(bench: StudyRunner) -> None:
    cross_validate(bench, scheduler=full(trials=1))
    assert [(a.fold, a.resource_from, a.resource_to) for a in bench.training.asked] == [
        (fold, fold - 1, fold) for fold in range(1, FOLDS + 1)
    ]
    assert {a.checkpoint for a in bench.training.asked} == {None}


def test_folds_run_side_by_side_in_all_slots_and_in_no_more(bench: StudyRunner) -> None:
    class Watched(ConcurrentBackend):
        most: Counter[int]

        def wait(self, timeout: float) -> Report | None:
            assert len(self.running) <= self.num_slots
            of_trials = Counter(a.trial_id for a in self.running)
            self.most |= of_trials
            return super().wait(timeout)

    backend = Watched(bench.training, seed=0)
    backend.most = Counter()
    cross_validate(bench, backend=backend)
    assert backend.most == {0: backend.num_slots, 1: backend.num_slots}


def test_value_is_the_mean_over_folds_and_spread_their_deviation(bench: StudyRunner) -> None:
    study = cross_validate(bench, scheduler=halving())
    for trial in study.trials.values():
        losses = [trial.params["x"] ** 2 + 0.1 * fold for fold in range(1, trial.resource + 1)]
        assert trial.metrics["loss"] == pytest.approx(statistics.fmean(losses))
        expected = {} if trial.resource == 1 else {"loss": pytest.approx(statistics.pstdev(losses))}
        assert trial.spread == expected
        assert [m.resource for m in trial.curve] == list(range(1, trial.resource + 1))


def test_bad_configurations_are_stopped_after_their_first_fold(bench: StudyRunner) -> None:
    study = cross_validate(bench, scheduler=halving(trials=10))
    by_x = sorted(study.trials.values(), key=lambda trial: abs(trial.params["x"]))
    assert by_x[0].resource == FOLDS
    assert {trial.resource for trial in by_x[-5:]} == {1}
    folds = Counter(a.trial_id for a in bench.training.asked)
    assert all(folds[trial.trial_id] == trial.resource for trial in by_x), "no fold is trained twice"


def test_best_trial_is_one_with_all_folds_though_early_folds_are_easy(bench: StudyRunner) -> None:
    bench.training.fold_effect = 10.0  # the mean over all folds is above that of the first one
    study = cross_validate(bench, scheduler=halving(trials=10))
    assert study.best is not None
    assert study.best.resource == FOLDS


def test_lost_fold_alone_is_retried(bench: StudyRunner) -> None:
    bench.training.fail = lost(is_of(0, 3))
    study = cross_validate(bench)
    tries = Counter((a.trial_id, a.fold) for a in bench.training.asked)
    assert {key for key, count in tries.items() if count > 1} == {(0, 3)}
    assert bench.storage.read(layout.fence(0, 0, 3)) == b"2"
    assert bench.storage.read(layout.fence(0, 0)) is None
    assert study.trials[0].state is TrialState.COMPLETED


def test_fold_that_raises_fails_its_trial_and_spares_the_folds_behind(bench: StudyRunner) -> None:
    bench.training.fail = raised(is_of(0, 2))
    study = cross_validate(bench)
    assert study.trials[0].state is TrialState.FAILED
    assert study.trials[0].failure is not None
    assert study.trials[0].failure.message == "fold 2: it raised"
    assert [a.fold for a in bench.training.asked if a.trial_id == 0] == [1, 2]
    assert study.trials[1].state is TrialState.COMPLETED


def test_failed_fold_waits_for_the_folds_that_run(bench: StudyRunner) -> None:
    bench.training.fail = raised(is_of(0, 2))
    study = cross_validate(bench, backend=ConcurrentBackend(bench.training, seed=1))
    begun = {e.assignment.fold for e in events(bench, EventKind.ASSIGNED) if e.assignment.trial_id == 0}
    ended = {e.report.fold for e in events(bench, EventKind.FOLD) if e.report.trial_id == 0}
    assert begun == ended
    assert study.trials[0].state is TrialState.FAILED


@pytest.mark.parametrize("kill_after", range(1, 12))
@pytest.mark.parametrize("concurrent", [False, True])
def test_resume_repeats_no_fold_that_has_ended(
    bench: StudyRunner, tmp_path: Path, kill_after: int, concurrent: bool
) -> None:
    def backend(runner: StudyRunner) -> Any:
        return ConcurrentBackend(runner.training, seed=3) if concurrent else InlineBackend(runner.training)

    bench.training.kill_after = kill_after
    with pytest.raises(Killed):
        cross_validate(bench, scheduler=full(3), backend=backend(bench))
    bench.training.kill_after = None
    resumed = cross_validate(bench, scheduler=full(3), backend=backend(bench))
    tries = Counter((a.trial_id, a.fold) for a in bench.training.asked)
    assert set(tries.values()) == {1}, "the fold in flight was killed before it trained"
    assert len(tries) == 3 * FOLDS
    whole = StudyRunner(tmp_path / "whole")
    assert values(resumed) == values(cross_validate(whole, scheduler=full(3)))


def test_interrupted_slot_resumes_with_the_folds_that_are_missing(bench: StudyRunner) -> None:
    policy = replace(RETRY_AT_ONCE, interrupted=lambda: len(bench.training.asked) >= 3, grace_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(bench, policy=policy)
    assert len(bench.training.asked) == 3
    study = cross_validate(bench)
    assert Counter((a.trial_id, a.fold) for a in bench.training.asked) == Counter(
        (trial, fold) for trial in (0, 1) for fold in range(1, FOLDS + 1)
    )
    assert {trial.state for trial in study.trials.values()} == {TrialState.COMPLETED}


def test_resume_concludes_a_slot_whose_last_fold_was_recorded_last(bench: StudyRunner) -> None:
    cross_validate(bench, scheduler=full(1))
    log = bench.storage
    name = "journal/000001.jsonl"
    lines = (log.read(name) or b"").splitlines(keepends=True)
    last_fold = max(i for i, line in enumerate(lines) if b'"event":"fold"' in line)
    log.write(name, b"".join(lines[: last_fold + 1]))
    again = cross_validate(bench, scheduler=full(1))
    assert len(bench.training.asked) == FOLDS
    assert again.trials[0].state is TrialState.COMPLETED


def test_resource_budget_counts_folds_that_wait_for_a_slot(bench: StudyRunner) -> None:
    study = cross_validate(bench, scheduler=full(9), budget=Budget(resource=2 * FOLDS))
    assert (study.stopped_by, len(study.trials), study.progress.resource_spent) == ("resource", 2, 2 * FOLDS)


def test_final_model_is_one_more_assignment(bench: StudyRunner) -> None:
    study = cross_validate(bench)
    assert study.best is not None
    assert study.best.checkpoint is None
    final = study.train_final(study.best)
    last = bench.training.asked[-1]
    assert (last.split, last.resource_from, last.resource_to, last.fold) == (Split.TRAIN, 0, FOLDS, None)
    assert final.checkpoint is not None
    assert (final.metrics, final.trial_id) == (study.best.metrics, study.best.trial_id)
    assert study.trials[final.trial_id].metrics == study.best.metrics, "the mean over the folds remains"
    study.test(final)
    assert bench.training.asked[-1].checkpoint == final.checkpoint


def test_final_model_is_kept_and_not_trained_again_on_resume(bench: StudyRunner) -> None:
    study = cross_validate(bench)
    assert study.best is not None
    before = study.train_final(study.best)
    asked = len(bench.training.asked)
    again = cross_validate(bench)
    assert again.best is not None
    assert again.train_final(again.best).checkpoint == before.checkpoint
    assert len(bench.training.asked) == asked
    assert bench.checkpoints == {before.checkpoint}


def test_final_model_in_flight_resumes_as_a_further_attempt(bench: StudyRunner) -> None:
    study = cross_validate(bench)
    assert study.best is not None
    bench.training.kill_after = len(bench.training.asked)
    with pytest.raises(Killed):
        study.train_final(study.best)
    bench.training.kill_after = None
    partial = layout.partial(study.best.trial_id, 1)
    bench.storage.write(partial, b"what it had")
    again = cross_validate(bench)
    assert bench.storage.read(partial) is not None
    assert again.best is not None
    again.train_final(again.best)
    assert bench.training.asked[-1].attempt == 2
    assert bench.storage.read(partial) is None


def test_interrupted_final_model_has_saved_its_state(bench: StudyRunner) -> None:
    study = cross_validate(bench)
    assert study.best is not None
    failure = Failure(kind=FailureKind.INTERRUPTED, message="stopped because the driver asked")
    bench.training.fail = lambda a: failure if a.is_final and a.attempt == 1 else None
    policy = replace(RETRY_AT_ONCE, interrupted=lambda: any(a.is_final for a in bench.training.asked))
    interrupted = bench.study(scheduler=full(), has_folds=True, policy=policy)
    interrupted.run()
    with pytest.raises(KeyboardInterrupt):
        interrupted.train_final(study.best)
    [lost] = events(bench, EventKind.LOST)
    assert (lost.report.split, lost.report.attempt) == (Split.TRAIN, 1)
    again = cross_validate(bench)
    assert again.best is not None
    assert again.train_final(again.best).checkpoint is not None
    assert bench.training.asked[-1].attempt == 2


def test_partial_checkpoint_of_a_fold_in_flight_survives_a_resume(bench: StudyRunner) -> None:
    bench.training.kill_after = 4
    with pytest.raises(Killed):
        cross_validate(bench)
    in_flight, ended = layout.partial(0, 1, 5), layout.partial(0, 1, 3)
    for path in (in_flight, ended):
        bench.storage.write(path, b"what it had")
    bench.training.kill_after = None
    bench.study(scheduler=full(), has_folds=True).resume()
    assert (bench.storage.read(in_flight), bench.storage.read(ended)) == (b"what it had", None)


def test_simulated_backend_runs_the_folds_of_a_trial_at_once(bench: StudyRunner) -> None:
    class Flat:
        def curve(self, trial_id: int, params: Any) -> Curve:
            losses = np.linspace(1.0, 2.0, FOLDS)
            return Curve(metrics={"loss": losses}, elapsed_s=np.arange(1.0, FOLDS + 1))

    backend = SimulatedBackend(Flat(), FOLDS)
    study = cross_validate(bench, scheduler=full(1), backend=backend, clock=backend.clock)
    assert backend.clock() == 1.0, "five folds of a second each"
    assert study.trials[0].metrics["loss"] == pytest.approx(1.5)


def test_folds_merge_metrics_that_all_folds_have() -> None:
    folds = Folds()
    folds.open(Slot(trial_id=7, bracket=0, rung=0, resource_from=0, resource_to=2))
    for fold, extra in ((1, {"auc": 0.5}), (2, {})):
        folds.begin(7, fold)
        report = fold_report(fold, loss=float(fold))
        folds.add(replace(report, metrics={**report.metrics, **extra}))
    merged = folds.merged(7)
    assert merged is not None
    assert (merged.metrics, merged.spread) == ({"loss": 1.5}, {"loss": 0.5})


def test_folds_pruned_by_the_function_stop_the_trial() -> None:
    folds = Folds()
    folds.open(Slot(trial_id=7, bracket=0, rung=0, resource_from=0, resource_to=3))
    folds.begin(7, 1)
    folds.add(fold_report(1, 0.5, is_pruned=True))
    merged = folds.merged(7)
    assert folds.waiting(7) == []
    assert merged is not None
    assert merged.is_pruned
    assert merged.resource == 0


def test_journal_of_folds_reads_back(bench: StudyRunner) -> None:
    study = cross_validate(bench)
    before = dict(study.trials)
    assert bench.journal is not None
    bench.journal.close()
    assert dict(Journal(bench.storage, bench.objective).trials) == before
    assert all(trial.has_folds for trial in before.values())


def values(study: Study) -> dict[int, Any]:
    return {trial.trial_id: (trial.metrics, trial.spread, trial.resource) for trial in study.trials.values()}


def events(bench: StudyRunner, kind: EventKind) -> list[Any]:
    assert bench.journal is not None
    bench.journal.close()
    return [event for event in Journal(bench.storage, bench.objective).past if event.kind is kind]
