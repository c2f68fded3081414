import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split
from tests.support.tables import CLUSTERS, write_clusters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_clusters(tmp_path / "clusters")


def test_open_table_reads_the_schema_and_the_manifests(folder: Path) -> None:
    table = open_table(str(folder))
    assert table.schema == CLUSTERS
    assert [table.manifest(split).rows for split in Split] == [120, 60, 60]


def test_table_survives_json_and_pickle(folder: Path) -> None:
    table = open_table(str(folder))
    assert pickle.loads(pickle.dumps(table)) == table
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_open_table_makes_paths_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert open_table("clusters").url == str(folder)
    assert all(os.path.isabs(f.path) for f in open_table("clusters").manifest(Split.TEST).files)


def test_open_table_without_a_schema_names_the_fix(folder: Path, tmp_path: Path) -> None:
    (folder / "schema.json").unlink()
    with pytest.raises(DataError, match=r"has no schema\.json.*--output <another folder>"):
        open_table(str(folder))
    with pytest.raises(DataError, match="the table does not exist"):
        open_table(str(tmp_path / "none"))


def test_open_table_names_the_format_of_a_delta_table(tmp_path: Path) -> None:
    (tmp_path / "_delta_log").mkdir()
    with pytest.raises(DataError, match=r"is a table of format delta.*--in-place"):
        open_table(str(tmp_path))


def test_open_table_names_a_damaged_schema(folder: Path) -> None:
    (folder / "schema.json").write_text('{"features": 3')
    with pytest.raises(DataError, match=r"schema\.json is not a valid"):
        open_table(str(folder))


def test_open_table_names_a_missing_split(folder: Path) -> None:
    (folder / "test" / "part-0.parquet").unlink()
    (folder / "test").rmdir()
    with pytest.raises(DataError, match="clusters/test does not exist"):
        open_table(str(folder))


def test_fingerprint_of_a_table_depends_on_every_split(folder: Path) -> None:
    before = open_table(str(folder)).fingerprint
    assert open_table(str(folder)).fingerprint == before
    shutil.copyfile(folder / "train" / "part-0.parquet", folder / "test" / "part-0.parquet")
    assert open_table(str(folder)).fingerprint != before


def test_open_table_refuses_a_schema_that_names_code(tmp_path: Path) -> None:
    table = write_clusters(tmp_path / "table")
    schema = json.loads((table / "schema.json").read_text())
    ran = tmp_path / "ran"
    code = {**schema["features"][0], "name": f"touch {ran}", "kind": "binary", "transform": "os:system"}
    (table / "schema.json").write_text(json.dumps({**schema, "features": [code]}))
    with pytest.raises(DataError, match=r"schema\.json: .* names the function 'os:system'"):
        open_table(str(table))
    assert not ran.exists()


def test_open_table_names_an_object_store_that_refuses_access(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match=r"s3://none/schema\.json cannot be accessed: .*AWS_ACCESS_KEY_ID"):
        open_table("s3://none")
