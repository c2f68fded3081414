"""`files.catalog_source`: names in a catalog, queries and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.data.files import catalog_source


@pytest.mark.parametrize("text", ["main.sales.orders", "default.orders", "`my db`.orders"])
def test_catalog_source_knows_names(text: str) -> None:
    assert catalog_source(text) == {"table": text}


@pytest.mark.parametrize("text", ["SELECT 1 AS one", " with a as (select 1) select * from a", "select\n1"])
def test_catalog_source_knows_queries(text: str) -> None:
    assert catalog_source(text) == {"query": text}


@pytest.mark.parametrize(
    "text",
    ["orders", "data/orders", "./a.b", "orders.parquet", "a.b.csv.gz", "s3://lake/a.b", "selected.x/y"],
)
def test_catalog_source_leaves_paths_alone(text: str) -> None:
    assert catalog_source(text) is None


def test_catalog_source_prefers_a_path_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert catalog_source("sales.orders") == {"table": "sales.orders"}
    (tmp_path / "sales.orders").mkdir()
    assert catalog_source("sales.orders") is None
