"""Whoever reads: the same rows, in the same order, of the same types."""

from __future__ import annotations

import pickle
import sys
import threading
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.decode import delivered
from spark_hpo.data.plan.manifest import read_manifest
from spark_hpo.data.plan.shards import Segment, plan_shards
from spark_hpo.data.readers import Reader, ReaderName, open_reader, resolve_reader
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.errors import ConfigError

CLASSES = tuple("0123456789")
RNG = np.random.default_rng(11)


def _numeric(*names: str) -> tuple[Feature, ...]:
    return tuple(Feature(name=name, kind=ColumnKind.NUMERIC) for name in names)


def _scalars(rows: int) -> pa.Table:
    return pa.table(
        {
            "income-per-year": RNG.normal(size=rows).astype("float32"),
            "a.b": RNG.normal(size=rows),
            "a": RNG.integers(-5, 5, rows),
            "flag": RNG.integers(0, 2, rows).astype(bool),
            "label": RNG.integers(0, 10, rows),
            "not needed": ["text"] * rows,
        }
    )


def _integers(rows: int) -> pa.Table:
    kinds = {"i8": "int8", "i16": "int16", "i32": "int32", "u8": "uint8", "u32": "uint32", "i64": "int64"}
    columns = {name: RNG.integers(0, 10, rows).astype(kind) for name, kind in kinds.items()}
    return pa.table({**columns, "label": RNG.integers(0, 2, rows).astype(bool)})


def _arrays(rows: int) -> pa.Table:
    flat = RNG.random((rows, 12)).astype("float32")
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 12)
    return pa.table(
        {
            "image": pa.array(list(flat)),
            "doubles": pa.array(list(flat.astype("float64"))),
            "fixed": fixed,
            "bytes": pa.array(list(RNG.integers(0, 255, (rows, 4)).astype("uint8"))),
            "label": RNG.normal(size=rows),
        }
    )


TABLES = {
    "scalars": (_scalars, _numeric("income-per-year", "a.b", "a", "flag"), CLASSES),
    "integers": (
        _integers,
        tuple(
            Feature(name=n, kind=ColumnKind.CATEGORICAL, vocabulary=CLASSES)
            for n in ("i8", "i16", "i32", "u8", "u32", "i64")
        ),
        ("no", "yes"),
    ),
    "arrays": (
        _arrays,
        (
            Feature(name="image", kind=ColumnKind.ARRAY, shape=(1, 3, 4)),
            Feature(name="doubles", kind=ColumnKind.ARRAY, shape=(12,)),
            Feature(name="fixed", kind=ColumnKind.ARRAY, shape=(2, 6)),
            Feature(name="bytes", kind=ColumnKind.ARRAY, shape=(4,)),
        ),
        (),
    ),
}
# rows of each file, and rows of its row groups
LAYOUTS = {
    "one row group": [(40, 100)],
    "several row groups": [(50, 16)],
    "many files": [(9, 4), (1, 4), (30, 7), (16, 100), (3, 1)],
}


@pytest.fixture(scope="module", params=[(t, lay) for t in TABLES for lay in LAYOUTS], ids="-".join)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TableSchema, pa.Table]:
    """A folder of Parquet, its schema, and all of its rows in order."""
    kind, layout = request.param
    make, features, classes = TABLES[kind]
    folder = tmp_path_factory.mktemp("table")
    parts = []
    for number, (rows, row_group_rows) in enumerate(LAYOUTS[layout]):
        parts.append(make(rows))
        pq.write_table(parts[-1], folder / f"part-{number}.parquet", row_group_size=row_group_rows)
    (folder / "_SUCCESS").touch()
    return (
        folder,
        TableSchema(features=features, label=Label(name="label", classes=classes)),
        pa.concat_tables(parts),
    )


def expected(table: pa.Table, schema: TableSchema) -> dict[str, np.ndarray]:
    """The columns, decoded the slow way."""
    columns = {}
    for feature in schema.features:
        dtype = np.int64 if feature.kind is ColumnKind.CATEGORICAL else np.float32
        values = np.array(table.column(feature.name).to_pylist())
        columns[feature.name] = values.astype(dtype).reshape(len(table), *feature.shape)
    dtype = np.float32 if schema.label.is_regression else np.int64
    columns["label"] = np.array(table.column("label").to_pylist()).astype(dtype)
    return columns


class ReaderContract:
    """What every reader keeps."""

    name: ReaderName

    def open(self, folder: Path, schema: TableSchema) -> Reader:
        return open_reader(self.name, read_manifest(str(folder), schema), schema)

    def test_it_delivers_the_rows_and_types_that_were_written(
        self, written: tuple[Path, TableSchema, pa.Table]
    ) -> None:
        folder, schema, table = written
        [shard] = plan_shards(read_manifest(str(folder), schema), 1, None)
        pieces = list(self.open(folder, schema).read(shard.segments))
        assert [len(p["label"]) for p in pieces] == [segment.rows for segment in shard.segments]
        for name, values in expected(table, schema).items():
            got = np.concatenate([piece[name] for piece in pieces])
            assert got.dtype == values.dtype
            np.testing.assert_array_equal(got, values)
        assert set(pieces[0]) == {column.name for column in delivered(schema)}

    @pytest.mark.parametrize("world_size", [2, 3, 7])
    def test_shards_in_any_order_and_cut_anywhere_make_up_the_table(
        self, written: tuple[Path, TableSchema, pa.Table], world_size: int
    ) -> None:
        folder, schema, table = written
        manifest = read_manifest(str(folder), schema)
        firsts: dict[tuple[int, int], int] = {}
        row = 0
        for group in manifest.row_groups:
            firsts[group.file, group.index] = row
            row += group.rows
        everything = expected(table, schema)
        reader = self.open(folder, schema)
        for shard in plan_shards(manifest, world_size, seed=4):
            pieces = list(reader.read(shard.segments))
            assert len(pieces) == len(shard.segments)
            for segment, piece in zip(shard.segments, pieces, strict=True):
                start = firsts[segment.file, segment.row_group] + segment.start
                for name, values in everything.items():
                    np.testing.assert_array_equal(piece[name], values[start : start + segment.rows])

    def test_one_segment_may_be_read_again_and_none_at_all(
        self, written: tuple[Path, TableSchema, pa.Table]
    ) -> None:
        folder, schema, table = written
        reader = self.open(folder, schema)
        twice = list(reader.read([Segment(0, 0, 1, 3), Segment(0, 0, 1, 3)]))
        np.testing.assert_array_equal(twice[0]["label"], expected(table, schema)["label"][1:3])
        np.testing.assert_array_equal(twice[0]["label"], twice[1]["label"])
        assert list(reader.read([])) == []

    def test_what_is_left_half_way_leaves_no_thread(
        self, written: tuple[Path, TableSchema, pa.Table]
    ) -> None:
        folder, schema, _ = written
        [shard] = plan_shards(read_manifest(str(folder), schema), 1, None)
        pieces = self.open(folder, schema).read(shard.segments)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name.startswith("reader")]

    def test_common_metadata_is_never_opened(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

        folder = tmp_path / "split"
        folder.mkdir()
        table = _scalars(8)
        pq.write_table(table, folder / "part-0.parquet")
        armed = table.schema.with_metadata({b"dataset-toolkit.unischema.v1": pickle.dumps(Bomb())})
        pq.write_metadata(armed, folder / "_common_metadata")
        _, features, classes = TABLES["scalars"]
        schema = TableSchema(features=features, label=Label(name="label", classes=classes))
        [piece] = self.open(folder, schema).read([Segment(0, 0, 0, 8)])
        assert len(piece["label"]) == 8
        assert not (tmp_path / "exploded").exists()

    def test_it_reads_from_any_fsspec_url(self, tmp_path: Path) -> None:
        pq.write_table(_integers(20), tmp_path / "a.parquet", row_group_size=6)
        memory = fsspec.filesystem("memory")
        url = f"memory://{tmp_path.name}-{self.name}"
        memory.pipe_file(f"{url}/a.parquet", (tmp_path / "a.parquet").read_bytes())
        _, features, classes = TABLES["integers"]
        schema = TableSchema(features=features, label=Label(name="label", classes=classes))
        manifest = read_manifest(url, schema)
        [shard] = plan_shards(manifest, 1, 0)
        pieces = list(open_reader(self.name, manifest, schema).read(shard.segments))
        assert sum(len(piece["label"]) for piece in pieces) == 20

    def test_it_is_silent_and_leaves_the_warning_filters_alone(
        self, written: tuple[Path, TableSchema, pa.Table]
    ) -> None:
        folder, schema, _ = written
        reader = self.open(folder, schema)  # Petastorm warns when it is first imported
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            list(reader.read([Segment(0, 0, 0, 1)]))
            assert warnings.filters == filters
        assert [str(warning.message) for warning in heard] == []


class TestArrowReader(ReaderContract):
    name = ReaderName.ARROW


class TestPetastormReader(ReaderContract):
    name = ReaderName.PETASTORM

    @pytest.fixture(autouse=True)
    def _importable(self) -> None:
        pytest.importorskip("petastorm")


def test_auto_is_petastorm_where_it_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("petastorm")
    assert resolve_reader("auto") is ReaderName.PETASTORM
    monkeypatch.setitem(sys.modules, "petastorm.reader", None)  # importing it fails
    assert resolve_reader("auto") is ReaderName.ARROW
    with pytest.raises(ConfigError, match=r"pip install 'spark_hpo\[petastorm\]'"):
        resolve_reader("petastorm")


def test_an_unknown_reader_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="reader is 'parquet'; it must be one of petastorm, arrow, auto"):
        resolve_reader("parquet")
