"""Columns of real tables, read in place by all readers."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.loader import Loader
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import (
    ColumnKind,
    Encoding,
    Feature,
    Label,
    NullRule,
    Source,
    TableFormat,
    TableSchema,
)
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

ROWS = 40
RNG = np.random.default_rng(1)
FILL = NullRule.FILL
EPOCH = datetime(1970, 1, 1)
DECODE = f"{__name__}:decode"


def numeric(name: str, **more: Any) -> Feature:
    return Feature(name=name, kind=ColumnKind.NUMERIC, mean=2.0, deviation=4.0, nulls=FILL, **more)


def coded(name: str, *vocabulary: str, **more: Any) -> Feature:
    return Feature(name=name, kind=ColumnKind.CATEGORICAL, vocabulary=vocabulary, nulls=FILL, **more)


FEATURES = (
    numeric("whole"),
    numeric("small"),
    numeric("wide"),
    numeric("flag"),
    numeric("price"),
    numeric("day"),
    numeric("moment"),
    numeric("zoned"),
    numeric("said"),
    numeric("year"),  # a partition
    Feature(name="wide_missing", kind=ColumnKind.NUMERIC, source="wide", marks_missing=True),
    coded("city", "Oslo", "Rome", ""),
    coded("packed", "b", "a"),
    coded("yes", "true", "false"),
    coded("country", "DE", "FR"),  # a partition
    Feature(name="image", kind=ColumnKind.ARRAY, shape=(2, 3)),
    Feature(name="embedding", kind=ColumnKind.ARRAY, shape=(4,)),
    Feature(name="clicks", kind=ColumnKind.SEQUENCE, shape=(3,), nulls=FILL),
    Feature(name="words", kind=ColumnKind.SEQUENCE, shape=(2,), vocabulary=("red", "blue"), nulls=FILL),
    Feature(
        name="bytes",
        kind=ColumnKind.BINARY,
        shape=(2, 2),
        transform=DECODE,
    ),
)
SCHEMA = TableSchema(
    features=FEATURES, label=Label(name="class", classes=("cat", "dog")), encoding=Encoding.RAW
)
FOLDERS = {"country=DE/year=2025": 0, "country=FR/year=2025": 1, "country=DE/year=2026": 2}


def decode(data: bytes) -> np.ndarray[Any, Any]:
    """A user's transform: bytes to an array."""
    return np.frombuffer(data, np.uint8).reshape(2, 2) / 255.0


def sometimes(value: Any) -> Any:
    return None if RNG.random() < 0.2 else value


def rows_of(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "whole": sometimes(int(rng.integers(-5, 5))),
            "small": int(rng.integers(0, 200)),
            "wide": sometimes(float(rng.normal())),
            "flag": sometimes(bool(rng.integers(0, 2))),
            "price": sometimes(Decimal(int(rng.integers(0, 999))) / 100),
            "day": sometimes(date(2026, 1, 1) + timedelta(days=int(rng.integers(0, 99)))),
            "moment": sometimes(datetime(2026, 1, 1, 3) + timedelta(seconds=int(rng.integers(0, 9999)))),
            "zoned": datetime(2026, 1, 1, 3, tzinfo=UTC) + timedelta(seconds=int(rng.integers(0, 9999))),
            "said": sometimes(str(rng.integers(0, 9))),
            "city": sometimes(str(rng.choice(["Oslo", " Rome ", "Bern"]))),
            "packed": sometimes(str(rng.choice(["a", "b", "c"]))),
            "yes": bool(rng.integers(0, 2)),
            "image": rng.random(6).astype("float32").tolist(),
            "embedding": rng.random(4).tolist(),
            "clicks": sometimes(rng.integers(0, 9, rng.integers(0, 4)).tolist()),
            "words": sometimes([str(w) for w in rng.choice(["red", "blue", "grey"], rng.integers(0, 3))]),
            "bytes": rng.integers(0, 255, 4).astype("uint8").tobytes(),
            "class": str(rng.choice(["dog", "cat"])),
        }
        for _ in range(ROWS)
    ]


TYPES = {
    "whole": pa.int32(),
    "small": pa.uint8(),
    "wide": pa.float64(),
    "flag": pa.bool_(),
    "price": pa.decimal128(8, 2),
    "day": pa.date32(),
    "moment": pa.timestamp("us"),
    "zoned": pa.timestamp("us", tz="UTC"),
    "said": pa.string(),
    "city": pa.string(),
    "packed": pa.dictionary(pa.int32(), pa.string()),
    "yes": pa.bool_(),
    "image": pa.list_(pa.float32(), 6),
    "embedding": pa.list_(pa.float64()),
    "clicks": pa.list_(pa.int64()),
    "words": pa.list_(pa.string()),
    "bytes": pa.binary(),
    "class": pa.string(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for name, seed in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        rows = rows_of(seed)
        table = pa.table({c: pa.array([row[c] for row in rows], kind) for c, kind in TYPES.items()})
        pq.write_table(table, folder / name / "part-0.parquet", row_group_size=5)
    return folder


def stored(folder: Path) -> list[dict[str, Any]]:
    """All rows as Python has them, in the order of the files."""
    rows = []
    for file in sorted(folder.rglob("*.parquet")):
        year, country = (part.partition("=")[2] for part in (file.parent.name, file.parent.parent.name))
        for row in pq.ParquetFile(file).read().to_pylist():
            rows.append({**row, "country": country, "year": int(year)})
    return rows


def seconds(value: Any) -> float:
    if isinstance(value, datetime):
        return (value.replace(tzinfo=None) - EPOCH).total_seconds()
    return float((value - EPOCH.date()).days * 86_400) if isinstance(value, date) else float(value)


def expected(row: dict[str, Any], feature: Feature) -> dict[str, Any]:
    """The slow way."""
    value = row[feature.source or feature.name]
    if feature.marks_missing:
        return {feature.name: float(value is None)}
    match feature.kind:
        case ColumnKind.NUMERIC:
            return {feature.name: 0.0 if value is None else (seconds(value) - 2.0) / 4.0}
        case ColumnKind.CATEGORICAL:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else value.strip()
            return {feature.name: 1 + feature.vocabulary.index(text) if text in feature.vocabulary else 0}
        case ColumnKind.SEQUENCE:
            items = value or []
            if feature.vocabulary:
                items = [1 + feature.vocabulary.index(i) if i in feature.vocabulary else 0 for i in items]
            padded = items + [0] * (feature.shape[0] - len(items))
            return {feature.name: padded, f"{feature.name}.length": len(items)}
        case ColumnKind.BINARY:
            return {feature.name: decode(value)}
    return {feature.name: np.reshape(value, feature.shape)}


@pytest.fixture(params=["arrow", "petastorm"])
def reader(request: pytest.FixtureRequest) -> str:
    if request.param == "petastorm":
        pytest.importorskip("petastorm")
    return str(request.param)


def read(folder: Path, reader: str, schema: TableSchema = SCHEMA, **choice: Any) -> dict[str, np.ndarray]:
    manifest = read_manifest(str(folder), schema, **choice)
    [shard] = plan_shards(manifest, 1, None)
    pieces = list(open_reader(reader, manifest, schema).read(shard.segments))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def test_reader_delivers_every_type_as_its_feature(folder: Path, reader: str) -> None:
    columns = read(folder, reader)
    rows = stored(folder)
    assert len(columns["class"]) == len(rows) == 3 * ROWS
    for feature in FEATURES:
        wanted = [expected(row, feature) for row in rows]
        for name in wanted[0]:
            got, slow = columns[name], np.array([w[name] for w in wanted])
            np.testing.assert_array_equal(got, slow.astype(got.dtype), err_msg=name)
    assert columns["class"].tolist() == [("cat", "dog").index(row["class"]) for row in rows]


@pytest.mark.parametrize(
    ("where", "keeps"),
    [
        ("country = 'DE' and year >= 2026", lambda r: r["country"] == "DE" and r["year"] >= 2026),
        ("wide > 0 and country = 'FR'", lambda r: (r["wide"] or -1) > 0 and r["country"] == "FR"),
        ("city is null or price < 2.5", lambda r: r["city"] is None or (r["price"] or 9) < Decimal("2.5")),
        ("day >= '2026-02-01' and yes", lambda r: r["yes"] and r["day"] and r["day"] >= date(2026, 2, 1)),
    ],
)
def test_where_keeps_exactly_the_matching_rows(folder: Path, reader: str, where: str, keeps: Any) -> None:
    columns = read(folder, reader, where=where)
    kept = [row for row in stored(folder) if keeps(row)]
    assert 0 < len(kept) < 3 * ROWS
    assert columns["small"].tolist() == [(row["small"] - 2) / 4 for row in kept]


def test_loader_shares_matching_rows_between_ranks(folder: Path, reader: str) -> None:
    where = "wide > 0"
    table = Table(
        url=str(folder),
        schema=SCHEMA,
        manifests={split: read_manifest(str(folder), SCHEMA, where=where) for split in Split},
    )
    seen, steps = [], set()
    for rank in range(3):
        loader = Loader(
            table,
            Split.TRAIN,
            rank=rank,
            world_size=3,
            batch_size=8,
            seed=0,
            reader=reader,
            shuffle_window=20,
        )
        batches = list(next(loader.passes(0, 1)))
        steps.add(len(batches))
        seen += [float(x) for batch in batches for x in batch["wide"]]
    assert len(steps) == 1
    wanted = sorted(np.float32((row["wide"] - 2) / 4) for row in stored(folder) if (row["wide"] or -1) > 0)
    assert sorted(seen) == wanted


def test_row_group_shares_are_disjoint_and_complete(folder: Path, reader: str) -> None:
    shares = [(0.0, 0.6), (0.6, 0.8), (0.8, 1.0)]
    found = [read(folder, reader, share=share, seed=4)["small"].tolist() for share in shares]
    assert sorted(x for part in found for x in part) == sorted((r["small"] - 2) / 4 for r in stored(folder))


def test_table_read_in_place_is_opened_by_its_schema(folder: Path, tmp_path: Path, reader: str) -> None:
    features = tuple(f for f in FEATURES if f.name != "bytes")
    binary = Feature(name="bytes", kind=ColumnKind.BINARY)
    schema = TableSchema(
        features=(*features, binary),
        label=SCHEMA.label,
        encoding=Encoding.RAW,
        sources={
            "train": Source(url=str(folder), where="year = 2025"),
            "validation": Source(url=str(folder), where="year = 2026 and yes"),
            "test": Source(url=str(folder), where="year = 2026 and not yes"),
        },
    )
    (tmp_path / "schema.json").write_text(json.dumps(schema.to_json()))
    with pytest.raises(DataError, match=r"column 'bytes' holds bytes.*data\.transforms: \{bytes:"):
        open_table(str(tmp_path))
    transforms = {"bytes": DECODE}
    table = open_table(str(tmp_path), transforms=transforms)
    assert {split: table.manifest(split).rows for split in Split}[Split.TRAIN] == 2 * ROWS
    assert table.manifest(Split.VALIDATION).rows + table.manifest(Split.TEST).rows == ROWS
    [feature] = table.schema.of_kind(ColumnKind.BINARY)
    assert feature.shape == (2, 2)
    german = open_table(str(tmp_path), transforms=transforms, where="country = 'DE'")
    assert german.manifest(Split.TRAIN).rows == ROWS
    assert german.fingerprint != table.fingerprint
    with pytest.raises(DataError, match=r"data\.transforms names 'whole'.* bytes"):
        open_table(str(tmp_path), transforms={**transforms, "whole": DECODE})


BAD = {
    "null": ({"clicks": [[1], None]}, "1 nulls"),
    "too long": ({"clicks": [[1], [1, 2, 3, 4]]}, "1 lists have more than 3 elements; the longest has 4"),
    "null inside": ({"clicks": [[1], [None]]}, "1 nulls"),
    "another class": ({"class": ["cat", "cow"]}, r"'cow' is not a class of schema.json \(cat, dog\)"),
    "transform fails": ({"bytes": [b"1234", b"12"]}, f"{DECODE} failed with ValueError"),
    "infinite": ({"wide": [1.0, float("inf")]}, "1 values are NaN or exceed float32"),
    "no number": ({"said": ["1", "one"]}, "Failed to parse string: 'one'"),
}


@pytest.mark.parametrize("fault", BAD)
def test_reader_names_values_that_it_cannot_deliver(tmp_path: Path, reader: str, fault: str) -> None:
    columns, message = BAD[fault]
    good = {
        "clicks": [[1], []],
        "class": ["cat", "dog"],
        "bytes": [b"1234"] * 2,
        "wide": [1.0, 2.0],
        "said": ["1"] * 2,
    }
    content = {**good, **columns}
    table = pa.table({name: pa.array(values, TYPES[name]) for name, values in content.items()})
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=False)
    wanted = {f.name: f for f in FEATURES}
    features = [wanted[name] for name in ("bytes", "wide", "said")]
    features.append(Feature(name="clicks", kind=ColumnKind.SEQUENCE, shape=(3,)))
    schema = TableSchema(features=tuple(features), label=SCHEMA.label, encoding=Encoding.RAW)
    with pytest.raises(
        DataError, match=rf"a\.parquet: row group 0, column '{next(iter(columns))}': .*{message}"
    ):
        read(tmp_path, reader, schema)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a=1", "b=1"], "some files have the partitions a, others b"),
        (["a=1", "."], "some files have the partitions"),
        (["stuff"], "the folder 'stuff' is not a partition"),
    ],
)
def test_folders_that_are_not_partitions_are_refused(
    tmp_path: Path, folders: list[str], message: str
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(exist_ok=True)
        pq.write_table(pa.table({"class": ["cat"]}), tmp_path / folder / "x.parquet")
    with pytest.raises(DataError, match=message):
        read_manifest(str(tmp_path))


def test_partitions_are_typed_and_unquoted(tmp_path: Path) -> None:
    for name in ("a=1/b=x%3Ay/c=2026-01-01/d=1.5", "a=__HIVE_DEFAULT_PARTITION__/b=2/c=2026-01-02/d=2"):
        (tmp_path / name).mkdir(parents=True)
        pq.write_table(pa.table({"v": [1]}), tmp_path / name / "x.parquet")
    manifest = read_manifest(str(tmp_path))
    assert manifest.partitions == {"a": "int64", "b": "string", "c": "date32[day]", "d": "double"}
    assert dict(manifest.files[0].partition) == {"a": "1", "b": "x:y", "c": "2026-01-01", "d": "1.5"}
    assert manifest.files[1].partition["a"] is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["01", "-2"], "int64"),
        (["1e3", "2"], "double"),
        (["2026-01-01", "2026-01-02 10%3A30%3A00"], "timestamp[us]"),
        (["2026-02-31", "2026-01-01"], "string"),
        (["1_000", "2"], "string"),
        (["nan", "1.5"], "string"),
        (["__HIVE_DEFAULT_PARTITION__", "__HIVE_DEFAULT_PARTITION__"], "string"),
    ],
)
def test_partitions_get_the_types_that_spark_gives_them(
    tmp_path: Path, values: list[str], kind: str, reader: str
) -> None:
    for number, value in enumerate(values):
        folder = tmp_path / f"p={value}"
        folder.mkdir(exist_ok=True)
        content = pa.table({"v": [float(number)], "p": ["what the folder says wins"]})
        pq.write_table(content, folder / f"{number}.parquet")
    schema = TableSchema(features=(Feature(name="v", kind=ColumnKind.NUMERIC),), label=Label(name="v"))
    manifest = read_manifest(str(tmp_path), schema)
    assert manifest.partitions == {"p": kind}
    assert sorted(read(tmp_path, reader, schema)["v"].tolist()) == [0.0, 1.0]


def test_delta_table_is_not_read_as_parquet(tmp_path: Path) -> None:
    pytest.importorskip("deltalake")
    pq.write_table(pa.table({"v": [1]}), tmp_path / "x.parquet")
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / "0.json").write_text("{}")
    with pytest.raises(DataError, match="Delta log"):
        read_manifest(str(tmp_path))
    with pytest.raises(DataError, match="is a table of format delta"):
        read_manifest(str(tmp_path), format=TableFormat.PARQUET)


# Petastorm's own datasets --------------------------------------------------------------------------------


@pytest.fixture
def petastorms_own(tmp_path: Path) -> Path:
    """As materialize_dataset writes it: arrays as bytes, the schema pickled in _common_metadata."""
    pytest.importorskip("petastorm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pickle

        from petastorm.codecs import CompressedNdarrayCodec, NdarrayCodec
        from petastorm.unischema import Unischema, UnischemaField
    fields = [
        UnischemaField("image", np.uint8, (2, 3), NdarrayCodec(), False),
        UnischemaField("depth", np.float32, (None,), CompressedNdarrayCodec(), False),
    ]
    folder = tmp_path / "dataset"
    folder.mkdir()
    images = RNG.integers(0, 255, (6, 2, 3)).astype("uint8")
    depths = RNG.random((6, 4)).astype("float32")
    table = pa.table(
        {
            "image": [bytes(fields[0].codec.encode(fields[0], image)) for image in images],
            "depth": [bytes(fields[1].codec.encode(fields[1], depth)) for depth in depths],
            "class": ["cat", "dog"] * 3,
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=4)
    pickled = pickle.dumps(Unischema("own", fields))
    schema = table.schema.with_metadata({b"dataset-toolkit.unischema.v1": pickled})
    pq.write_metadata(schema, folder / "_common_metadata")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "depths.npy", depths)
    features = (
        Feature(name="image", kind=ColumnKind.BINARY),
        Feature(name="depth", kind=ColumnKind.BINARY),
    )
    described = TableSchema(
        features=features,
        label=SCHEMA.label,
        encoding=Encoding.RAW,
        sources={str(split): Source(url=str(folder)) for split in Split},
    )
    (tmp_path / "schema.json").write_text(json.dumps(described.to_json()))
    return tmp_path


def test_petastorm_dataset_is_decoded_if_trusted(petastorms_own: Path, reader: str) -> None:
    with pytest.raises(DataError, match=r"data\.trust_petastorm_metadata: true"):
        open_table(str(petastorms_own))
    table = open_table(str(petastorms_own), trust_petastorm_metadata=True)
    assert [feature.shape for feature in table.schema.features] == [(2, 3), (4,)]
    manifest = table.manifest(Split.TRAIN)
    [shard] = plan_shards(manifest, 1, None)
    pieces = list(open_reader(reader, manifest, table.schema).read(shard.segments))
    for name in ("image", "depth"):
        got = np.concatenate([piece[name] for piece in pieces])
        np.testing.assert_array_equal(got, np.load(petastorms_own / f"{name}s.npy").astype("float32"))


def test_petastorm_schema_with_foreign_classes_is_not_unpickled(petastorms_own: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (petastorms_own / "exploded",)  # type: ignore[return-value]

    metadata = petastorms_own / "dataset" / "_common_metadata"
    armed = pq.read_schema(metadata).with_metadata({b"dataset-toolkit.unischema.v1": pickle.dumps(Bomb())})
    pq.write_metadata(armed, metadata)
    with pytest.raises(DataError, match="cannot read the Petastorm schema"):
        open_table(str(petastorms_own), trust_petastorm_metadata=True)
    assert not (petastorms_own / "exploded").exists()
