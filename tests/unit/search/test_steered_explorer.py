"""Explorers whose ranges people change."""

from __future__ import annotations

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.search.explorers.steered import SteeredExplorer
from spark_hpo.search.registry import build_explorer
from spark_hpo.search.scheduler import Slot
from spark_hpo.search.space import Space

SPACE = Space.from_config(
    {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1},
        "units": {"type": "int", "low": 8, "high": 64},
        "optimizer": {"type": "choice", "options": ["adam", "sgd"]},
    }
)


def steered(**settings: object) -> SteeredExplorer:
    def make(space: Space) -> object:
        return build_explorer("perturbation", space, 0, **settings)

    return SteeredExplorer(make(SPACE), SPACE, make)  # type: ignore[arg-type]


def test_child_starts_from_the_nearest_value_inside_the_new_range() -> None:
    explorer = steered()
    explorer.change_ranges({"lr": [1e-3, 2e-3]})
    parent = {"lr": 0.05, "units": 16, "optimizer": "sgd"}
    for trial_id in range(20):
        slot = Slot(trial_id=trial_id, bracket=0, rung=1, resource_from=3, resource_to=6, parent=0)
        child = explorer.explore(slot, parent)
        assert 1e-3 <= child["lr"] <= 2e-3
        assert (child["units"], child["optimizer"]) == (16, "sgd")


@pytest.mark.parametrize("name", ["units", "optimizer"])
def test_range_of_what_children_inherit_cannot_change(name: str) -> None:
    with pytest.raises(ConfigError, match="Ranges that can change: lr") as caught:
        steered().check_ranges({name: [8, 16]})
    assert caught.value.key == name
    steered(parameters=["units"]).check_ranges({"units": [8, 16]})
