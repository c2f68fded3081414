"""Medians, ranks and the table."""

from __future__ import annotations

import pytest

from tests.benchmarks.replay.run import Replay
from tests.benchmarks.replay.summary import average_ranks, summarise, to_markdown


def one(method: str, seed: int, regret: float, *, task: str = "t", low: float | None = None) -> Replay:
    """A search that finds something at the start and nothing better later."""
    return Replay(
        task=task,
        method=method,
        slots=8,
        seed=seed,
        budget=20.0,
        trained=((0.0, regret),),
        deployed=((0.0, regret),),
        busy=1.0 - seed / 100,
        trials=10,
        proposals_per_s=100.0,
        driver_s=1.0,
        pool_low_at=low,
    )


def test_regret_is_that_of_the_last_improvement_by_then() -> None:
    search = Replay(
        **{
            **{name: getattr(one("m", 0, 0.0), name) for name in Replay.__slots__},
            "trained": ((0.1, 0.7), (0.6, -0.1)),
        }
    )
    assert [search.regret(at) for at in (0.05, 0.1, 0.55, 1.0)] == [1.0, 0.7, 0.7, -0.1]


def test_summary_row_has_medians_and_the_least_busy_share() -> None:
    rows = summarise([one("m", seed, regret) for seed, regret in enumerate((0.5, 0.1, 0.2))])
    (row,) = rows
    assert set(row.regret.values()) == {0.2}
    assert (row.seeds, row.busy) == (3, pytest.approx(0.98))
    assert row.to_json() == {
        "task": "t",
        "method": "m",
        "slots": 8,
        "seeds": 3,
        "regret": {"0.1": 0.2, "0.25": 0.2, "0.5": 0.2, "1.0": 0.2},
        "busy": pytest.approx(0.98),
        "proposals_per_s": 100.0,
        "pool_low_at": None,
    }


def test_ranks_are_averaged_over_tasks_and_ties_are_shared() -> None:
    rows = summarise(
        [
            *(one("best", 0, 0.1, task=task) for task in "ab"),
            *(one("half", 0, regret, task=task) for task, regret in (("a", 0.1), ("b", 0.5))),
            *(one("last", 0, 0.9, task=task) for task in "ab"),
        ]
    )
    assert average_ranks(rows) == {"best": 1.25, "half": 1.75, "last": 3.0}


def test_method_that_skipped_a_task_has_no_rank() -> None:
    rows = summarise([one("m", 0, 0.1, task="a"), one("m", 0, 0.1, task="b"), one("n", 0, 0.0, task="a")])
    assert set(average_ranks(rows)) == {"m"}


def test_summary_table_marks_pools_that_ran_low() -> None:
    table = to_markdown(summarise([one("m", 0, 0.25, low=0.3)]))
    assert "| t | 8 | m | 1 | 0.250 | 0.250 | 0.250* | 0.250* | 100.0% | 100 |" in table
    assert "half of the pool" in table
