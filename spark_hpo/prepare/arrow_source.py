"""Reads the input table part by part in this process, with the types that Spark gives it."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pyarrow.types as t
from pyspark.sql.pandas.types import from_arrow_type

from spark_hpo.data import files
from spark_hpo.data.plan.footers import Footers, read_footers
from spark_hpo.data.plan.listing import relative
from spark_hpo.data.schema import Source
from spark_hpo.errors import DataError, cause
from spark_hpo.prepare.arrow_columns import Columns, array_of
from spark_hpo.prepare.arrow_rows import ArrowRows, Parts, Place
from spark_hpo.prepare.dialect import UTF_8, column_names, data_files, find_dialect

_PART_ROWS = 2**16
_EMPTY = "Empty CSV file"
_BLOCK_BYTES = 2**24  # of a CSV; holds its longest row


class _BadFile(Exception):
    """A file cannot be read. The message is the end of a sentence about the table."""


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Raise what Arrow raises about a table as `DataError` that names it."""
    try:
        yield
    except (pa.ArrowException, _BadFile) as exc:
        raise DataError(f"{url}: {exc}") from cause(exc)


def open_rows(arguments: Mapping[str, Any], table: Source) -> ArrowRows:
    """Return the input of a request. No rows are read yet.

    Args:
        table: the input as readers will find it.

    Raises:
        DataError: a file cannot be read, or Spark has no type like that of a column.
    """
    if arguments["format"] == "csv":
        return _csv(arguments)
    found = read_footers(table.url, table.format, table.version)
    wanted = pa.schema([_canonical(column, found, table.url) for column in found.schemas[0]])
    return ArrowRows(Parts(partial(_read_parquet, found, wanted)), wanted)


def _csv(arguments: Mapping[str, Any]) -> ArrowRows:
    has_header = arguments.get("header", True)
    url = arguments["input"]
    dialect = find_dialect(url, arguments["input_files"], arguments["separator"], header=has_header)
    names = column_names(dialect, header=has_header)
    types = pa.schema([(name, pa.string()) for name in names])
    return ArrowRows(Parts(partial(_read_csv, arguments, names)), types)


def _read_csv(arguments: Mapping[str, Any], names: list[str]) -> Iterator[tuple[Place, Columns]]:
    """Yield the rows of each file, as text."""
    fs, paths = data_files(arguments["input"])
    for path in paths:
        try:
            with fs.open(path, "rb", compression="infer") as source:
                for batch in _csv_reader(source, arguments, names):
                    yield None, dict(zip(names, batch.columns, strict=True))
        except pa.ArrowInvalid as exc:
            if _EMPTY not in str(exc):
                raise _BadFile(
                    f"a line has more or fewer fields than the first, or a quote is not closed: {exc}"
                ) from exc
        except (OSError, EOFError, zlib.error) as exc:
            raise _BadFile(f"{path} cannot be read: {exc}") from exc


def _csv_reader(source: Any, arguments: Mapping[str, Any], names: list[str]) -> Iterable[pa.RecordBatch]:
    reader: Iterable[pa.RecordBatch] = pyarrow.csv.open_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(
            column_names=names,
            skip_rows=int(arguments.get("header", True)),
            encoding=arguments.get("encoding", UTF_8),
            block_size=_BLOCK_BYTES,
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=arguments["separator"], newlines_in_values=arguments.get("many_lines", False)
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    return reader


def _read_parquet(found: Footers, wanted: pa.Schema) -> Iterator[tuple[Place, Columns]]:
    fs, _ = files.filesystem(found.url)
    for number, file in enumerate(found.files):
        constants = found.constants(number)
        stored = [n for n in wanted.names if n not in constants and n in found.footers[number].schema.names]
        name = relative(file.path, found.root)
        with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
            parquet = pq.ParquetFile(source)
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(_PART_ROWS, row_groups=[group], columns=stored):
                    own = dict(zip(batch.schema.names, batch.columns, strict=True))
                    rows = batch.num_rows
                    columns = {
                        column.name: _cast(own[column.name], column.type)
                        if column.name in own
                        else _repeated(constants.get(column.name), rows, column.type)
                        for column in wanted
                    }
                    yield (name, group), columns


def _repeated(value: pa.Scalar | None, rows: int, kind: pa.DataType) -> pa.Array:
    if value is None or not value.is_valid:
        return pa.nulls(rows, kind)
    return pa.repeat(value.cast(kind), rows)


def _canonical(column: pa.Field, found: Footers, url: str) -> pa.Field:
    """Return the type of a column that Spark would give it."""
    kind = _spark_type(column.type)
    if column.name in found.partition_types and found.lake is None:
        kind = _partition_type(kind, [file.partition[column.name] for file in found.files])
    try:
        from_arrow_type(kind, prefer_timestamp_ntz=True)
    except Exception as exc:  # of pyspark, whose types differ between versions
        raise DataError(
            f"{url}: column {column.name!r} is {column.type}, which Spark has no type for. Write the column "
            "as a number, text, a date or a time"
        ) from exc
    return pa.field(column.name, kind)


def _partition_type(kind: pa.DataType, values: list[str | None]) -> pa.DataType:
    if t.is_int64(kind) and all(v is None or -(2**31) <= int(v) < 2**31 for v in values):
        return pa.int32()
    return pa.timestamp("us", "UTC") if t.is_timestamp(kind) else kind


_OTHERS = {
    pa.null(): pa.int32(),  # which Parquet stores
    pa.date64(): pa.date32(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
}


def _spark_type(kind: pa.DataType) -> pa.DataType:
    if t.is_dictionary(kind):
        return _spark_type(kind.value_type)
    if t.is_large_string(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return pa.binary()
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return pa.list_(_spark_type(kind.value_type))
    if t.is_timestamp(kind):
        # Spark reads nanoseconds as microseconds with a zone.
        return pa.timestamp("us", "UTC" if kind.tz is not None or kind.unit == "ns" else None)
    return _OTHERS.get(kind, kind)


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    values = array_of(values)
    if values.type == kind:
        return values
    if t.is_dictionary(values.type):
        values = values.dictionary_decode()
    if t.is_timestamp(values.type) and values.type.unit == "ns":
        # Spark's division of integers, which truncates.
        micros = pc.divide(values.cast(pa.int64()), 1000)
        return micros.cast(kind)
    if t.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        return values.cast(pa.int64()).cast(kind)
    if t.is_fixed_size_list(values.type):
        lengths = pa.array([0] + [values.type.list_size] * len(values))
        offsets = pc.cumulative_sum(lengths).cast(pa.int32())
        if values.null_count:
            return pa.array(values.to_pylist(), kind)
        return pa.ListArray.from_arrays(offsets, _cast(values.flatten(), kind.value_type))
    if t.is_list(values.type) and t.is_list(kind) and t.is_timestamp(kind.value_type):
        return values
    return values.cast(kind, safe=False)
