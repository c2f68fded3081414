"""Fixtures of the tests of tables."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["arrow", "petastorm"])
def reader(request: pytest.FixtureRequest) -> str:
    """The name of a reader that ships with the package."""
    if request.param == "petastorm":
        pytest.importorskip("petastorm")
    return str(request.param)
