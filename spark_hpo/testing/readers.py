"""The contract of readers: the rows, order and types that a table's schema promises."""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.encode import delivered
from spark_hpo.data.plan.folds import FoldRows
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import Segment, plan_shards
from spark_hpo.data.readers import Reader
from spark_hpo.data.schema import LENGTH_SUFFIX, ColumnKind, Feature, Label, TableSchema

_DIGITS = tuple("0123456789")


def _scalars(rows: int, rng: np.random.Generator) -> pa.Table:
    return pa.table(
        {
            "income-per-year": rng.normal(size=rows).astype("float32"),
            "a.b": rng.normal(size=rows),
            "a": rng.integers(-5, 5, rows),
            "flag": rng.integers(0, 2, rows).astype(bool),
            "label": rng.integers(0, 10, rows),
            "not needed": ["text"] * rows,
        }
    )


def _integers(rows: int, rng: np.random.Generator) -> pa.Table:
    kinds = {"i8": "int8", "i16": "int16", "i32": "int32", "u8": "uint8", "u32": "uint32", "i64": "int64"}
    columns = {name: rng.integers(0, 10, rows).astype(kind) for name, kind in kinds.items()}
    return pa.table({**columns, "label": rng.integers(0, 2, rows).astype(bool)})


def _arrays(rows: int, rng: np.random.Generator) -> pa.Table:
    flat = rng.random((rows, 12)).astype("float32")
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 12)
    return pa.table(
        {
            "image": pa.array(list(flat)),
            "doubles": pa.array(list(flat.astype("float64"))),
            "fixed": fixed,
            "bytes": pa.array(list(rng.integers(0, 255, (rows, 4)).astype("uint8"))),
            "label": rng.normal(size=rows),
        }
    )


def _texts(rows: int, rng: np.random.Generator) -> pa.Table:
    words = ["", "short", "Grüße", "twelve bytes", "Ελλάδα, a longer text"]
    texts = [words[i] for i in rng.integers(0, len(words), rows)]
    return pa.table({"text": texts, "label": rng.normal(size=rows)})


@dataclass(frozen=True)
class _Kind:
    """A kind of table: its rows, and the features and classes of its schema."""

    make: Callable[[int, np.random.Generator], pa.Table]
    features: tuple[Feature, ...]
    classes: tuple[str, ...]

    @property
    def schema(self) -> TableSchema:
        return TableSchema(features=self.features, label=Label(name="label", classes=self.classes))


_TABLES = {
    "scalars": _Kind(
        _scalars,
        tuple(Feature(name=n, kind=ColumnKind.NUMERIC) for n in ("income-per-year", "a.b", "a", "flag")),
        _DIGITS,
    ),
    "integers": _Kind(
        _integers,
        tuple(
            Feature(name=n, kind=ColumnKind.CATEGORICAL, vocabulary=_DIGITS)
            for n in ("i8", "i16", "i32", "u8", "u32", "i64")
        ),
        ("no", "yes"),
    ),
    "arrays": _Kind(
        _arrays,
        (
            Feature(name="image", kind=ColumnKind.ARRAY, shape=(1, 3, 4)),
            Feature(name="doubles", kind=ColumnKind.ARRAY, shape=(12,)),
            Feature(name="fixed", kind=ColumnKind.ARRAY, shape=(2, 6)),
            Feature(name="bytes", kind=ColumnKind.ARRAY, shape=(4,)),
        ),
        (),
    ),
    "texts": _Kind(_texts, (Feature(name="text", kind=ColumnKind.TEXT, shape=(12,)),), ()),
}
# For each file, its rows and the rows of a row group.
_LAYOUTS = {
    "one row group": [(40, 100)],
    "several row groups": [(50, 16)],
    "many files": [(9, 4), (1, 4), (30, 7), (16, 100), (3, 1)],
}


@dataclass(frozen=True)
class WrittenTable:
    """A folder of Parquet files, its schema, and all rows in order."""

    folder: Path
    schema: TableSchema
    rows: pa.Table

    @property
    def manifest(self) -> Manifest:
        return read_manifest(str(self.folder), self.schema)

    def expected(self) -> dict[str, Any]:
        """The columns that a reader must deliver, decoded value by value."""
        columns: dict[str, Any] = {}
        for feature in self.schema.features:
            if feature.kind is ColumnKind.TEXT:
                longest = feature.shape[0]
                cut = [text.encode()[:longest] for text in self.rows.column(feature.name).to_pylist()]
                columns[feature.name] = np.array([list(data.ljust(longest, b"\0")) for data in cut], np.uint8)
                columns[feature.name + LENGTH_SUFFIX] = np.array(list(map(len, cut)))
                continue
            dtype = np.int64 if feature.kind is ColumnKind.CATEGORICAL else np.float32
            values = np.array(self.rows.column(feature.name).to_pylist())
            columns[feature.name] = values.astype(dtype).reshape(len(self.rows), *feature.shape)
        dtype = np.float32 if self.schema.label.is_regression else np.int64
        columns["label"] = np.array(self.rows.column("label").to_pylist()).astype(dtype)
        return columns


class ReaderContract:
    """Tests that every reader passes. A subclass implements `build`."""

    def build(self, manifest: Manifest, schema: TableSchema) -> Reader:
        """Return a new reader."""
        raise NotImplementedError

    @pytest.fixture(params=[(table, layout) for table in _TABLES for layout in _LAYOUTS], ids="-".join)
    def table(self, request: pytest.FixtureRequest, tmp_path: Path) -> WrittenTable:
        """Each kind of table in each layout of files and row groups."""
        kind, layout = request.param
        rng = np.random.default_rng(11)
        parts = []
        for number, (rows, row_group_rows) in enumerate(_LAYOUTS[layout]):
            parts.append(_TABLES[kind].make(rows, rng))
            pq.write_table(parts[-1], tmp_path / f"part-{number}.parquet", row_group_size=row_group_rows)
        (tmp_path / "_SUCCESS").touch()
        return WrittenTable(tmp_path, _TABLES[kind].schema, pa.concat_tables(parts))

    def test_read_delivers_the_rows_and_types_of_the_schema(self, table: WrittenTable) -> None:
        [shard] = plan_shards(table.manifest, 1, None)
        pieces = list(self.build(table.manifest, table.schema).read(shard.segments))
        assert [len(piece["label"]) for piece in pieces] == [segment.rows for segment in shard.segments]
        for name, values in table.expected().items():
            read = np.concatenate([piece[name] for piece in pieces])
            assert read.dtype == values.dtype
            np.testing.assert_array_equal(read, values)
        assert set(pieces[0]) == {column.name for column in delivered(table.schema)}

    @pytest.mark.parametrize(("world_size", "has_folds"), [(2, False), (3, False), (7, False), (2, True)])
    def test_read_delivers_segments_in_the_order_given(
        self, table: WrittenTable, world_size: int, has_folds: bool
    ) -> None:
        manifest, columns = table.manifest, table.expected()
        if has_folds:  # several segments of a row group
            manifest = manifest.of_fold(FoldRows(number=2, count=4, seed=0, is_held_out=False))
        first_rows: dict[tuple[int, int], int] = {}  # by file and row group
        row = 0
        for group in manifest.row_groups:
            first_rows[group.file, group.index] = row
            row += group.rows
        reader = self.build(manifest, table.schema)
        for shard in plan_shards(manifest, world_size, seed=4):
            pieces = list(reader.read(shard.segments))
            assert len(pieces) == len(shard.segments)
            for segment, piece in zip(shard.segments, pieces, strict=True):
                start = first_rows[segment.file, segment.row_group] + segment.start
                for name, values in columns.items():
                    np.testing.assert_array_equal(piece[name], values[start : start + segment.rows])

    def test_read_accepts_repeated_and_no_segments(self, table: WrittenTable) -> None:
        reader = self.build(table.manifest, table.schema)
        twice = list(reader.read([Segment(0, 0, 1, 3), Segment(0, 0, 1, 3)]))
        np.testing.assert_array_equal(twice[0]["label"], table.expected()["label"][1:3])
        np.testing.assert_array_equal(twice[0]["label"], twice[1]["label"])
        assert list(reader.read([])) == []

    def test_closing_a_half_read_iterator_leaves_no_thread(self, table: WrittenTable) -> None:
        [shard] = plan_shards(table.manifest, 1, None)
        before = set(threading.enumerate())
        pieces = self.build(table.manifest, table.schema).read(shard.segments)
        next(pieces)
        pieces.close()
        assert set(threading.enumerate()) <= before

    def test_common_metadata_is_never_unpickled(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (tmp_path / "unpickled",)

        folder = tmp_path / "split"
        folder.mkdir()
        rows = _scalars(8, np.random.default_rng(11))
        pq.write_table(rows, folder / "part-0.parquet")
        pickled = {b"dataset-toolkit.unischema.v1": pickle.dumps(Payload())}
        pq.write_metadata(rows.schema.with_metadata(pickled), folder / "_common_metadata")
        table = WrittenTable(folder, _TABLES["scalars"].schema, rows)
        [piece] = self.build(table.manifest, table.schema).read([Segment(0, 0, 0, 8)])
        assert len(piece["label"]) == 8
        assert not (tmp_path / "unpickled").exists()

    def test_read_from_any_fsspec_url(self, tmp_path: Path) -> None:
        rows, schema = _integers(20, np.random.default_rng(11)), _TABLES["integers"].schema
        pq.write_table(rows, tmp_path / "a.parquet", row_group_size=6)
        url = f"memory://{tmp_path.name}-{type(self).__name__}"
        fsspec.filesystem("memory").pipe_file(f"{url}/a.parquet", (tmp_path / "a.parquet").read_bytes())
        manifest = read_manifest(url, schema)
        [shard] = plan_shards(manifest, 1, 0)
        pieces = list(self.build(manifest, schema).read(shard.segments))
        assert sum(len(piece["label"]) for piece in pieces) == 20

    def test_read_warns_of_nothing_and_keeps_the_warning_filters(self, table: WrittenTable) -> None:
        reader = self.build(table.manifest, table.schema)  # importing a reader's package may warn
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            list(reader.read([Segment(0, 0, 0, 1)]))
            assert warnings.filters == filters
        assert [str(warning.message) for warning in caught] == []
