"""What a study says of nulls and long lists, over what the table's schema says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.plan import footers
from spark_hpo.data.plan.rules import with_rules
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, NullRule, Source, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

ROWS: dict[str, list[Any]] = {
    "age": [10.0, None, 30.0],
    "city": [None, "Oslo", "Rome"],
    "image": [[1.0, 2.0], None, [3.0, 4.0]],
    "words": [["a", "b", "a"], [], None],
    "bytes": [b"\1\2", None, b"\3\4"],
    "y": [0.0, 1.0, 2.0],
}
TYPES = {"words": pa.list_(pa.string())}
SCHEMA = TableSchema(
    features=(
        Feature(name="age", kind=ColumnKind.NUMERIC, mean=20.0, deviation=10.0),
        Feature(name="age_missing", kind=ColumnKind.NUMERIC, source="age", marks_missing=True),
        Feature(name="city", kind=ColumnKind.CATEGORICAL, vocabulary=("Oslo", "")),
        Feature(name="image", kind=ColumnKind.ARRAY, shape=(2, 1)),
        Feature(name="words", kind=ColumnKind.SEQUENCE, shape=(3,), vocabulary=("a", "b")),
        Feature(name="bytes", kind=ColumnKind.BINARY, shape=(2,)),
    ),
    label=Label(name="y"),
    encoding=Encoding.RAW,
)


TRANSFORMS = {"bytes": f"{__name__}:decode"}


def decode(data: bytes) -> Any:
    """A user's transform."""
    return np.frombuffer(data, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    table = pa.table({name: pa.array(values, TYPES.get(name)) for name, values in ROWS.items()})
    for number in range(2):
        pq.write_table(table, data / f"{number}.parquet")
    sources = {str(split): Source(url=str(data)) for split in Split}
    record = {
        **SCHEMA.to_json(),
        "sources": {name: {"url": s.url, "share": (0, 1)} for name, s in sources.items()},
    }
    (tmp_path / "schema.json").write_text(json.dumps(record))
    return tmp_path


def first_file(table: Table, reader: str) -> dict[str, Any]:
    manifest = table.manifest(Split.TRAIN)
    [shard] = plan_shards(manifest, 1, None)
    piece = next(open_reader(reader, manifest, table.schema).read(shard.segments))
    return {name: values.tolist() for name, values in piece.items()}


def test_nulls_are_refused_until_a_rule_fills_them(folder: Path, reader: str) -> None:
    with pytest.raises(DataError, match=r"column 'age' has 1 nulls.*data\.nulls: \{age: fill\}"):
        open_table(str(folder), transforms=TRANSFORMS)
    with pytest.raises(DataError, match="column 'city' has 1 nulls"):
        open_table(str(folder), transforms=TRANSFORMS, nulls={"*": "fill", "city": "refuse"})
    table = open_table(str(folder), transforms=TRANSFORMS, nulls={"*": "fill"}, truncate={"words": 2})
    assert first_file(table, reader) == {
        "age": [-1.0, 0.0, 1.0],
        "age_missing": [0.0, 1.0, 0.0],
        "city": [2, 1, 0],
        "image": [[[1.0], [2.0]], [[0.0], [0.0]], [[3.0], [4.0]]],
        "words": [[1, 2], [0, 0], [0, 0]],
        "words.length": [2, 0, 0],
        "bytes": [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]],
        "y": [0.0, 1.0, 2.0],
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"nulls": {"agee": "fill"}}, r"data\.nulls names 'agee'; the columns of features are: age, city,"),
        ({"nulls": {"y": "fill"}}, r"data\.nulls names 'y'"),
        ({"truncate": {"age": 3}}, r"data\.truncate names 'age'; .* lists of any length are: words"),
    ],
)
def test_rules_for_unknown_columns_are_refused(rules: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_rules(SCHEMA, **{"nulls": {}, "truncate": {}, **rules})


def test_rules_survive_json() -> None:
    ruled = with_rules(SCHEMA, {"age": "fill"}, {"words": 7})
    assert ruled.features[0].nulls is NullRule.FILL
    assert TableSchema.from_json(json.loads(json.dumps(ruled.to_json()))) == ruled


def test_footers_of_splits_in_one_folder_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    once = footers.read_footer
    monkeypatch.setattr(
        footers, "read_footer", lambda fs, path, *known: read.append(path) or once(fs, path, *known)
    )
    open_table(str(folder), transforms=TRANSFORMS, nulls={"*": "fill"})
    assert sorted(Path(path).name for path in read) == ["0.parquet", "1.parquet"]
