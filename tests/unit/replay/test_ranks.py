"""Ranks over families, their bands, and settings that are chosen without a family."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.benchmarks.replay.found import at
from tests.benchmarks.replay.ranks import average, bands, leave_one_out, ranks, regrets, time_to_top, wins
from tests.benchmarks.replay.run import Replay

FAMILIES = {"a1": "a", "a2": "a", "b1": "b"}


def one(method: str, task: str, seed: int, regret: float, *, deployed: float | None = None) -> Replay:
    return Replay(
        task=task,
        method=method,
        slots=8,
        seed=seed,
        budget=2.0,
        trained=((0.5, regret),),
        deployed=((0.1, regret if deployed is None else deployed),),
        busy=1.0,
        trials=10,
        proposals_per_s=100.0,
        driver_s=1.0,
    )


def table(found: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """Of regrets by method and task, one for each seed."""
    return regrets(
        (
            one(method, task, seed, regret)
            for method, tasks in found.items()
            for task, of_seeds in tasks.items()
            for seed, regret in enumerate(of_seeds)
        ),
        FAMILIES,
    )


def test_average_gives_each_family_the_same_weight_and_shares_ties() -> None:
    found = table(
        {"x": {"a1": [0.1], "a2": [0.1], "b1": [0.2]}, "y": {"a1": [0.2], "a2": [0.2], "b1": [0.1]}}
    )
    assert dict(average(ranks(found, "trained"))) == {"x": 1.5, "y": 1.5}
    tied = table({"x": {"a1": [0.1]}, "y": {"a1": [0.1]}, "z": {"a1": [0.9]}})
    assert dict(average(ranks(tied, "trained"))) == {"x": 1.5, "y": 1.5, "z": 3.0}


def test_ranks_leave_out_a_method_that_did_not_run_everywhere() -> None:
    found = table({"x": {"a1": [0.1, 0.1]}, "y": {"a1": [0.2, 0.2]}, "z": {"a1": [0.0]}})
    assert list(ranks(found, "deployed").columns) == ["x", "y"]


def test_bands_contain_the_average_and_shrink_where_all_seeds_agree() -> None:
    found = table({"x": {"a1": [0.1, 0.3, 0.1], "b1": [0.1] * 3}, "y": {"a1": [0.2] * 3, "b1": [0.2] * 3}})
    ranked = ranks(found, "trained")
    found_bands, means = bands(ranked), average(ranked)
    assert found_bands.low["x"] < means["x"] < found_bands.high["x"]
    sure = bands(ranks(found[found.family == "b"], "trained"))
    assert (sure.low["x"], sure.high["x"]) == (1.0, 1.0)


def test_leave_one_out_chooses_what_is_best_elsewhere() -> None:
    found = table(
        {
            "good at a": {"a1": [0.0], "b1": [0.9]},
            "good at b": {"a1": [0.9], "b1": [0.0]},
            "peer": {"a1": [0.5], "b1": [0.5]},
        }
    )
    chosen = leave_one_out(found, ["good at a", "good at b"]).dropna(subset="variant")
    assert dict(zip(chosen.family, chosen.variant, strict=True)) == {"a": "good at b", "b": "good at a"}
    assert set(chosen.trained) == {0.9}


def test_wins_are_paired_and_ties_count_half() -> None:
    found = table(
        {
            "x": {"a1": [0.1, 0.9, 0.5], "b1": [0.1]},
            "y": {"a1": [0.2, 0.2, 0.5], "b1": [0.2]},
            "z": {"a1": [0.3], "b1": [0.1]},
        }
    )
    assert wins(found, "trained", "y").to_dict() == {"x": 0.75, "z": 0.5}


def test_time_to_top_is_in_full_trainings_and_infinite_where_it_is_not_reached() -> None:
    times = time_to_top([one("x", "a1", 0, 0.1), one("y", "a1", 0, 0.3)], {"a1": 0.2})
    assert times.loc[("a1", 8)].to_dict() == {"x": 1.0, "y": float("inf")}


@pytest.mark.parametrize(("when", "regret"), [(0.05, 1.0), (0.1, 0.4), (0.55, 0.6), (1.0, 0.6)])
def test_at_is_the_last_change_by_then_also_if_the_regret_rose(when: float, regret: float) -> None:
    assert at(((0.1, 0.4), (0.5, 0.6)), when) == regret
