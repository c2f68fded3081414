"""Errors about settings: what is wrong, where, the value, what to do."""

from __future__ import annotations

import pytest

from spark_hpo.errors import ConfigError, SpaceError, located, within


def test_config_error_names_place_key_value_and_cure() -> None:
    with pytest.raises(SpaceError) as caught, located("here"), located("conf/tune.yaml"), within("search"):
        raise SpaceError("must be an integer >= 2", key="reduction_factor", value=1, cure="Use 3 or 4")
    assert str(caught.value) == (
        "conf/tune.yaml: search.reduction_factor must be an integer >= 2 (got 1). Use 3 or 4."
    )
    assert (caught.value.key, caught.value.value) == ("search.reduction_factor", 1)


def test_config_error_without_key_is_its_message() -> None:
    assert str(ConfigError("there is no study here")) == "there is no study here"


def test_config_error_shows_no_credentials() -> None:
    error = ConfigError("must be reachable", key="mlflow.tracking_uri", value="http://ann:s3cret@host")
    assert "s3cret" not in str(error)


def test_several_config_errors_make_one_line_each_with_section_and_place() -> None:
    mistakes = [ConfigError("must be set", key="trials"), ConfigError("must be > 0", key="seconds", value=0)]
    with pytest.raises(ConfigError) as caught, located("tune.yaml"), within("budget"):
        raise ConfigError.several(mistakes, cure="Fix both.")
    assert str(caught.value).splitlines() == [
        "tune.yaml: budget.trials must be set",
        "tune.yaml: budget.seconds must be > 0 (got 0)",
        "Fix both.",
    ]
    assert [error.key for error in caught.value.errors] == ["budget.trials", "budget.seconds"]


def test_config_error_shortens_a_long_value() -> None:
    assert len(str(ConfigError("must be a path", key="data", value="x" * 10_000))) < 120
