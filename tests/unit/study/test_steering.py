"""Requests that steer a study, on the inline backend and the real journal; training is a formula."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.backend.base import RanksByRung
from spark_hpo.backend.inline import InlineBackend
from spark_hpo.search.explorers.steered import SteeredExplorer
from spark_hpo.search.registry import build_explorer, build_sampler, build_scheduler
from spark_hpo.search.samplers.steered import SteeredSampler
from spark_hpo.search.schedulers.staged import StagedScheduler
from spark_hpo.study import Budget, Search, Study
from spark_hpo.study.callback import Callback
from spark_hpo.study.dispatch import DispatchPolicy
from spark_hpo.study.steering import Steering
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.requests import ANSWERS, REQUESTS, Request, Verb
from spark_hpo.trial import Trial, TrialState
from tests.support.study_bench import LOSS, SPACE, ConcurrentBackend, Killed, StudyRunner

Asked = tuple[Verb, Mapping[str, Any]]


class Ticks:
    """A clock on which each look at the directory is due."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Asks(Callback):
    """Writes requests into the study directory, each when so many trials have reported."""

    def __init__(self, runner: SteeredRunner, plan: Mapping[int, list[Asked]]) -> None:
        self.runner, self.plan, self.reports = runner, plan, 0

    def on_report(self, study: Any, trial: Trial, report: Any) -> None:
        self.reports = len([e for e in self.runner.events if e.kind is EventKind.REPORTED])
        for verb, arguments in self.plan.get(self.reports, ()):
            self.runner.ask(verb, **arguments)


class SteeredRunner(StudyRunner):
    """Runs studies whose requests are planned, each with a new driver."""

    def steered(
        self,
        plan: Mapping[int, list[Asked]] | None = None,
        *,
        trials: int | None = 8,
        sampler: str = "multivariate_tpe",
        scheduler: str = "asha",
        has_folds: bool = False,
        **settings: Any,
    ) -> Study:
        if self.journal is not None:
            self.journal.close()
        self.journal = Journal.open(self.storage, LOSS)

        def make(space: Any) -> Any:
            quick = {"enough": 4, "num_startup_trials": 4} if sampler == "multivariate_tpe" else {}
            return build_sampler(sampler, space, 0, first_space=None if space is SPACE else SPACE, **quick)

        def make_explorer(space: Any) -> Any:
            return build_explorer("pb2", space, 0, num_startup_segments=4)

        backend = settings.pop("backend", None)
        steered = SteeredSampler(make(SPACE), SPACE, make)
        explorer = SteeredExplorer(make_explorer(SPACE), SPACE, make_explorer)
        rungs = {"population_size": 3, "interval": 3} if scheduler == "population_based" else {}
        first, most = ([n for n in (number, steered.size) if n is not None] for number in (8, trials))
        return Study(
            journal=self.journal,
            search=Search(
                sampler=steered,
                steerable=steered,
                explorer=explorer,
                steerable_explorer=explorer,
                scheduler=StagedScheduler(
                    lambda number: build_scheduler(scheduler, max_resource=9, max_trials=number, **rungs),
                    min(first),
                ),
                first_max_trials=min(first),
                max_trials=min(most),
                has_folds=has_folds,
            ),
            backend=backend or ConcurrentBackend(self.training, seed=0),
            tracker=self.tracker,
            budget=Budget(trials=trials),
            callbacks=[Asks(self, plan or {})],
            clock=Ticks(),
            **settings,
        )

    def ask(self, verb: Verb, **arguments: Any) -> str:
        asked = Request.new(verb, arguments)
        text = f'{{"verb": "{verb}", "by": "ann@desk", "arguments": {_json(asked.arguments)}}}'
        self.storage.write(f"{REQUESTS}/{asked.id}.json", text.encode())
        return asked.id

    @property
    def events(self) -> list[Any]:
        return list(Journal(self.storage, LOSS).past)

    @property
    def steered_events(self) -> list[Mapping[str, Any]]:
        return [event.data for event in self.events if event.kind is EventKind.STEERED]

    @property
    def decisions(self) -> list[tuple[Any, ...]]:
        """What the search has decided: the assignments, and what people asked for."""
        return [
            (event.data["verb"], event.data["reply"])
            if event.kind is EventKind.STEERED
            else (event.assignment.trial_id, event.assignment.resource_to, event.assignment.params["x"])
            for event in self.events
            if event.kind is EventKind.STEERED
            or (event.kind is EventKind.ASSIGNED and event.assignment.attempt == 1)
        ]


def _json(value: Any) -> str:

    return json.dumps(value)


@pytest.fixture
def runner(tmp_path: Path) -> SteeredRunner:
    return SteeredRunner(tmp_path / "study")


def test_added_trial_runs_next_and_takes_other_values_of_a_named_trial(runner: SteeredRunner) -> None:
    runner.steered({2: [(Verb.ADD, {"params": {"x": 0.125}}), (Verb.ADD, {"params": {}, "like": 1})]}).run()
    values = [trial.params["x"] for trial in runner.journal.trials.values()]
    assert len(values) == 8
    assert 0.125 in values
    assert values.count(values[1]) == 2


def test_add_without_room_or_outside_the_space_is_refused_with_the_reason(runner: SteeredRunner) -> None:
    runner.steered(
        {2: [(Verb.ADD, {"params": {"x": 7.0}})], 6: [(Verb.ADD, {"params": {"x": 0.5}})] * 8}
    ).run()
    outside, *later = runner.steered_events
    assert outside["reply"] == "refused"
    assert "x must be a number from -1 to 1 (got 7.0)" in outside["message"]
    assert "all 8 trials of the budget are taken" in later[-1]["message"]
    assert len(runner.journal.trials) == 8


def test_dropped_trial_is_trained_no_further_running_or_waiting(runner: SteeredRunner) -> None:
    drops = [(Verb.DROP, {"trial": trial_id}) for trial_id in (0, 1, 2, 3, 99)]
    runner.steered({1: drops}).run()
    assert {runner.journal.trials[i].state for i in range(4)} == {TrialState.STOPPED}
    reports = [e.report for e in runner.events if e.kind is EventKind.REPORTED and e.report.trial_id < 4]
    assert len([report for report in reports if report.is_pruned]) >= 3
    assert len([report for report in reports if not report.is_pruned]) == 1
    assert "there is no trial 99" in runner.steered_events[-1]["message"]


def test_extend_raises_the_limit_for_this_and_for_later_drivers(runner: SteeredRunner) -> None:
    runner.steered({3: [(Verb.EXTEND, {"budget": {"budget.trials": "+4"}})]}).run()
    assert len(runner.journal.trials) == 12
    again = runner.steered()
    assert again.run() == "trials"
    assert again.budget.trials == 12
    assert len(runner.journal.trials) == 12
    runner.steered(trials=14).run()  # the user has written another number into the study file
    assert len(runner.journal.trials) == 14


def test_extend_refuses_a_lower_limit_and_one_that_the_budget_does_not_have(runner: SteeredRunner) -> None:
    lower, unlimited = {"budget": {"trials": 5}}, {"budget": {"seconds": "+60"}}
    runner.steered({1: [(Verb.EXTEND, lower), (Verb.EXTEND, unlimited)]}).run()
    first, second = runner.steered_events
    assert "budget.trials is 8 now, and can only be raised (got 5)" in first["message"]
    assert "budget.seconds has no limit" in second["message"]
    assert len(runner.journal.trials) == 8


@pytest.mark.parametrize("sampler", ["multivariate_tpe", "hyperopt_tpe", "de", "sobol"])
def test_narrowed_space_bounds_new_trials_and_keeps_what_was_learned(
    runner: SteeredRunner, sampler: str
) -> None:
    study = runner.steered({5: [(Verb.NARROW, {"space": {"x": [2.0, 3.0]}})]}, sampler=sampler, trials=8)
    study.run()
    xs = [runner.journal.trials[i].params["x"] for i in sorted(runner.journal.trials)]
    (event,) = runner.steered_events
    begun = int(event["message"].split("trial ")[1].split()[0])
    assert all(-1 <= x <= 1 for x in xs[:begun])
    assert begun < 8
    assert all(2 <= x <= 3 for x in xs[begun:])


def test_narrow_of_an_unknown_parameter_or_an_empty_range_is_refused(tmp_path: Path) -> None:
    for number, (sampler, space, reason) in enumerate(
        [
            ("random", {"y": [0, 1]}, "Valid names: x"),
            ("random", {"x": [1, 0]}, "x.low must be below high"),
        ]
    ):
        runner = SteeredRunner(tmp_path / str(number))
        runner.steered({1: [(Verb.NARROW, {"space": space})]}, sampler=sampler, trials=5).run()
        (event,) = runner.steered_events
        assert event["reply"] == "refused"
        assert reason in event["message"]


def test_grid_skips_points_outside_a_narrowed_range_and_gets_those_of_a_wider_one(tmp_path: Path) -> None:
    def run(name: str, plan: dict[int, list[Asked]], trials: int | None) -> tuple[SteeredRunner, str]:
        runner = SteeredRunner(tmp_path / name)
        reason = runner.steered(
            plan, sampler="grid", scheduler="full", trials=trials, backend=InlineBackend(runner.training)
        ).run()
        return runner, reason

    narrowed = [(Verb.NARROW, {"space": {"x": [-0.5, 1.0]}})]
    widened = [(Verb.NARROW, {"space": {"x": [-0.5, 3.0]}})]
    runner, reason = run("narrowed", {1: narrowed}, None)
    assert [trial.params["x"] for trial in runner.journal.trials.values()] == [-1, -0.5, 0, 0.5, 1]
    runner, reason = run("narrow", {1: [(Verb.NARROW, {"space": {"x": [0.0, 0.5]}})]}, None)
    assert [trial.params["x"] for trial in runner.journal.trials.values()] == [-1, 0, 0.5]
    assert reason == "search_space"
    assert "configurations that are left: 2" in runner.steered_events[0]["message"]
    runner, reason = run("wider", {1: narrowed, 3: widened}, 8)
    assert [trial.params["x"] for trial in runner.journal.trials.values()] == [
        *(-1, -0.5, 0, 0.5, 1),
        *(1.25, 2.125, 3.0),
    ]
    decisions = runner.decisions
    runner.steered(sampler="grid", scheduler="full").run()
    assert runner.decisions == decisions
    runner, _ = run("elsewhere", {1: [(Verb.NARROW, {"space": {"x": [0.1, 0.2]}})]}, None)
    assert [t.params["x"] for t in runner.journal.trials.values()] == [-1, 0.1, 0.125, 0.15, 0.175, 0.2]


def test_children_of_a_population_get_values_inside_a_changed_range(runner: SteeredRunner) -> None:
    plan: dict[int, list[Asked]] = {6: [(Verb.NARROW, {"space": {"x": [0.25, 0.5]}})]}
    runner.steered(plan, scheduler="population_based", trials=8).run()
    (event,) = runner.steered_events
    begun = int(event["message"].split("trial ")[1].split()[0])
    children = [trial for i, trial in runner.journal.trials.items() if i >= begun]
    assert children
    assert all(0.25 <= trial.params["x"] <= 0.5 for trial in children)
    decisions = runner.decisions
    runner.steered(scheduler="population_based").run()
    assert runner.decisions == decisions


def test_paused_study_starts_nothing_until_it_is_resumed(runner: SteeredRunner) -> None:
    study = runner.steered({3: [(Verb.PAUSE, {})]}, policy=DispatchPolicy(grace_s=2.0))
    idle = 0

    class Backend(ConcurrentBackend):
        def wait(self, timeout: float) -> Any:
            nonlocal idle
            if not self.running and runner.journal is not None:
                idle += 1
                assert not study.progress.running
                if idle == 3:
                    runner.ask(Verb.RESUME)
            return super().wait(timeout)

    study._dispatcher.backend = study._backend = Backend(runner.training, seed=0)  # type: ignore[assignment]
    study._slots.backend = study._backend
    assert study.run() == "trials"
    assert idle >= 3
    assert len(runner.journal.trials) == 8
    assert [e["verb"] for e in runner.steered_events] == ["pause", "resume"]
    paused = runner.steered_events[0]
    assert "within 2 s: " in paused["message"]


def test_pause_outlives_its_driver_until_a_driver_lifts_it(runner: SteeredRunner) -> None:
    study = runner.steered({3: [(Verb.PAUSE, {})]})
    asked = 0

    def kill_when_idle() -> bool:
        nonlocal asked
        asked += bool(study._steering.is_paused and not study.progress.running)
        if asked > 2:
            raise Killed
        return False

    kill = DispatchPolicy(interrupted=kill_when_idle)
    study._dispatcher.policy = kill
    with pytest.raises(Killed):
        study.run()
    study = runner.steered(policy=DispatchPolicy(interrupted=lambda: study.progress.seconds >= 0))
    with pytest.raises(KeyboardInterrupt):  # it is paused still, and the interrupt finds it idle
        study.run()
    began = len([e for e in runner.events if e.kind is EventKind.ASSIGNED])
    assert runner.steered(lifts_pause=True).run() == "trials"
    assert len([e for e in runner.events if e.kind is EventKind.ASSIGNED]) > began
    assert [e["verb"] for e in runner.steered_events] == ["pause", "resume"]


@pytest.mark.parametrize("now", [False, True])
def test_stopped_search_ends_and_stays_ended_until_it_is_resumed(runner: SteeredRunner, now: bool) -> None:
    assert runner.steered({3: [(Verb.STOP, {"now": now})]}).run() == "request"
    stopped = [e.report for e in runner.events if e.kind is EventKind.REPORTED and e.report.is_pruned]
    assert bool(stopped) is now
    count = len(runner.journal.trials)
    assert count < 8
    assert runner.steered().run() == "request"
    assert len(runner.journal.trials) == count
    assert runner.steered(lifts_pause=True).run() == "trials"
    assert len(runner.journal.trials) == 8


def test_folds_of_a_dropped_trial_end_together_and_a_pause_puts_folds_back(runner: SteeredRunner) -> None:
    drops = [(Verb.DROP, {"trial": trial_id}) for trial_id in range(4)]
    plan: dict[int, list[Asked]] = {1: [*drops, (Verb.PAUSE, {}), (Verb.RESUME, {})]}
    assert runner.steered(plan, has_folds=True).run() == "trials"
    assert {runner.journal.trials[i].state for i in range(4)} == {TrialState.STOPPED}
    decisions = runner.decisions
    assert runner.steered(has_folds=True).run() == "trials"
    assert runner.decisions == decisions


def test_trial_dropped_between_two_folds_ends(runner: SteeredRunner) -> None:
    class OneSlot(ConcurrentBackend):
        num_slots = 1
        reports = 0

        def wait(self, timeout: float) -> Any:
            report = super().wait(timeout)
            self.reports += report is not None
            if self.reports == 2 and report is not None and report.trial_id == 0:
                runner.ask(Verb.DROP, trial=0)  # no fold runs until the driver has looked
            return report

    backend = OneSlot(runner.training, seed=0)
    assert runner.steered(scheduler="full", has_folds=True, backend=backend, trials=3).run() == "trials"
    assert [runner.journal.trials[i].state for i in range(3)] == [
        TrialState.STOPPED,
        TrialState.COMPLETED,
        TrialState.COMPLETED,
    ]


def test_place_of_a_dropped_trial_goes_to_the_next_best(tmp_path: Path) -> None:
    def run(name: str, plan: dict[int, list[Asked]]) -> tuple[SteeredRunner, list[int]]:
        runner = SteeredRunner(tmp_path / name)
        backend = InlineBackend(runner.training)
        runner.steered(plan, scheduler="successive_halving", sampler="sobol", backend=backend).run()
        return runner, sorted({a.trial_id for a in runner.training.asked if a.rung == 1})

    _, promoted = run("whole", {})
    best = promoted[0]
    assert best < 7, "it has reported when it is dropped"
    dropped, others = run("dropped", {7: [(Verb.DROP, {"trial": best})]})
    assert best not in others
    assert len(others) == len(promoted) == 2
    assert dropped.journal.trials[best].state is TrialState.STOPPED
    decisions = dropped.decisions
    dropped.steered(scheduler="successive_halving", sampler="sobol").run()
    assert dropped.decisions == decisions


def test_drop_of_an_earlier_version_leaves_its_place_empty_in_a_replay(runner: SteeredRunner) -> None:
    settings = {"scheduler": "successive_halving", "sampler": "sobol"}
    effect = Steering._drop

    def without_place(self: Any, trial_id: int) -> Any:
        found = effect(self, trial_id)
        return replace(found, data={"dropped": found.data["dropped"]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steering, "_drop", without_place)
        plan: dict[int, list[Asked]] = {7: [(Verb.DROP, {"trial": 0}), (Verb.DROP, {"trial": 1})]}
        runner.steered(plan, backend=InlineBackend(runner.training), **settings).run()
    decisions = runner.decisions
    runner.steered(**settings).run()
    assert runner.decisions == decisions


def test_pause_puts_back_an_assignment_that_waits_for_several_slots(runner: SteeredRunner) -> None:
    plan: dict[int, list[Asked]] = {n: [(Verb.PAUSE, {}), (Verb.RESUME, {})] for n in (3, 5, 7, 9)}
    plan[6] = [(Verb.DROP, {"trial": trial_id}) for trial_id in range(3)]
    policy = DispatchPolicy(ranks=RanksByRung.of({0: 1, 1: 2, 2: 4}))
    assert runner.steered(plan, policy=policy).run() == "trials"
    assert len(runner.journal.trials) == 8


PLAN: dict[int, list[Asked]] = {
    2: [(Verb.ADD, {"params": {"x": 0.3125}})],
    3: [(Verb.NARROW, {"space": {"x": [-0.5, 2.0]}}), (Verb.DROP, {"trial": 1})],
    5: [(Verb.EXTEND, {"budget": {"trials": "+4"}}), (Verb.DROP, {"trial": 98})],
    7: [(Verb.NARROW, {"space": {"x": [0.0, 0.25]}})],
}


@pytest.mark.medium
def test_replay_decides_again_what_a_steered_study_has_decided(tmp_path: Path) -> None:

    whole = SteeredRunner(tmp_path / "whole")
    whole.steered(PLAN, backend=InlineBackend(whole.training)).run()
    assert [verb for verb, _ in (e for e in whole.decisions if len(e) == 2)] == [
        "add",
        "narrow",
        "drop",
        "extend",
        "drop",
        "narrow",
    ]
    for kill_after in (3, 4, 6, 8, 11):
        killed = SteeredRunner(tmp_path / str(kill_after))
        killed.training.kill_after = kill_after
        with pytest.raises(Killed):
            killed.steered(PLAN, backend=InlineBackend(killed.training)).run()
        killed.training.kill_after = None
        killed.steered(PLAN, backend=InlineBackend(killed.training)).run()
        assert killed.decisions == whole.decisions


@pytest.mark.parametrize("step", ["before the journal", "after the journal", "before the request is deleted"])
def test_request_is_taken_once_whenever_its_driver_is_killed(
    runner: SteeredRunner, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill: Callable[..., Any] = _killed
    with monkeypatch.context() as patch:
        if step == "before the journal":
            patch.setattr(Journal, "steered", kill)
        elif step == "after the journal":
            patch.setattr("spark_hpo.study_dir.requests.Inbox.answer", kill)
        else:
            delete = type(runner.storage).delete

            def dies(storage: Any, name: str) -> None:
                if name.startswith(REQUESTS):
                    raise Killed
                delete(storage, name)

            patch.setattr(type(runner.storage), "delete", dies)
        with pytest.raises(Killed):
            runner.steered({3: [(Verb.EXTEND, {"budget": {"trials": "+2"}})]}).run()
    runner.steered().run()
    assert [e["verb"] for e in runner.steered_events] == ["extend"]
    assert len(runner.journal.trials) == 10
    assert runner.storage.names(REQUESTS) == []
    assert len(runner.storage.names(ANSWERS)) == 1


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        (Verb.PAUSE, {}),
        (Verb.RESUME, {}),
        (Verb.STOP, {"now": True}),
        (Verb.ADD, {"params": {"x": 0.125}}),
        (Verb.DROP, {"trial": 1}),
        (Verb.EXTEND, {"budget": {"trials": "+2"}}),
        (Verb.NARROW, {"space": {"x": [0.0, 0.25]}}),
    ],
)
def test_each_request_takes_effect_once_if_its_driver_dies_before_it_answers(
    runner: SteeredRunner, verb: Verb, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("spark_hpo.study_dir.requests.Inbox.answer", _killed)
        with pytest.raises(Killed):
            runner.steered({3: [(verb, arguments)]}).run()
    begun = len(runner.journal.trials)
    reason = runner.steered(lifts_pause=verb is Verb.PAUSE).run()
    assert [e["verb"] for e in runner.steered_events] == [verb, *(["resume"] if verb is Verb.PAUSE else [])]
    assert runner.storage.names(REQUESTS) == []
    assert [json.loads(runner.storage.read(f"{ANSWERS}/{n}") or b"")["reply"] for n in _answers(runner)] == [
        "done"
    ]
    trials = runner.journal.trials
    assert reason == ("request" if verb is Verb.STOP else "trials")
    assert len(trials) == {Verb.STOP: begun, Verb.EXTEND: 10}.get(verb, 8)
    if verb is Verb.ADD:
        assert [trial.params["x"] for trial in trials.values()].count(0.125) == 1
    if verb is Verb.DROP:
        assert trials[1].state is TrialState.STOPPED
    if verb is Verb.NARROW:
        assert all(0 <= trials[i].params["x"] <= 0.25 for i in range(begun, 8))


def test_requests_are_taken_in_their_order_and_unreadable_ones_are_answered(runner: SteeredRunner) -> None:
    plan: list[Asked] = [(Verb.EXTEND, {"budget": {"trials": f"+{n}"}}) for n in (1, 2, 3)]
    study = runner.steered({2: plan})
    number = "00000000000000000001-0123abcd"
    runner.storage.write(f"{REQUESTS}/{number}.json", b'{"verb": "explode"')
    study.run()
    assert [e["message"].split()[2] for e in runner.steered_events] == ["9", "11", "14"]
    assert b"cannot be read" in (runner.storage.read(f"{ANSWERS}/{number}.json") or b"")
    assert runner.storage.names(REQUESTS) == []


def test_request_after_the_end_is_refused(runner: SteeredRunner) -> None:
    study = runner.steered()
    study.run()
    asked = runner.ask(Verb.PAUSE)
    study.refuse_requests()
    assert b"the search has ended (trials)" in (runner.storage.read(f"{ANSWERS}/{asked}.json") or b"")


def _answers(runner: SteeredRunner) -> list[str]:
    return runner.storage.names(ANSWERS)


def _killed(*_: Any, **__: Any) -> None:
    raise Killed
