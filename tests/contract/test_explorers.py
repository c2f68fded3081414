"""The built-in explorers against the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.registry import build_explorer
from spark_hpo.search.space import Space
from spark_hpo.testing import ExplorerContract
from spark_hpo.testing.explorers import slot_of
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


class BuiltInContract(ExplorerContract):
    """Further tests of the explorers that can be told which parameters may change."""

    name: str

    def build(self, space: Space, seed: int, **settings: Any) -> Explorer:
        return build_explorer(self.name, space, seed, **settings)

    def taught(self, **settings: Any) -> tuple[Explorer, list[Params]]:
        """Return an explorer with these settings, trained as in `population`, and the members."""
        contract = ExplorerContract()
        contract.build = lambda space, seed: self.build(space, seed, **settings)  # type: ignore[method-assign]
        return contract.population(SPACE)

    def test_child_differs_only_in_the_given_parameters(self) -> None:
        explorer, members = self.taught(parameters=MUTABLE)
        births = [(members[i % 9], slot_of(20 + i, 3, parent=i % 9)) for i in range(30)]
        children = [(parent, explorer.explore(slot, parent)) for parent, slot in births]
        assert all(child["frozen"] == parent["frozen"] for parent, child in children)
        assert all(child != parent for parent, child in children)
        assert any(child["channels"] != parent["channels"] for parent, child in children)

    def test_only_continuous_numbers_change_by_default(self) -> None:
        explorer, members = self.taught()
        for i, parent in enumerate(members[:9]):
            child = explorer.explore(slot_of(20 + i, 3, parent=i), parent)
            assert child["lr"] != parent["lr"]
            assert all(child[name] == parent[name] for name in ("channels", "layers"))
            assert isinstance(child["optimizer"], Mapping) == isinstance(parent["optimizer"], Mapping)

    def test_normal_numbers_stay_within_their_quantiles(self) -> None:
        for child in self.children(*self.taught(parameters=MUTABLE)):
            assert -10 < child["bias"] < 10

    def test_choices_are_explored_in_a_space_without_numbers(self) -> None:
        space = Space.from_config({"a": {"type": "choice", "options": [1, 2, 3]}})
        explorer = self.build(space, 0, parameters=["a"])
        children = [explorer.explore(slot_of(i, 3, parent=0), {"a": 1}) for i in range(40)]
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
            self.build(SPACE, 0, **{setting: value})
        assert error.value.key == f"explore.{setting}"
        assert cure in error.value.cure


class TestPerturbationExplorer(BuiltInContract):
    name = "perturbation"


class TestBanditExplorer(BuiltInContract):
    name = "pb2"


def test_unknown_explorer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'pb2'") as error:
        build_explorer("pb3", SPACE, 0)
    assert (error.value.key, error.value.value) == ("explorer", "pb3")
