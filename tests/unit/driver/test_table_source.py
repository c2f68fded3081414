"""`check_source`: what is refused of a table that is not prepared before Spark is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.config import DataConfig, StudyConfig
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.table import open_table
from spark_hpo.driver.build import prepare_table
from spark_hpo.driver.run import run_study
from spark_hpo.driver.table_source import check_source, row_groups_divide, schema_folder
from spark_hpo.errors import ConfigError, DataError
from tests.support.tables import clusters_study, write_clusters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `sales.parquet`, `sales.csv` and a prepared table."""
    write_clusters(tmp_path / "table")
    pq.write_table(pa.table({"price": [1.0, 2.0], "sold": [0, 1]}), tmp_path / "sales.parquet")
    (tmp_path / "sales.csv").write_text("price,sold\n1.0,0\n")
    (tmp_path / "notes.txt.gz").write_bytes(b"no table")
    return tmp_path


def study(folder: Path, path: str, **settings: Any) -> StudyConfig:
    return clusters_study(folder, data={"path": str(folder / path), **settings})


@pytest.mark.parametrize(
    ("path", "settings", "key"),
    [
        ("sales.parquet", {}, "data.label"),
        ("sales.csv", {}, "data.label"),
        ("sales.parquet", {"label": "sodl"}, "data.label"),
        ("sales.parquet", {"label": "sold", "drop": ["prize"]}, "data.drop"),
        ("sales.parquet", {"label": "sold", "categorical": ["season"]}, "data.categorical"),
        ("sales.parquet", {"label": "sold", "split": {"time": "day"}}, "data.split"),
        ("table", {"split": {"time": "day"}}, "data.split"),
        ("table", {"label": "price"}, "data.label"),
        ("table", {"drop": ["x"]}, "data.drop"),
        ("table", {"version": 3}, "data.version"),
        ("notes.txt.gz", {"label": "sold"}, "data.path"),
    ],
)
def test_check_source_names_the_setting(folder: Path, path: str, settings: dict[str, Any], key: str) -> None:
    config = study(folder, path, **settings)
    with pytest.raises(ConfigError) as caught:
        check_source(config, None)
    assert caught.value.key == key
    with pytest.raises(ConfigError):
        run_study(config)
    assert not (folder / "study").exists()


def test_check_source_refuses_a_folder_without_tables(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet files"):
        check_source(study(folder, "empty", label="sold"), None)


def test_check_source_accepts_what_a_study_can_read(folder: Path) -> None:
    check_source(study(folder, "sales.parquet", label="sold", drop=["price"]), None)
    check_source(study(folder, "sales.csv", label="sold"), None)
    check_source(study(folder, "table"), None)
    check_source(study(folder, "table", label="side"), None)


def has_rows(path: str, share: tuple[float, float]) -> bool:
    try:
        return read_manifest(path, share=share).rows > 0
    except DataError:
        return False


def test_row_groups_divide_a_table_if_each_split_gets_some(folder: Path) -> None:
    rows = pa.table({"price": [1.0, 2.0] * 10, "sold": [0, 1] * 10})
    found = []
    for number in range(16):
        path = str(folder / f"sales-{number}.parquet")
        pq.write_table(rows, path, row_group_size=1)
        data = DataConfig(path=path, label="sold")
        found.append(row_groups_divide(path, data))
        assert found[-1] == all(has_rows(path, share) for share in ((0.0, 0.8), (0.8, 0.9), (0.9, 1.0)))
    assert set(found) == {True, False}
    pq.write_table(rows, folder / "few.parquet", row_group_size=2)
    assert not row_groups_divide(str(folder / "few.parquet"), DataConfig(path="few.parquet", label="sold"))


def test_pandas_dataframe_is_described_without_a_session(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "spark_hpo.backend.spark.session", raising=False)
    monkeypatch.setitem(sys.modules, "spark_hpo.backend.spark.session", None)  # importing it raises
    frame = pd.DataFrame({"x": np.arange(400) / 7, "side": ["left", "right"] * 200})
    config = clusters_study(folder, data={"dataframe": True, "label": "side"}, backend="spark")
    assert prepare_table(config, frame=frame) is None
    assert open_table(schema_folder(config)).rows == 400


def test_table_in_which_no_column_can_be_used_is_refused_by_name(folder: Path) -> None:
    frame = pd.DataFrame({"row": range(40), "same": 1, "side": ["left", "right"] * 20})
    config = clusters_study(folder, data={"dataframe": True, "label": "side"})
    with pytest.raises(DataError, match=r"no column is left to learn from: 'row' numbers .* --keep row"):
        prepare_table(config, frame=frame)
