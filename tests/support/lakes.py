"""Real Delta and Iceberg tables for tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, NullRule, TableSchema

_MOST_LINKS = 30_000  # to one file; file systems have limits
SEASONS = ("spring", "summer", "autumn", "winter")


SCHEMA = TableSchema(
    features=(
        Feature(name="id", kind=ColumnKind.NUMERIC),
        Feature(name="season", kind=ColumnKind.CATEGORICAL, vocabulary=SEASONS),
    ),
    label=Label(name="label", classes=("no", "yes")),
    encoding=Encoding.RAW,
)
GROWN = TableSchema(
    features=(
        *SCHEMA.features,
        Feature(name="wind", kind=ColumnKind.NUMERIC, mean=4.0, nulls=NullRule.FILL),
        Feature(name="wind_missing", kind=ColumnKind.NUMERIC, source="wind", marks_missing=True),
    ),
    label=SCHEMA.label,
    encoding=Encoding.RAW,
)


def delivered(manifest: Manifest, schema: TableSchema, reader: str, name: str = "id") -> list[Any]:
    """The values of a column that two ranks get, in ascending order."""
    found: list[Any] = []
    for shard in plan_shards(manifest, 2, 0):
        for piece in open_reader(reader, Manifest.from_json(manifest.to_json()), schema).read(shard.segments):
            found += piece[name].tolist()
    return sorted(found)


def rows(first: int, last: int, **more: Any) -> pa.Table:
    """Rows of a table with an id, a number, a category and a label of two classes that follows them."""
    ids = range(first, last)
    columns = {
        "id": pa.array(ids, pa.int64()),
        "x": pa.array([(i * 37 % 100) / 10 for i in ids], pa.float64()),
        "season": pa.array([SEASONS[i % 4] for i in ids]),
        "label": pa.array(["yes" if i * 37 % 100 > 50 else "no" for i in ids]),
    }
    return pa.table({**columns, **{name: pa.array([value] * len(ids)) for name, value in more.items()}})


def write_delta(folder: Path, content: pa.Table, **options: Any) -> None:
    from deltalake import write_deltalake

    write_deltalake(str(folder), content, **options)


def add_commit(folder: Path, *actions: Mapping[str, Any]) -> int:
    """Add a commit that deltalake cannot write to the log of a Delta table, and return its version."""
    log = folder / "_delta_log"
    version = 1 + max(int(path.stem) for path in log.glob("*.json"))
    lines = "".join(json.dumps(action) + "\n" for action in actions)
    (log / f"{version:020}.json").write_text(lines)
    return version


def metadata_of(folder: Path) -> dict[str, Any]:
    """The newest metadata action in the log of a Delta table."""
    found: list[dict[str, Any]] = []
    for path in sorted((folder / "_delta_log").glob("*.json")):
        found += [a for line in path.read_text().splitlines() if "metaData" in (a := json.loads(line))]
    return found[-1]


def write_many_files(folder: Path, count: int, rows_each: int) -> None:
    """Make a Delta table of very many files, which are links to few, and a log with their statistics."""
    (folder / "_delta_log").mkdir(parents=True)
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=rows_each) for i in range(9)}
    content = pa.table({"id": np.arange(rows_each), **columns, "y": rng.normal(size=rows_each)})
    fields = [
        {"name": name, "type": "long" if name == "id" else "double", "nullable": True, "metadata": {}}
        for name in content.column_names
    ]
    metadata = {
        "id": "many",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": [],
        "configuration": {},
    }
    actions: list[dict[str, Any]] = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {"metaData": metadata},
    ]
    for number in range(count):
        path = folder / f"part-{number:06}.parquet"
        if number % _MOST_LINKS:
            os.link(folder / f"part-{number // _MOST_LINKS * _MOST_LINKS:06}.parquet", path)
        else:
            pq.write_table(content, path)
        first = number * rows_each
        statistics = {
            "numRecords": rows_each,
            "minValues": {"id": first},
            "maxValues": {"id": first + rows_each - 1},
            "nullCount": {"id": 0},
        }
        file = {"path": path.name, "size": path.stat().st_size, "partitionValues": {}, "modificationTime": 1}
        actions.append({"add": {**file, "dataChange": True, "stats": json.dumps(statistics)}})
    log = "".join(json.dumps(action) + "\n" for action in actions)
    (folder / "_delta_log" / f"{0:020}.json").write_text(log)


def _stored(value: Any) -> Any:
    """A partition value as Iceberg's metadata has it."""
    return (value - date(1970, 1, 1)).days if isinstance(value, date) else value


class IcebergTable:
    """An Iceberg table in a catalog of its own, whose data files pyarrow writes."""

    def __init__(
        self,
        folder: Path,
        content: pa.Table,
        *,
        partition_by: str | None = None,
        row_group_size: int | None = None,
    ) -> None:
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.schema import Schema
        from pyiceberg.types import DateType, DoubleType, IntegerType, LongType, NestedField, StringType

        folder.mkdir()
        self._row_group_size = row_group_size
        self.catalog = SqlCatalog(
            "tests",
            uri=f"sqlite:///{folder}/catalog.db",
            warehouse=f"file://{folder}",
            **{"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"},
        )
        self.catalog.create_namespace("lake")
        types = {
            pa.int32(): IntegerType(),
            pa.int64(): LongType(),
            pa.float64(): DoubleType(),
            pa.string(): StringType(),
            pa.date32(): DateType(),
        }
        columns = [
            NestedField(number, column.name, types[column.type], required=False)
            for number, column in enumerate(content.schema, 1)
        ]
        self.table = self.catalog.create_table("lake.rides", Schema(*columns))
        if partition_by is not None:
            with self.table.update_spec() as update:
                update.add_identity(partition_by)
        self.folder = Path(self.table.location().removeprefix("file://"))
        self.append(content)

    def append(self, content: pa.Table, *, without: Sequence[str] = ()) -> int:
        """Add a file whose columns have the ids of the table, and return the new snapshot."""
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        schema = self.table.schema()
        ids = {field.name: field.metadata for field in schema_to_pyarrow(schema)}
        fields = [column.with_metadata(ids[column.name]) for column in content.schema]
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        file = data / f"{len(list(data.iterdir())):05}.parquet"
        stored = content.cast(pa.schema(fields)).drop(list(without))
        pq.write_table(stored, file, row_group_size=self._row_group_size)
        return self._register(file, content)

    def add_file(self, file: Path) -> int:
        """Register a file as it is, and return the new snapshot."""
        self.table.add_files([f"file://{file}"])
        return self.snapshot

    def _register(self, file: Path, content: pa.Table) -> int:
        """Add a file through pyiceberg's own classes: `add_files` refuses files with ids."""
        from pyiceberg.io.pyarrow import (
            compute_statistics_plan,
            data_file_statistics_from_parquet_metadata,
            parquet_path_to_id_mapping,
        )
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
        from pyiceberg.typedef import Record

        metadata = self.table.metadata
        schema = self.table.schema()
        footer = pq.read_metadata(file)
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=footer,
            stats_columns=compute_statistics_plan(schema, metadata.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(schema),
        )
        spec = self.table.spec()
        first = {name: values[0] for name, values in content.slice(0, 1).to_pydict().items()}
        names = [schema.find_column_name(part.source_id) for part in spec.fields]
        partition = Record(*(_stored(first[name]) for name in names if name is not None))
        data_file = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=f"file://{file}",
            file_format=FileFormat.PARQUET,
            partition=partition,
            file_size_in_bytes=file.stat().st_size,
            sort_order_id=None,
            spec_id=spec.spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )
        with self.table.transaction() as transaction, transaction.update_snapshot().fast_append() as update:
            update.append_data_file(data_file)
        return self.snapshot

    def delete_rows(self, file: Path, positions: list[int]) -> int:
        """Delete rows of a file with a delete file, which pyiceberg cannot write, and return the snapshot."""
        from pyiceberg.manifest import (
            DataFile,
            DataFileContent,
            FileFormat,
            ManifestContent,
            ManifestWriterV2,
        )
        from pyiceberg.typedef import Record

        class DeletesWriter(ManifestWriterV2):
            def content(self) -> ManifestContent:
                return ManifestContent.DELETES

            @property
            def _meta(self) -> dict[str, str]:
                return {**super()._meta, "content": "deletes"}

        deletes = self.folder / "data" / "deletes.parquet"
        content = {"file_path": [f"file://{file}"] * len(positions), "pos": pa.array(positions, pa.int64())}
        pq.write_table(pa.table(content), deletes)
        delete_file = DataFile.from_args(
            content=DataFileContent.POSITION_DELETES,
            file_path=f"file://{deletes}",
            file_format=FileFormat.PARQUET,
            partition=Record(),
            record_count=len(positions),
            file_size_in_bytes=deletes.stat().st_size,
            spec_id=0,
        )
        with self.table.transaction() as transaction, transaction.update_snapshot().fast_append() as update:
            update.new_manifest_writer = lambda spec: DeletesWriter(
                spec, self.table.schema(), update.new_manifest_output(), update.snapshot_id, "deflate"
            )
            update.append_data_file(delete_file)
        return self.snapshot

    @property
    def snapshot(self) -> int:
        current = self.table.current_snapshot()
        assert current is not None
        return int(current.snapshot_id)


class MovingDelta:
    """A partitioned Delta table that was overwritten, appended to with a new column, and deleted from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rides"
        self.write(rows(900, 950), partition_by=["season"])
        self.write(rows(0, 300), mode="overwrite")
        self.write(rows(300, 600, wind=2.5), mode="append", schema_mode="merge")
        self.open().delete("id < 40")
        self.version = int(self.open().version())
        self.num_rows = 560

    def write(self, content: Any, **options: Any) -> None:
        from deltalake import WriterProperties

        properties = WriterProperties(max_row_group_size=8)
        write_delta(self.folder, content, writer_properties=properties, **options)

    def open(self) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(str(self.folder))

    def move_on(self) -> None:
        self.write(rows(5000, 5100, more=1.5), mode="overwrite", schema_mode="overwrite")

    def forget(self) -> None:
        self.open().vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


class MovingIceberg:
    """A partitioned Iceberg table that was overwritten, appended to with a new column, and deleted from."""

    def __init__(self, folder: Path) -> None:
        from pyiceberg.types import DoubleType

        start = self._by_season(rows(900, 940))[0]
        self._table = IcebergTable(folder / "lake", start, partition_by="season", row_group_size=8)
        self._table.table.delete("id >= 0")
        for content in (rows(0, 40), rows(40, 300)):
            self._append(content)
        with self._table.table.update_schema() as update:
            update.add_column("wind", DoubleType())
        self._append(rows(300, 600, wind=2.5))
        self._table.table.delete("id < 40")  # whole files: pyiceberg rewrites others with a newer pyarrow
        self.version = self._table.snapshot
        self.folder = self._table.folder
        self.num_rows = 560

    @staticmethod
    def _by_season(content: pa.Table) -> list[pa.Table]:
        return [content.filter(pc.equal(content["season"], season)) for season in SEASONS]

    def _append(self, content: pa.Table) -> None:
        for part in self._by_season(content):
            self._table.append(part)

    def move_on(self) -> None:
        self._table.table.delete("id >= 0")
        self._append(rows(5000, 5100, wind=1.5))

    def forget(self) -> None:
        for file in (self.folder / "data").glob("*.parquet"):
            file.unlink()
