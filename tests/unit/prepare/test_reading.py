"""How Spark reads an input, by the number and the sizes of its files. Without Spark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from spark_hpo.prepare.reading import has_many_small_files, settings

OPEN_COST, CODEGEN = "spark.sql.files.openCostInBytes", "spark.sql.codegen.factoryMode"


class Session:
    """The settings of a session, in a mapping."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {CODEGEN: "FALLBACK"}
        self.conf = self

    def get(self, key: str, default: str | None = None) -> str | None:
        return self.values.get(key, default)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def unset(self, key: str) -> None:
        del self.values[key]


def arguments(count: int, size: int) -> Mapping[str, Any]:
    listed = [[f"{number}.parquet", size, 0.0] for number in range(count)]
    return {"input": "table", "format": "parquet", "input_files": listed}


@pytest.mark.parametrize(
    ("count", "size", "is_interpreted", "is_cheap", "is_kept"),
    [
        (1, 60_000, True, True, False),
        (1, 2 * 2**20, False, True, False),
        (10_000, 3_000, False, True, True),
        (200, 2**20, False, True, True),
        (200, 4 * 2**20, False, False, False),
        (1, 2**30, False, False, False),
    ],
)
def test_settings_follow_the_number_and_sizes_of_the_files(
    count: int, size: int, is_interpreted: bool, is_cheap: bool, is_kept: bool
) -> None:
    session: Any = Session()
    table = arguments(count, size)
    with settings(session, table):
        assert (session.values[CODEGEN] == "NO_CODEGEN") is is_interpreted
        assert (OPEN_COST in session.values) is is_cheap
    assert session.values == {CODEGEN: "FALLBACK"}
    assert has_many_small_files(table) is is_kept
