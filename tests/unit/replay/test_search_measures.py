"""Single measurements of the page of the search."""

from __future__ import annotations

from tests.benchmarks.replay.functions import Hartmann
from tests.benchmarks.replay.ranks import regrets
from tests.benchmarks.replay.run import Replay
from tests.benchmarks.search_measures import fewer_searches, half_of_hyperopt, other_settings, worst_bias

FUNCTION = Hartmann(dimensions=3, max_resource=9, bias=4.0)


def one(method: str, *trained: tuple[float, float], task: str = "a", seed: int = 0) -> Replay:
    return Replay(
        task=task,
        method=method,
        slots=8,
        seed=seed,
        budget=20.0,
        trained=trained,
        deployed=trained,
        busy=1.0,
        trials=10,
        proposals_per_s=100.0,
        driver_s=1.0,
    )


def cells(lines: list[str], first: str) -> list[str]:
    (row,) = (line for line in lines if line.startswith(f"| {first} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_budget_of_hyperopt_is_the_share_after_which_its_end_is_reached() -> None:
    replays = [
        one("default", (0.1, 0.9), (0.3, 0.2)),
        one("random", (0.4, 0.5)),
        one("peer: hyperopt TPE", (0.2, 0.6), (0.9, 0.2)),
    ]
    lines = list(half_of_hyperopt(replays))
    assert cells(lines, "a") == ["a", "8", "30%", "never"]
    assert cells(lines, "**in half**")[2:] == ["1 of 1", "0 of 1"]


def test_fewer_searches_have_a_table_for_each_group_of_methods_that_ran_on_the_same() -> None:
    def runs(name: str, regret: float, seeds: int) -> list[Replay]:
        return [one(name, (0.5, regret), seed=seed) for seed in range(seeds)]

    everywhere = [*runs("x", 0.1, 3), *runs("y", 0.2, 3)]
    replays = [*everywhere, *runs("peer: slow", 0.0, 1), *runs("z", 0.15, 2)]
    lines = list(fewer_searches(regrets(replays, {"a": "family"}), "x"))
    said = [line for line in lines if " ran on 1 task" in line]
    assert [line.split(".")[0] for line in said] == [
        "slow ran on 1 task with 1 seed",
        "z ran on 1 task with 2 seeds",
    ]
    assert cells(lines, "**peer: slow**")[1] == "1.0"
    assert cells(lines, "**z**")[1] == "2.0"
    assert not list(fewer_searches(regrets(everywhere, {"a": "family"}), "x"))


def test_other_settings_name_the_place_of_the_default() -> None:
    found = regrets([one("x", (0.5, 0.2)), one("y", (0.5, 0.1))], {"a": "family"})
    (row,) = (line for line in other_settings(found, "x") if line.startswith("| 8 "))
    assert "2.00 (place 2)" in row


def test_worst_bias_is_the_distance_to_full_training_as_a_share_of_its_loss() -> None:
    task, reference = FUNCTION.task, FUNCTION.reference
    of_full = -0.1 * reference.best / (reference.median - reference.best)  # nine tenths of the lowest loss
    replays = [one("default", (0.5, 0.0), task=task), one("tpe", (0.5, of_full), task=task)]
    lines = list(worst_bias(replays, {task: FUNCTION}, "default", [20.0]))
    assert cells(lines, task)[-1] == "-11%"
