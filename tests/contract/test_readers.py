"""The built-in readers against the contract, and how a reader is chosen."""

from __future__ import annotations

import sys

import pytest

from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.readers import Reader, ReaderName, open_reader, resolve_reader
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import ConfigError
from spark_hpo.testing import ReaderContract


class TestArrowReader(ReaderContract):
    def build(self, manifest: Manifest, schema: TableSchema) -> Reader:
        return open_reader("arrow", manifest, schema)


class TestPetastormReader(ReaderContract):
    def build(self, manifest: Manifest, schema: TableSchema) -> Reader:
        pytest.importorskip("petastorm")
        return open_reader("petastorm", manifest, schema)


def test_auto_reader_is_petastorm_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("petastorm")
    assert resolve_reader("auto") is ReaderName.PETASTORM
    monkeypatch.setitem(sys.modules, "petastorm.reader", None)  # importing it fails
    assert resolve_reader("auto") is ReaderName.ARROW
    with pytest.raises(ConfigError, match=r"petastorm==0\.12\.1"):
        resolve_reader("petastorm")


def test_unknown_reader_is_refused_with_the_valid_names() -> None:
    with pytest.raises(ConfigError, match="petastorm, arrow, auto") as error:
        resolve_reader("parquet")
    assert (error.value.key, error.value.value) == ("reader", "parquet")
