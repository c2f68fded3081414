"""HyperoptSampler: what it shows to hyperopt's algorithms, and that resuming changes nothing."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
from hyperopt import anneal, hp, rand, tpe

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.porting.hyperopt_sampler import HyperoptSampler, values_by_label

SPACE = {"x": hp.uniform("x", -5, 5), "kind": hp.choice("kind", ["a", {"q": hp.quniform("q", 0, 9, 3)}])}


class Watched:
    """An algorithm that remembers what it was shown."""

    def __init__(self, suggest: Any) -> None:
        self.suggest = suggest
        self.shown: list[dict[str, Any]] = []

    def __call__(self, new_ids: Any, domain: Any, trials: Any, seed: int, **settings: Any) -> Any:
        self.shown = list(trials.trials)
        return self.suggest(new_ids, domain, trials, seed, **settings)


def run(sampler: HyperoptSampler, first: int, last: int) -> None:
    for trial_id in range(first, last):
        params = sampler.ask(trial_id)
        sampler.start(trial_id, params)
        sampler.tell(trial_id, resource=1, loss=params["x"] ** 2 + params["kind"])


@pytest.mark.parametrize("suggest", [tpe.suggest, rand.suggest, anneal.suggest])
def test_proposals_depend_on_reported_losses_only(suggest: Any) -> None:
    sampler, resumed = (HyperoptSampler(SPACE, suggest, seed=3) for _ in range(2))
    run(sampler, 0, 25)
    assert sampler.ask(25) == sampler.ask(25)
    for trial_id in range(25):
        resumed.start(trial_id, sampler._params[trial_id])
        resumed.tell(trial_id, resource=1, loss=sampler._losses[trial_id])
    assert resumed.ask(25) == sampler.ask(25)
    assert HyperoptSampler(SPACE, suggest, seed=4).ask(0) != HyperoptSampler(SPACE, suggest, seed=3).ask(0)


def test_proposal_has_no_value_for_an_inactive_parameter() -> None:
    sampler = HyperoptSampler(SPACE, rand.suggest, seed=0)
    proposals = [sampler.ask(i) for i in range(20)]
    assert {frozenset(p) for p in proposals} == {frozenset({"x", "kind"}), frozenset({"x", "kind", "q"})}
    assert all(("q" in p) == (p["kind"] == 1) for p in proposals)
    assert all(type(value) in (int, float) for p in proposals for value in p.values())


def test_running_trials_count_with_the_median_loss() -> None:
    watched = Watched(anneal.suggest)
    sampler = HyperoptSampler(SPACE, watched, seed=0)
    for trial_id, loss in enumerate([1.0, 5.0, 2.0, math.inf]):
        sampler.start(trial_id, {"x": 0.1 * trial_id, "kind": 0})
        sampler.tell(trial_id, resource=1, loss=loss)
    sampler.start(4, {"x": 2.0, "kind": 0})
    sampler.ask(5)
    assert [d["result"].get("loss") for d in watched.shown] == [1.0, 5.0, 2.0, None, 2.0]
    assert [d["result"]["status"] for d in watched.shown] == ["ok", "ok", "ok", "fail", "ok"]
    assert values_by_label(watched.shown[4]) == {"x": 2.0, "kind": 0}


def test_running_trials_are_hidden_until_startup_trials_end() -> None:
    """hyperopt's own count has those in flight in it: with 20 slots its model would be of nothing."""
    sampler = HyperoptSampler(SPACE, functools.partial(tpe.suggest, n_startup_jobs=5), seed=0)
    random = HyperoptSampler(SPACE, rand.suggest, seed=0)
    for trial_id in range(30):
        sampler.start(trial_id, {"x": float(trial_id % 5), "kind": 0})
    assert sampler.ask(30) == random.ask(30)
    for trial_id in range(5):
        sampler.tell(trial_id, resource=1, loss=float(trial_id))
    assert sampler.ask(30) != random.ask(30)


def test_errors_name_the_space_the_algorithm_and_the_label() -> None:
    with pytest.raises(SpaceError, match="DuplicateLabel") as wrong_space:
        HyperoptSampler([hp.uniform("x", 0, 1), hp.uniform("x", 0, 2)], rand.suggest, seed=0)
    sampler = HyperoptSampler(SPACE, lambda *_: [], seed=0)
    with pytest.raises(ConfigError) as exhausted:
        sampler.ask(0)
    with pytest.raises(SpaceError) as wrong_label:
        sampler.start(0, {"z": 1})
    keys = [error.value.key for error in (wrong_space, exhausted, wrong_label)]
    assert keys == ["space", "algo", "z"]
