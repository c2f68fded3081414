"""How Spark reads an input, by the number and the sizes of its files. Without Spark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from spark_hpo.prepare.reading import has_many_small_files, settings_for

OPEN_COST, CODEGEN = "spark.sql.files.openCostInBytes", "spark.sql.codegen.factoryMode"


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
    table = arguments(count, size)
    settings = settings_for(table)
    assert (settings.get(CODEGEN) == "NO_CODEGEN") is is_interpreted
    assert (OPEN_COST in settings) is is_cheap
    assert has_many_small_files(table) is is_kept
