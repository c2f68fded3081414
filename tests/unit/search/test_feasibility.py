"""Learning from failed trials."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.costs import Costs
from spark_hpo.search.samplers.feasibility import Blame, Feasibility
from spark_hpo.search.samplers.memory import MemoryFailures
from spark_hpo.search.samplers.multifidelity_gp import MultifidelityGpSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Axes
from spark_hpo.trial import Failure, FailureKind, Params, RankUse, Report

UNIT = {"type": "uniform", "low": 0, "high": 1}
LINE = Space.from_config({"x": UNIT})
CUBE = Space.from_config({name: UNIT for name in "abcd"})


def outcome(failure: FailureKind | None = None, **fields: Any) -> Outcome:
    return Outcome(units=1, seconds=1.0, failure=failure, **fields)


def feasibility(space: Space, trials: list[tuple[Params, float]]) -> Feasibility:
    axes = Axes(space)
    rows = np.array([axes.row(params) for params, _ in trials])
    return Feasibility(axes, rows, np.array([blame for _, blame in trials]))


def probability(model: Feasibility, space: Space, params: Params) -> float:
    return float(model.probability(Axes(space).row(params)[None])[0])


def loss_of(params: Params) -> float:
    """A bowl whose lowest place is near the region that fails: two fifths of the space."""
    if params["a"] + params["b"] > 1.1:
        return math.inf
    return float(sum((params[name] - at) ** 2 for name, at in zip("abcd", (0.4, 0.5, 0.3, 0.7), strict=True)))


@pytest.mark.medium
def test_learning_from_failures_halves_them_at_no_loss_of_regret() -> None:
    def search(seed: int, **settings: Any) -> tuple[int, float]:
        sampler, losses = MultivariateTpeSampler(CUBE, seed, enough=10, **settings), []
        for trial_id in range(40):
            params = sampler.ask(trial_id)
            sampler.start(trial_id, params)
            losses.append(loss_of(params))
            sampler.tell(trial_id, resource=1, loss=losses[-1])
        return sum(map(math.isinf, losses[:30])), min(losses)

    plain = np.mean([search(seed) for seed in range(8)], axis=0)
    learned = np.mean([search(seed, learns_from_failures=True) for seed in range(8)], axis=0)
    assert learned[0] <= plain[0] / 2
    assert learned[1] <= plain[1] * 1.05


def test_probability_of_success_is_learned_from_the_parameter_that_decides() -> None:
    draws = [CUBE.sample(np.random.default_rng(seed)) for seed in range(30)]
    model = feasibility(CUBE, [(params, float(params["c"] > 0.6)) for params in draws])
    unseen = [CUBE.sample(np.random.default_rng(seed)) for seed in range(100, 130)]
    found = {params["c"]: probability(model, CUBE, params) for params in unseen}
    assert min(p for c, p in found.items() if c < 0.5) > 0.7
    assert max(p for c, p in found.items() if c > 0.7) < 0.5


def test_option_that_always_fails_is_avoided() -> None:
    space = Space.from_config(
        {"x": UNIT, "size": {"type": "choice", "options": ["small", {"name": "large", "depth": UNIT}]}}
    )
    draws = [space.sample(np.random.default_rng(seed)) for seed in range(16)]
    model = feasibility(space, [(params, float(params["size"] != "small")) for params in draws])
    large, small = {"x": 0.3, "size": {"name": "large", "depth": 0.5}}, {"x": 0.3, "size": "small"}
    assert probability(model, space, large) < 0.2
    assert probability(model, space, small) > 0.8


def test_failures_without_a_pattern_change_little() -> None:
    rng = np.random.default_rng(0)
    draws = [(CUBE.sample(rng), float(i % 4 == 0)) for i in range(40)]
    model = feasibility(CUBE, draws)
    found = [probability(model, CUBE, CUBE.sample(rng)) for _ in range(50)]
    assert max(found) - min(found) < 0.2


def test_halved_batches_are_weaker_evidence_than_a_failure() -> None:
    def at_top(**fields: Any) -> float:
        blame = Blame()
        for trial_id in range(20):
            if trial_id >= 10:
                blame.note(trial_id, outcome(**fields))
            blame.tell(trial_id, has_failed=bool(fields.get("failure")) and trial_id >= 10)
        known = blame.known()
        if not known:
            return 1.0
        trials: list[tuple[Params, float]] = [({"x": (i + 0.5) / 20}, b) for i, b in known.items()]
        return probability(feasibility(LINE, trials), LINE, {"x": 0.9})

    failed, halved = at_top(failure=FailureKind.MEMORY), at_top(num_halved=2)
    assert failed < 0.2
    assert 0.6 < halved < 0.9
    assert at_top() == 1.0


def test_lost_trials_are_not_blamed_on_their_configuration() -> None:
    def taught(kind: FailureKind) -> MultivariateTpeSampler:
        sampler = MultivariateTpeSampler(LINE, 0, learns_from_failures=True)
        for trial_id in range(40):
            x = (trial_id + 0.5) / 40
            sampler.start(trial_id, {"x": x})
            fails = x > 0.5
            sampler.note(trial_id, outcome(kind if fails else None))
            sampler.tell(trial_id, resource=1, loss=math.inf if fails else 1 - x)
        return sampler

    def share_above(sampler: MultivariateTpeSampler) -> float:
        return float(np.mean([sampler.ask(trial_id)["x"] > 0.5 for trial_id in range(40, 90)]))

    assert share_above(taught(FailureKind.TRIAL)) < 0.2
    assert share_above(taught(FailureKind.INFRASTRUCTURE)) > 0.4


def test_without_failures_proposals_are_those_of_plain_tpe() -> None:
    def proposals(**settings: Any) -> list[Params]:
        sampler, asked = MultivariateTpeSampler(CUBE, 3, **settings), []
        for trial_id in range(30):
            asked.append(sampler.ask(trial_id))
            sampler.start(trial_id, asked[-1])
            sampler.tell(trial_id, resource=1, loss=asked[-1]["a"])
        return asked

    assert proposals(learns_from_failures=True) == proposals()


def test_outcome_of_a_report_has_the_cause_and_the_memory() -> None:
    report = Report(
        trial_id=0,
        attempt=1,
        rung=0,
        resource=5,
        seconds=8.0,
        notes={"micro_batch": {"rows": 16, "halved": 2}},
        usage=(
            RankUse(rank=0, seconds=8, memory_bytes=100, gpu_memory_bytes=30, gpu_memory_total_bytes=90),
            RankUse(rank=1, seconds=8, memory_bytes=200, gpu_memory_bytes=20, gpu_memory_total_bytes=80),
        ),
    )
    assert Outcome.of(report, resource_from=2) == Outcome(
        units=3, seconds=8.0, num_halved=2, memory_bytes=30, memory_limit_bytes=80, is_gpu_memory=True
    )
    blamed = [kind for kind in FailureKind if not outcome(kind).is_lost]
    assert blamed == [FailureKind.TRIAL, FailureKind.MEMORY]


def need_of(params: Params) -> int:
    """The bytes that a configuration needs, from 1.1 to 5 GB."""
    return int(1e9 + 1e8 * 40 ** ((params["a"] + params["b"]) / 2))


def memory_study(
    kind: type[MultivariateTpeSampler], *, limit: float, measured: bool = True, **settings: Any
) -> tuple[MultivariateTpeSampler, list[Report], list[Params]]:
    """Twelve trials. Those with a large `a + b` run out of memory, and the best ones are close to them."""
    sampler, rng = kind(CUBE, 0, num_startup_trials=8, enough=8, **settings), np.random.default_rng(5)
    reports, asked = [], []
    for trial_id in range(12):
        params = CUBE.sample(rng)
        sampler.start(trial_id, params)
        asked.append(params)
        need = need_of(params)
        use = RankUse(rank=0, seconds=1.0, gpu_memory_bytes=need, gpu_memory_total_bytes=int(limit))
        failure = Failure(kind=FailureKind.MEMORY, message="out of memory") if need > limit else None
        loss = sum((params[name] - at) ** 2 for name, at in zip("abcd", (0.8, 0.8, 0.3, 0.7), strict=True))
        reports.append(
            Report(
                trial_id=trial_id,
                attempt=1,
                rung=0,
                resource=1,
                seconds=1.0,
                usage=(use,) if measured and not failure else (),
                metrics={} if failure else {"loss": loss},
                failure=failure,
            )
        )
        learn(sampler, reports[-1])
    return sampler, reports, asked


def learn(sampler: MultivariateTpeSampler, report: Report) -> None:
    sampler.note(report.trial_id, Outcome.of(report, resource_from=0))
    sampler.tell(report.trial_id, resource=1, loss=report.metrics.get("loss", math.inf))


def test_memory_tells_from_few_failures_what_does_not_fit() -> None:
    def too_large(*, learns: bool) -> float:
        sampler, reports, _ = memory_study(MultifidelityGpSampler, limit=2.2e9, learns_from_memory=learns)
        assert sum(report.failure is not None for report in reports) == 3
        asked = [sampler.ask(trial_id) for trial_id in range(12, 32)]
        return float(np.mean([need_of(params) > 2.2e9 for params in asked]))

    assert too_large(learns=False) > 0.5
    assert too_large(learns=True) < 0.1


@pytest.mark.parametrize("kind", [MultivariateTpeSampler, MultifidelityGpSampler])
@pytest.mark.parametrize(("limit", "measured"), [(math.inf, True), (2.2e9, False)])
def test_memory_that_suffices_or_is_not_measured_changes_no_proposal(
    kind: type[MultivariateTpeSampler], limit: float, measured: bool
) -> None:
    def proposals(*, learns: bool) -> list[Params]:
        sampler, _, _ = memory_study(
            kind,
            limit=min(limit, 1e12),
            measured=measured,
            learns_from_failures=True,
            learns_from_memory=learns,
        )
        return [sampler.ask(trial_id) for trial_id in range(12, 24)]

    assert proposals(learns=True) == proposals(learns=False)


@pytest.mark.parametrize("kind", [MultivariateTpeSampler, MultifidelityGpSampler])
def test_journal_with_memory_replays_to_the_same_proposals(kind: type[MultivariateTpeSampler]) -> None:
    settings = {"learns_from_failures": True, "learns_from_memory": True}
    sampler, reports, asked = memory_study(kind, limit=2.2e9, **settings)
    resumed = kind(CUBE, 0, num_startup_trials=8, enough=8, **settings)
    for trial_id, report in enumerate(reports):
        resumed.start(trial_id, asked[trial_id])
        learn(resumed, Report.from_json(json.loads(json.dumps(report.to_json()))))
    assert [resumed.ask(i) for i in range(12, 20)] == [sampler.ask(i) for i in range(12, 20)]


def test_halved_batches_predict_weaker_failures_than_those_that_ran_out() -> None:
    def at_top(**fields: Any) -> float:
        axes, costs, blame, rows = Axes(LINE), Costs(), Blame(), []
        for trial_id in range(20):
            x = (trial_id + 0.5) / 20
            has_too_little = x > 0.7
            used = Outcome(units=1, seconds=1.0, memory_bytes=int(1e9 * 10 ** min(x, 0.7)))
            one = replace(used, **fields) if has_too_little else used
            costs.note(trial_id, one)
            blame.note(trial_id, one)
            blame.tell(trial_id, has_failed=one.failure is not None)
            rows.append(axes.row({"x": x}))
        memory, known = costs.memory(), blame.known()
        assert memory is not None
        model = MemoryFailures(axes, memory, list(known), np.array(rows), np.array(list(known.values())))
        return float(model.probability(axes.row({"x": 0.95})[None])[0])

    assert at_top(failure=FailureKind.MEMORY) > 0.75
    assert 0.15 < at_top(num_halved=1) < 0.45
