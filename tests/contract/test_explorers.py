"""The contract of explorers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.registry import build_explorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.space import Space
from spark_hpo.trial import Params

UNIT = {"type": "uniform", "low": 0, "high": 1}
SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
        "bias": {"type": "normal", "mu": 0, "sigma": 2},
        "channels": {"type": "choice", "options": [16, 32, 64]},
        "layers": {"type": "int", "low": 1, "high": 5},
        "optimizer": {"type": "choice", "options": ["adam", {"name": "sgd", "momentum": UNIT}]},
        "frozen": {"type": "uniform", "low": 0, "high": 1},
    }
)
MUTABLE = ["lr", "bias", "layers", "channels", "optimizer.momentum"]


def birth(trial_id: int, parent: int = 0, resource_from: int = 9) -> Slot:
    return Slot(
        trial_id=trial_id,
        bracket=0,
        rung=resource_from // 3,
        resource_from=resource_from,
        resource_to=resource_from + 3,
        parent=parent,
    )


class ExplorerContract:
    """Every explorer passes these. A subclass says how to build one."""

    def build(self, space: Space, seed: int = 0, **settings: Any) -> Explorer:
        raise NotImplementedError

    def taught(self, space: Space = SPACE, seed: int = 0, **settings: Any) -> tuple[Explorer, list[Params]]:
        """An explorer that has seen ten members train three segments each, one fail, and two in flight."""
        explorer = self.build(space, seed, **settings)
        rng = np.random.default_rng(seed)
        members = [space.sample(rng) for _ in range(12)]
        for step in range(3):
            for trial_id, params in enumerate(members[:10]):
                slot = Slot(
                    trial_id=trial_id, bracket=0, rung=step, resource_from=3 * step, resource_to=3 * step + 3
                )
                explorer.start(slot, params)
                failed = trial_id == 9 and step == 2
                explorer.tell(slot, math.inf if failed else 1 / (step + 1 + params["lr"]))
        for trial_id in (10, 11):
            explorer.start(birth(trial_id), members[trial_id])
        return explorer, members

    def test_children_fit_the_space(self) -> None:
        explorer, members = self.taught(parameters=MUTABLE)
        for i, parent in enumerate(members[:9]):
            child = explorer.explore(birth(20 + i, i), parent)
            assert SPACE.validate(child) == child
            assert -10 < child["bias"] < 10

    def test_child_differs_only_in_the_given_parameters(self) -> None:
        explorer, members = self.taught(parameters=MUTABLE)
        births = [(members[i % 9], birth(20 + i, i % 9)) for i in range(30)]
        children = [(parent, explorer.explore(slot, parent)) for parent, slot in births]
        assert all(child["frozen"] == parent["frozen"] for parent, child in children)
        assert all(child != parent for parent, child in children)
        assert any(child["channels"] != parent["channels"] for parent, child in children)

    def test_only_continuous_numbers_change_by_default(self) -> None:
        explorer, members = self.taught()
        for i, parent in enumerate(members[:9]):
            child = explorer.explore(birth(20 + i, i), parent)
            assert child["lr"] != parent["lr"]
            assert all(child[name] == parent[name] for name in ("channels", "layers"))
            assert isinstance(child["optimizer"], Mapping) == isinstance(parent["optimizer"], Mapping)

    def test_children_meet_the_constraints(self) -> None:
        space = Space.from_config({"x": UNIT, "y": UNIT}, constraints=["x < y", "x < 0.3"])
        explorer = self.build(space)
        rng = np.random.default_rng(0)
        for trial_id in range(30):  # the loss falls fastest where nobody may go
            params = space.sample(rng)
            first = Slot(trial_id=trial_id, bracket=0, rung=0, resource_from=0, resource_to=3)
            explorer.start(first, params)
            explorer.tell(first, 1.0)
            second = Slot(trial_id=trial_id, bracket=0, rung=1, resource_from=3, resource_to=6)
            explorer.start(second, params)
            explorer.tell(second, 1.0 - params["x"] + params["y"])
        for trial_id in range(30, 60):
            child = explorer.explore(birth(trial_id), {"x": 0.25, "y": 0.28})
            assert space.allows(child)

    def test_explore_changes_nothing_and_is_repeatable(self) -> None:
        explorer, members = self.taught()
        child = explorer.explore(birth(20, 3), members[3])
        for i in range(4):
            explorer.explore(birth(21 + i, i), members[i])
        assert explorer.explore(birth(20, 3), members[3]) == child
        # As a study that resumes does: it is told, and never asked.
        assert self.taught()[0].explore(birth(20, 3), members[3]) == child

    def test_children_of_two_trials_differ(self) -> None:
        explorer, members = self.taught()
        children = [explorer.explore(birth(20 + i, 3), members[3]) for i in range(8)]
        assert len({child["bias"] for child in children}) > 1

    def test_space_without_numbers_is_explored(self) -> None:
        space = Space.from_config({"a": {"type": "choice", "options": [1, 2, 3]}})
        explorer = self.build(space, parameters=["a"])
        children = [explorer.explore(birth(i), {"a": 1}) for i in range(40)]
        assert {child["a"] for child in children} == {1, 2, 3}

    @pytest.mark.parametrize(
        ("setting", "value", "cure"),
        [
            ("perturbation", 0.0, ""),
            ("resample_probability", 1.5, ""),
            ("parameters", ["momentum"], "'optimizer.momentum'"),
            ("perturbations", 0.1, "'perturbation'"),
        ],
    )
    def test_invalid_settings_are_refused(self, setting: str, value: object, cure: str) -> None:
        with pytest.raises(ConfigError) as error:
            self.build(SPACE, **{setting: value})
        assert error.value.key == f"explore.{setting}"
        assert cure in error.value.cure


class TestPerturbationExplorer(ExplorerContract):
    def build(self, space: Space, seed: int = 0, **settings: Any) -> Explorer:
        return build_explorer("perturbation", space, seed, **settings)


class TestBanditExplorer(ExplorerContract):
    def build(self, space: Space, seed: int = 0, **settings: Any) -> Explorer:
        return build_explorer("pb2", space, seed, **settings)


def test_unknown_explorer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'pb2'") as error:
        build_explorer("pb3", SPACE, 0)
    assert (error.value.key, error.value.value) == ("explorer", "pb3")
