"""The section `resources` of a study file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from spark_hpo.config.resources import ResourcesConfig


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        (None, (0,)),
        ("40000-40002", range(40000, 40003)),
        ("40000 - 40002", range(40000, 40003)),
        ("40000", range(40000, 40001)),
        (40000, range(40000, 40001)),
    ],
)
def test_ports_is_a_range_a_port_or_any(value: Any, ports: Sequence[int]) -> None:
    resources = ResourcesConfig(ports=value)
    assert list(resources.listen_ports()) == list(ports)
    assert ResourcesConfig(**resources.model_dump()) == resources


@pytest.mark.parametrize(
    "value", ["", "all", "40010-40000", "80-90", "40000-70000", "40000,40001", 0, -1, True, [40000]]
)
def test_ports_that_are_not_a_range_are_refused_with_the_value(value: Any) -> None:
    with pytest.raises(ValueError, match="40000-40010") as caught:
        ResourcesConfig(ports=value)
    assert "ports" in str(caught.value)
