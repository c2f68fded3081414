"""Ranks by rung in study files: what fits, and the messages about what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_hpo.config import StudyConfig
from spark_hpo.driver.precheck import check_study
from spark_hpo.errors import ConfigError
from tests.support.tables import clusters_study

SEARCH = {"method": "asha", "max_resource": 9}


@pytest.mark.parametrize(
    "world_size",
    [
        {},
        {1: 2},
        {0: 4, 1: 2},
        {0: 2, 1: 3},
        {0: 1, 1: 0},
        {0: 1, 1: True},
        {0: 1, -1: 2},
        {"top": 2},
        0,
        True,
        "many",
        [1, 2],
    ],
    ids=str,
)
def test_world_size_that_cannot_be_is_refused(tmp_path: Path, world_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"\bresources\.world_size\b"):
        clusters_study(tmp_path, backend="local", resources={"world_size": world_size})


@pytest.mark.parametrize(
    ("search", "highest"),
    [
        (SEARCH, 2),
        ({"method": "random", "max_resource": 9}, 0),
        ({"method": "hyperband", "max_resource": 27}, 3),
        ({"method": "default", "max_resource": 9, "min_resource": 3}, 1),
    ],
)
def test_rung_that_does_not_exist_is_refused(tmp_path: Path, search: dict[str, Any], highest: int) -> None:
    def study(rung: int) -> StudyConfig:
        sizes = {"world_size": {0: 1, rung: 2} if rung else {0: 2}}
        return clusters_study(tmp_path, backend="local", search=search, resources=sizes)

    (tmp_path / "table").mkdir(exist_ok=True)
    with pytest.raises(ConfigError) as caught:
        check_study(study(highest + 1))
    assert (caught.value.key, caught.value.value) == ("resources.world_size", {0: 1, highest + 1: 2})


def test_growing_ranks_are_refused_where_a_trial_has_one(tmp_path: Path) -> None:
    for changes in ({"backend": "inline"}, {"backend": "local", "gpus": 0.5}):
        gpus = changes.pop("gpus", 0)
        with pytest.raises(ConfigError, match=r"\bresources\."):
            clusters_study(tmp_path, resources={"world_size": {0: 1, 1: 2}, "gpus_per_rank": gpus}, **changes)


def test_settings_survive_json(tmp_path: Path) -> None:
    config = clusters_study(tmp_path, backend="local", resources={"world_size": {2: 4, 0: 1}})
    record = config.model_dump(mode="json")
    assert record["resources"]["world_size"] in ({"0": 1, "2": 4}, {0: 1, 2: 4})
    again = StudyConfig.model_validate({**record, "source": None} if "source" in record else record)
    assert again.resources.world_size == {0: 1, 2: 4}
    assert again.resources.most_ranks == 4
