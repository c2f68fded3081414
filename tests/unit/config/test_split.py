"""The section `split`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from spark_hpo.config import SplitConfig
from spark_hpo.config.prepare import PrepareConfig


def refused_key(section: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        SplitConfig.model_validate(section)
    error = refused.value.errors()[0]
    return str(error["ctx"]["error"].args[0].key if error["type"] == "value_error" else error["loc"][-1])


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"key": "a", "group": "b"}, "key"),
        ({"key": "a", "time": "b"}, "key"),
        ({"time": "a", "column": "b"}, "time"),
        ({"stratify": "a", "group": "b"}, "stratify"),
        ({"stratify": "a", "time": "b"}, "stratify"),
        ({"values": {"train": 0, "validation": 1, "test": 2}}, "values"),
        ({"column": "fold", "values": {"train": 0, "validation": 1}}, "values"),
        ({"column": "fold", "fractions": [0.8, 0.1, 0.1]}, "fractions"),
        ({"fractions": [0.8, 0.2]}, "fractions"),
        ({"fractions": [0.8, 0.2, 0.2]}, "fractions"),
    ],
)
def test_split_config_names_a_setting_that_does_not_fit(section: dict[str, Any], key: str) -> None:
    assert refused_key(section) == key


def test_split_config_takes_one_name_or_several() -> None:
    assert SplitConfig(key="a").key == ("a",)  # type: ignore[arg-type]
    assert SplitConfig.model_validate({"group": ["a", "b"]}).columns == ("a", "b")


def test_split_config_survives_a_round_trip_through_json() -> None:
    section = {"column": "fold", "values": {"train": [0, 1], "validation": 2, "test": 3}}
    split = SplitConfig.model_validate(section)
    assert SplitConfig.model_validate(split.options()) == split
    assert split.values == {"train": (0, 1), "validation": (2,), "test": (3,)}
    assert SplitConfig().options() == {}


def test_split_config_groups_may_have_a_time() -> None:
    split = SplitConfig.model_validate({"group": "a", "time": "b"})
    assert split.columns == ("a", "b")
    assert not split.is_default


def test_prepare_section_passes_its_split_on() -> None:
    section = {"source": "csv", "input": "a.csv", "split": {"group": "customer"}, "categorical": ["zone"]}
    options = PrepareConfig.model_validate(section).options()
    assert options == {"input": "a.csv", "split": {"group": ["customer"]}, "categorical": ("zone",)}
