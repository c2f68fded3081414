"""The grid sampler."""

from __future__ import annotations

import pytest

from spark_hpo.errors import SpaceError
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.space import Space

SPACE = Space.from_config(
    {"a": {"type": "choice", "options": ["x", "y"]}, "b": {"type": "int", "low": 1, "high": 3}}
)


def test_grid_is_covered_once() -> None:
    sampler = GridSampler(SPACE)
    seen = []
    for trial_id in range(sampler.size):
        seen.append(sampler.ask(trial_id))
        sampler.start(trial_id, seen[-1])
    assert seen == list(SPACE.grid(5))
    with pytest.raises(SpaceError, match="all 6 points"):
        sampler.ask(6)


def test_grid_skips_points_that_were_enqueued() -> None:
    sampler = GridSampler(SPACE)
    sampler.start(0, {"b": 1, "a": "x"})
    sampler.start(1, {"a": "x", "b": 3})
    sampler.start(2, {"a": "elsewhere", "b": 99})
    seen = []
    for trial_id in range(3, 7):
        seen.append(sampler.ask(trial_id))
        sampler.start(trial_id, seen[-1])
    assert [(p["a"], p["b"]) for p in seen] == [("x", 2), ("y", 1), ("y", 2), ("y", 3)]
