"""Odd Parquet files, and files that change under a study: read right by both readers, or refused by name."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.loader import Loader
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, TableSchema
from spark_hpo.data.table import Table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

ROWS = 40
VALUES = [float(i) for i in range(ROWS)]
PLAIN = pa.table({"x": VALUES, "y": [1.0] * ROWS})
SCHEMA = TableSchema(features=(Feature(name="x", kind=ColumnKind.NUMERIC),), label=Label(name="y"))


def read(folder: Path, reader: str, schema: TableSchema = SCHEMA) -> dict[str, list[Any]]:
    manifest = read_manifest(str(folder), schema)
    [shard] = plan_shards(manifest, 1, None)
    pieces = list(open_reader(reader, manifest, schema).read(shard.segments))
    return {name: np.concatenate([piece[name] for piece in pieces]).tolist() for name in pieces[0]}


# Files that are read -------------------------------------------------------------------------------------


def wide(path: Path) -> None:
    columns = {f"c{i}": pa.array([0.5], pa.float32()).take(pa.array([0] * ROWS)) for i in range(10_000)}
    pq.write_table(pa.table({**columns, "x": VALUES, "y": [1.0] * ROWS}), path)


def nested(path: Path) -> None:
    deep: Any = {"leaf": 1}
    for _ in range(5):
        deep = {"inner": [deep]}
    pq.write_table(PLAIN.append_column("deep", pa.array([deep] * ROWS)), path)


def of_many_writers(path: Path) -> None:
    """Three encodings in three row groups."""
    pq.write_table(PLAIN.slice(0, 10), path.with_name("0.parquet"), use_dictionary=True)
    pq.write_table(PLAIN.slice(10, 10), path.with_name("1.parquet"), use_dictionary=False, version="1.0")
    pq.write_table(
        PLAIN.slice(20),
        path.with_name("2.parquet"),
        use_dictionary=False,
        column_encoding={"x": "BYTE_STREAM_SPLIT", "y": "PLAIN"},
    )


def with_empty_ones(path: Path) -> None:
    """A file without rows, one without row groups, and an empty row group among the others."""
    pq.write_table(PLAIN, path.with_name("1.parquet"))
    pq.write_table(PLAIN.slice(0, 0), path.with_name("0.parquet"))
    with pq.ParquetWriter(path.with_name("2.parquet"), PLAIN.schema):
        pass


def with_tiny_row_groups(path: Path) -> None:
    pq.write_table(PLAIN, path, row_group_size=1)


def written(**options: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(PLAIN, path, **options)


GOOD: dict[str, Callable[[Path], None]] = {
    **{codec: written(compression=codec) for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")},
    "page_v2": written(data_page_version="2.0"),
    "no_statistics": written(write_statistics=False),
    "no_arrow_schema": written(store_schema=False),
    "wide": wide,
    "nested": nested,
    "many_encodings": of_many_writers,
    "empty_ones": with_empty_ones,
    "tiny_row_groups": with_tiny_row_groups,
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_files_are_read_right(tmp_path: Path, reader: str, name: str) -> None:
    GOOD[name](tmp_path / "a.parquet")
    assert read(tmp_path, reader)["x"] == VALUES


ODD_NAMES = [
    "a.b",
    "with space",
    "😀",
    "ümlaut",
    "quote'",
    'double"',
    "semi;colon",
    "`tick`",
    "x" * 300,
    "-",
    "SELECT",
]


def test_column_names_of_any_text_are_read(tmp_path: Path, reader: str) -> None:
    columns = {name: [float(i)] * ROWS for i, name in enumerate(ODD_NAMES)}
    pq.write_table(pa.table({**columns, "y": VALUES}), tmp_path / "ä b;c😀.parquet")
    features = tuple(Feature(name=name, kind=ColumnKind.NUMERIC) for name in ODD_NAMES)
    found = read(tmp_path, reader, TableSchema(features=features, label=Label(name="y")))
    assert {name: found[name][0] for name in ODD_NAMES} == {n: float(i) for i, n in enumerate(ODD_NAMES)}
    assert found["y"] == VALUES


def test_types_of_other_writers(tmp_path: Path, reader: str) -> None:
    """Hive's INT96 times, decimals of different widths, deltas, and text in a dictionary."""
    times = [datetime(2026, 1, 1 + i % 28) for i in range(ROWS)]
    table = pa.table(
        {
            "time": pa.array(times, pa.timestamp("ns")),
            "small": pa.array([Decimal("1.5")] * ROWS, pa.decimal128(5, 2)),
            "large": pa.array([Decimal("2.5")] * ROWS, pa.decimal128(38, 10)),
            "delta": pa.array(range(ROWS), pa.int64()),
            "text": pa.array([f"text {i % 3}" for i in range(ROWS)]).dictionary_encode(),
            "y": VALUES,
        }
    )
    pq.write_table(
        table,
        tmp_path / "a.parquet",
        use_deprecated_int96_timestamps=True,
        use_dictionary=["text"],
        column_encoding={"delta": "DELTA_BINARY_PACKED"},
    )
    numeric = [Feature(name=n, kind=ColumnKind.NUMERIC) for n in ("time", "small", "large", "delta")]
    text = Feature(name="text", kind=ColumnKind.CATEGORICAL, vocabulary=("text 0", "text 1", "text 2"))
    schema = TableSchema(features=(*numeric, text), label=Label(name="y"), encoding=Encoding.RAW)
    found = read(tmp_path, reader, schema)
    assert found["time"][:2] == pytest.approx([1767225600.0, 1767312000.0], rel=1e-6)
    assert (found["small"][0], found["large"][0]) == (1.5, 2.5)
    assert found["delta"] == VALUES
    assert found["text"][:4] == [1, 2, 3, 1]


# Files that are refused ----------------------------------------------------------------------------------


def whole(path: Path) -> bytes:
    pq.write_table(PLAIN, path)
    return path.read_bytes()


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = whole(path)
        path.write_bytes(data[: int(len(data) * share)])

    return write


def wrong_magic(path: Path) -> None:
    path.write_bytes(whole(path)[:-4] + b"PAR2")


def broken_footer(path: Path) -> None:
    data = bytearray(whole(path))
    data[-60:-20] = bytes(40)
    path.write_bytes(bytes(data))


def huge_footer(path: Path) -> None:
    path.write_bytes(whole(path)[:-8] + b"\xff\xff\xff\x7fPAR1")


class _Kms(pe.KmsClient):
    """Wraps keys with nothing at all."""

    def __init__(self, config: pe.KmsConnectionConfig) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def encrypted(*, plaintext_footer: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        how = pe.EncryptionConfiguration(
            footer_key="footer", column_keys={"column": ["x"]}, plaintext_footer=plaintext_footer
        )
        factory = pe.CryptoFactory(_Kms)
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), how)
        with pq.ParquetWriter(path, PLAIN.schema, encryption_properties=properties) as writer:
            writer.write_table(PLAIN)

    return write


def twice_the_same_column(path: Path) -> None:
    doubled = pa.Table.from_arrays([PLAIN["x"], PLAIN["x"], PLAIN["y"]], names=["x", "x", "y"])
    pq.write_table(doubled, path)


def another_schema(path: Path) -> None:
    pq.write_table(pa.table({"z": VALUES, "y": VALUES}), path)


def another_type(path: Path) -> None:
    pq.write_table(pa.table({"x": [[1.0]] * ROWS, "y": VALUES}), path)


def wrong(text: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text) and None


BAD: dict[str, Callable[[Path], None]] = {
    "empty": wrong(b""),
    "text": wrong(b"x,y\n1,2\n"),
    "magic_alone": wrong(b"PAR1"),
    "half": cut(0.5),
    "one_byte_short": cut(0.999),
    "wrong_magic": wrong_magic,
    "broken_footer": broken_footer,
    "huge_footer": huge_footer,
    "encrypted": encrypted(plaintext_footer=False),
    "encrypted_columns": encrypted(plaintext_footer=True),
    "twice": twice_the_same_column,
    "another_schema": another_schema,
    "another_type": another_type,
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, reader: str, name: str) -> None:
    whole(tmp_path / "a.parquet")
    BAD[name](tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet"):
        read(tmp_path, reader)


def test_table_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(PLAIN.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="rows"):
        read(tmp_path, "arrow")


# Files that change after the table was opened ------------------------------------------------------------


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[10] ^= 0xFF  # in the header of the first page
    path.write_bytes(bytes(data))


def other_rows(path: Path) -> None:
    pq.write_table(PLAIN.slice(0, 7), path)


def of_the_same_size(path: Path) -> None:
    size = path.stat().st_size
    pq.write_table(PLAIN.set_column(0, "x", pa.array([-value for value in VALUES])), path, compression="none")
    assert path.stat().st_size == size


CHANGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncated,
    "flipped": flipped,
    "deleted": os.unlink,
    "replaced": other_rows,
    "replaced_by_the_same_size": of_the_same_size,
}


def opened(folder: Path) -> Table:
    for name in ("a", "b"):
        pq.write_table(PLAIN, folder / f"{name}.parquet", compression="none")
    manifest = read_manifest(str(folder), SCHEMA)
    return Table(url=str(folder), schema=SCHEMA, manifests=dict.fromkeys(Split, manifest))


def epoch(table: Table, reader: str, cache: CacheSettings | None) -> int:
    loader = Loader(
        table,
        Split.TRAIN,
        rank=0,
        world_size=1,
        batch_size=16,
        seed=0,
        reader=reader,
        shuffle_window=64,
        node_cache=cache,
    )
    return sum(len(batch["x"]) for batch in next(loader.passes(0, 1)))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_files_that_change_are_named(tmp_path: Path, reader: str, name: str, cached: bool) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    table = opened(folder)
    cache = CacheSettings(folder=str(tmp_path / "cache")) if cached else None
    path = folder / "b.parquet"
    CHANGES[name](path)
    if path.exists():
        later = time.time() + 10  # a clock of a file system may be coarse
        os.utime(path, (later, later))
    with pytest.raises(DataError, match=r"b\.parquet") as caught:
        epoch(table, reader, cache)
    assert caught.value.file == str(path)
    smaller = table.without([str(path)])
    assert smaller.fingerprint != table.fingerprint
    assert smaller.manifest(Split.TRAIN).rows == ROWS == epoch(smaller, reader, cache)


def test_decoded_rows_stay_in_use_after_the_file_has_changed(tmp_path: Path, reader: str) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    table, cache = opened(folder), CacheSettings(folder=str(tmp_path / "cache"))
    assert epoch(table, reader, cache) == 2 * ROWS
    (folder / "b.parquet").unlink()
    assert epoch(table, reader, cache) == 2 * ROWS


def test_copy_with_another_modification_time_is_the_same_file(tmp_path: Path, reader: str) -> None:
    table = opened(tmp_path)
    os.utime(tmp_path / "b.parquet", (1.0, 1.0))
    assert epoch(table, reader, None) == 2 * ROWS


def test_last_file_of_a_split_cannot_be_excluded(tmp_path: Path) -> None:
    table = opened(tmp_path)
    assert table.without(["/somewhere/else.parquet"]) == table
    with pytest.raises(DataError, match="no rows are left"):
        table.without([str(tmp_path / name) for name in ("a.parquet", "b.parquet")])
