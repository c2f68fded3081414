"""Fixtures of the tests that use a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium; without one, the tests are skipped."""
    from tests.support.browser import CURE, chromium

    with chromium() as found:
        if found is None:
            pytest.skip(CURE)
        yield found
