"""Delta tables on S3: a real server on loopback, keys from the environment alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spark_hpo.data.lake.formats import find_version, table_format
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.schema import TableFormat
from spark_hpo.errors import DataError
from tests.support.lakes import SCHEMA, delivered, rows
from tests.support.s3_server import s3_server

deltalake = pytest.importorskip("deltalake")
pytest.importorskip("moto")

pytestmark = pytest.mark.medium

SECRET = "canary-secret"
PLACE = "s3://lake/rides"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server(SECRET) as environment:
        yield environment


@pytest.fixture
def table(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    if not fs.exists("lake"):
        fs.mkdir("lake")
        options = {"AWS_ALLOW_HTTP": "true", "AWS_S3_ALLOW_UNSAFE_RENAME": "true"}
        for first in (0, 100):
            content = rows(first, first + 100)
            deltalake.write_deltalake(PLACE, content, mode="append", storage_options=options)
        deltalake.DeltaTable(PLACE, storage_options=options).delete("id < 50")
    yield PLACE
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("reader", ["arrow", "petastorm"])
def test_version_is_read_with_the_keys_of_the_environment(table: str, reader: str) -> None:
    if reader == "petastorm":
        pytest.importorskip("petastorm")
    assert table_format(table) is TableFormat.DELTA
    assert find_version(table, TableFormat.DELTA) == 2
    for version, expected in ((1, range(200)), (2, range(50, 200))):
        manifest = read_manifest(table, SCHEMA, version=version)
        assert delivered(manifest, SCHEMA, reader) == list(expected)


def test_missing_keys_are_named_and_wrong_ones_are_not_shown(
    table: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # no keys of the user
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="AWS_ACCESS_KEY_ID") as refused:
        read_manifest(table, SCHEMA)
    assert SECRET not in str(refused.value)
