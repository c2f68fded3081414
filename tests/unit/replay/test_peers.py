"""Other libraries in the clock of the replay: the same start, the same end, their own rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.benchmarks.replay.found import at
from tests.benchmarks.replay.functions import CountingOnes, Hartmann
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.run import Replay, replay

optuna = pytest.importorskip("optuna", reason="Optuna is an extra")

from tests.benchmarks import peers  # noqa: E402 - needs Optuna

FUNCTION = Hartmann(dimensions=3, max_resource=9)
TPE = peers.FullTraining("tpe", peers.OptunaSearch)
RUNS: dict[str, Callable[..., Replay]] = {
    "random": partial(replay, FUNCTION, parse_method("random")),
    "asha": partial(replay, FUNCTION, parse_method("random+asha")),
    "optuna": partial(replay, FUNCTION, TPE),
    "pruner": partial(peers.replay_with_pruner, "pruner", peers.hyperband_pruner, FUNCTION),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_trial_that_ends_with_the_budget_counts_for_every_method(name: str) -> None:
    exact, longer = (RUNS[name](slots=4, seed=1, budget=budget) for budget in (1.0, 3.0))
    for score in ("trained", "deployed"):
        whole, part = (at(getattr(one, score), 1.0) for one in (exact, longer.first(1.0)))
        assert whole == part


def test_methods_that_never_pause_have_trained_the_same_trials_after_a_budget_of_one() -> None:
    found = {name: RUNS[name](slots=4, seed=1, budget=1.0).regret(1.0) for name in ("random", "optuna")}
    assert found["random"] == found["optuna"] != 1.0


@pytest.mark.parametrize(
    ("function", "first", "later"),
    [(FUNCTION, "GPSampler", "CmaEsSampler"), (CountingOnes(num_binary=1), "TPESampler", "TPESampler")],
)
def test_auto_rule_goes_by_choices_and_by_completed_trials(
    function: Hartmann | CountingOnes, first: str, later: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.AutoRule, "_gp_trials", 13)
    search = peers.OptunaSearch(function.space, 0, build=peers.AutoRule)
    used = []
    for trial_id in range(16):
        params = search.ask(trial_id)
        search.start(trial_id, params)
        used.append(type(search.study.sampler._sampler).__name__)
        search.tell(trial_id, resource=1, loss=float(trial_id % 5))
    assert (used[0], used[1], used[12], used[15]) == ("RandomSampler", first, first, later)
