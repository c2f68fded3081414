"""A replay is the study that would have been: its times, incumbents and busy slots are planned ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.methods import METHODS
from spark_hpo.search.samplers.random import RandomSampler
from tests.benchmarks.replay.curves import open_benchmarks
from tests.benchmarks.replay.functions import CountingOnes, Hartmann
from tests.benchmarks.replay.memory import MemoryStorage
from tests.benchmarks.replay.methods import parse_method
from tests.benchmarks.replay.run import Replay, replay
from tests.support.simulated import Disturbances

FUNCTION = Hartmann(dimensions=3, max_resource=9)


def test_random_search_runs_as_many_trials_as_its_budget_buys() -> None:
    one = replay(FUNCTION, parse_method("random"), slots=4, seed=3, budget=6)
    assert one.trials == 4 * 6
    assert one.busy == pytest.approx(1.0)
    sampler = RandomSampler(FUNCTION.space, 3)
    losses = [FUNCTION.curve(i, sampler.ask(i)).metrics["loss"][-1] for i in range(24)]
    for done in range(1, 7):
        best = FUNCTION.reference.regret(min(losses[: 4 * done]))
        assert one.regret(done / 6) == pytest.approx(min(best, one.regret((done - 1) / 6)))


def test_before_the_first_full_training_regret_is_that_of_the_median() -> None:
    one = replay(FUNCTION, parse_method("random"), slots=2, seed=0, budget=4)
    assert one.regret(0.24) == 1.0
    assert one.regret(0.26) != 1.0


@pytest.mark.parametrize("method", ["random", "default"])
def test_first_part_of_a_replay_is_the_replay_of_a_smaller_budget(method: str) -> None:
    short, long = (
        replay(FUNCTION, parse_method(method), slots=4, seed=3, budget=budget) for budget in (2.0, 9.0)
    )
    first = long.first(2.0)
    assert first.budget == 2.0
    assert len(first.trained) < len(long.trained)
    for score in ("trained", "deployed"):
        found, wanted = getattr(first, score), getattr(short, score)
        assert [regret for _, regret in found] == [regret for _, regret in wanted]
        assert [when for when, _ in found] == pytest.approx([when for when, _ in wanted])


def test_replay_ignores_what_ends_after_the_budget() -> None:
    one = replay(FUNCTION, parse_method("random"), slots=4, seed=3, budget=1.5)
    assert [when for when, _ in one.trained] == pytest.approx([1 / 1.5] * len(one.trained))
    assert one.trials == 4 + 4


@pytest.mark.parametrize("method", ["random+hyperband", "tpe+hyperband"])
def test_brackets_that_overlap_keep_the_slots_busy(method: str) -> None:
    one = replay(FUNCTION, parse_method(method), slots=8, seed=0, budget=8)
    assert one.busy >= 0.98


def test_replay_keeps_a_thousand_slots_busy() -> None:
    one = replay(FUNCTION, parse_method("random+hyperband"), slots=1000, seed=0, budget=1.5)
    assert one.busy >= 0.95


def test_replay_depends_on_the_seed_only() -> None:
    def run(seed: int) -> Replay:
        disturbances = Disturbances(seed=1, straggler_share=0.1, failure_share=0.1, loss_share=0.1)
        method = parse_method("tpe+hyperband")
        return replay(FUNCTION, method, slots=4, seed=seed, budget=4, disturbances=disturbances)

    assert run(0).trained == run(0).trained
    assert run(0).trained != run(1).trained


def test_searches_survive_all_that_can_go_wrong() -> None:
    disturbances = Disturbances(
        launch_s=1.0,
        straggler_share=0.2,
        failure_share=0.2,
        loss_share=0.2,
        slots_from=((10.0, 1), (20.0, 6), (40.0, 3)),
    )
    one = replay(
        CountingOnes(),
        parse_method("random+hyperband"),
        slots=4,
        seed=0,
        budget=10,
        disturbances=disturbances,
    )
    assert one.trained
    assert 0.5 < one.busy <= 1.0


def test_regret_of_failed_trials_is_that_of_the_median() -> None:
    always = Disturbances(failure_share=1.0)
    one = replay(FUNCTION, parse_method("random"), slots=2, seed=0, budget=2, disturbances=always)
    assert one.trained == ()
    assert one.regret(1.0) == 1.0


def test_replay_marks_a_pool_that_runs_low(folder: Path) -> None:
    benchmark = open_benchmarks(folder)[0]
    short = replay(benchmark, parse_method("random"), slots=2, seed=0, budget=5)
    assert short.pool_low_at is None
    # 15 of the 30 configurations are drawn when the eighth round of two begins.
    long = replay(benchmark, parse_method("random"), slots=2, seed=0, budget=20)
    assert long.pool_low_at is not None
    assert 0.2 < long.pool_low_at < 0.5
    assert long.regret(1.0) == 0.0  # all that there are have been trained


def test_parse_method_reads_a_pair_with_settings() -> None:
    method = parse_method("tpe:num_candidates=64+hyperband:min_resource=3,reduction_factor=2")
    assert (method.sampler, method.sampler_settings) == ("tpe", {"num_candidates": 64})
    assert method.scheduler_settings == {"min_resource": 3, "reduction_factor": 2}
    assert parse_method("random").scheduler == "full"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_replay_runs_every_method(name: str) -> None:
    method = parse_method(name)
    if method.sampler in {"gp", "cmaes", "nsga2", "optuna_tpe"}:
        pytest.importorskip("optuna")
    # Each proposal of a Gaussian process takes a fraction of a second; the others need more trials to show.
    slots, budget = (2, 3) if method.sampler == "gp" else (4, 5)
    one = replay(FUNCTION, method, slots=slots, seed=0, budget=budget)
    assert one.trained
    assert one.busy > 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("boh", r"Did you mean 'bohb'\?"),
        ("tpe+hyperban", "Did you mean 'hyperband'"),
        ("tpe:64", "'64' must be name=value"),
    ],
)
def test_parse_method_refuses_an_unknown_method(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_method(text)


def test_memory_grows_no_faster_than_the_trials() -> None:
    def peak(slots: int) -> tuple[int, int]:
        tracemalloc.start()
        try:
            one = replay(FUNCTION, parse_method("random+hyperband"), slots=slots, seed=0, budget=5)
            return one.trials, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    FUNCTION.reference  # noqa: B018 - computed once, and not in either measurement
    peak(2)  # what is loaded at the first use
    (few, small), (many, large) = peak(8), peak(64)
    assert many > 6 * few
    assert large / small < 1.2 * many / few


def test_storage_in_memory_behaves_like_a_local_one() -> None:
    storage = MemoryStorage()
    assert storage.create("epochs/1", b"a")
    assert not storage.create("epochs/1", b"b")
    storage.write("lease.json", b"{}")
    storage.log("journal/000001").append("one")
    assert (storage.read("epochs/1"), storage.read("none")) == (b"a", None)
    assert storage.names("journal") == ["000001.jsonl"]
    assert storage.names("epochs") == ["1"]
    assert storage.log("journal/000001").lines() == [b"one\n"]
    storage.delete("lease.json")
    assert storage.read("lease.json") is None
