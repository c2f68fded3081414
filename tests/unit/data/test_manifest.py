import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.errors import DataError
from tests.support.tables import CLUSTERS, write_clusters

SCHEMA = TableSchema(
    features=(
        Feature(name="x", kind=ColumnKind.NUMERIC),
        Feature(name="code", kind=ColumnKind.CATEGORICAL, vocabulary=("a",)),
        Feature(name="image", kind=ColumnKind.ARRAY, shape=(2,)),
    ),
    label=Label(name="y", classes=("no", "yes")),
)
GOOD: dict[str, pa.Array] = {
    "x": pa.array([0.5, 1.5], pa.float32()),
    "code": pa.array([0, 1], pa.int64()),
    "image": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32())),
    "y": pa.array([0, 1], pa.int64()),
}


def write(folder: Path, name: str = "a.parquet", **columns: pa.Array) -> Path:
    """A good file, with some columns replaced, or left out by None."""
    table = {k: v for k, v in {**GOOD, **columns}.items() if v is not None}
    pq.write_table(pa.table(table), folder / name)
    return folder


def test_manifest_lists_files_row_groups_and_rows_in_order(tmp_path: Path) -> None:
    for name, rows in {"b": 5, "a": 4, "_common_metadata": 9, ".hidden": 9}.items():
        pq.write_table(pa.table({"x": np.arange(rows)}), tmp_path / name, row_group_size=3)
    manifest = read_manifest(str(tmp_path))
    assert [os.path.basename(file.path) for file in manifest.files] == ["a", "b"]
    assert [(g.file, g.index, g.rows) for g in manifest.row_groups] == [
        (0, 0, 3),
        (0, 1, 1),
        (1, 0, 3),
        (1, 1, 2),
    ]
    assert manifest.rows == 9
    assert manifest.columns == {"x": "int64"}


def test_manifest_of_a_single_file(tmp_path: Path) -> None:
    assert read_manifest(str(write(tmp_path) / "a.parquet"), SCHEMA).rows == 2


def test_manifest_survives_json_and_pickle(tmp_path: Path) -> None:
    manifest = read_manifest(str(write(tmp_path)), SCHEMA)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_any_fsspec_url_will_do(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{tmp_path.name}/a.parquet", (write(tmp_path) / "a.parquet").read_bytes())
    assert read_manifest(f"memory://{tmp_path.name}", SCHEMA).rows == 2


def test_row_groups_without_rows_are_skipped(tmp_path: Path) -> None:
    pq.write_table(pa.table(GOOD).slice(0, 0), tmp_path / "empty.parquet")
    write(tmp_path)
    manifest = read_manifest(str(tmp_path), SCHEMA)
    assert [manifest.files[g.file].path for g in manifest.row_groups] == [str(tmp_path / "a.parquet")]


def test_fingerprint_of_a_manifest_depends_on_content_only(tmp_path: Path) -> None:
    first = read_manifest(str(write(tmp_path)), SCHEMA).fingerprint
    assert read_manifest(str(tmp_path)).fingerprint == first
    os.utime(tmp_path / "a.parquet", (1, 1))
    touched = read_manifest(str(tmp_path)).fingerprint
    write(tmp_path, "b.parquet")
    assert touched == first, "a copied table is the same table"
    assert read_manifest(str(tmp_path)).fingerprint != first


def test_manifest_of_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="has no Parquet files"):
        read_manifest(str(tmp_path))


def test_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table(GOOD).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="1 Parquet files, but no rows"):
        read_manifest(str(tmp_path), SCHEMA)


@pytest.mark.parametrize("damage", ["text", "truncated", "nothing"])
def test_manifest_names_a_file_that_is_not_parquet(tmp_path: Path, damage: str) -> None:
    whole = (write(tmp_path, "good.parquet") / "good.parquet").read_bytes()
    content = {"text": b"age,sex\n1,2\n", "truncated": whole[:-20], "nothing": b""}[damage]
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.parquet is damaged or not"):
        read_manifest(str(tmp_path))


def test_manifest_names_both_files_of_a_column_with_two_types(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    write(tmp_path, "b.parquet", x=pa.array(["1", "2"]))
    with pytest.raises(DataError, match=r"'x' is float in .*a.parquet, but string in .*b.parquet"):
        read_manifest(str(tmp_path), SCHEMA)
    with pytest.raises(DataError, match="'x' is float"):
        read_manifest(str(tmp_path))


def test_manifest_names_a_missing_column_and_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'code' is missing \(it has x, image, y\)"):
        read_manifest(str(write(tmp_path, code=None)), SCHEMA)


def test_manifest_finds_a_column_missing_from_a_later_file(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet")
    write(tmp_path, "b.parquet", y=None)
    with pytest.raises(DataError, match=r"b\.parquet: column 'y' is missing"):
        read_manifest(str(tmp_path), SCHEMA)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("x", pa.array(["1", "2"]), "'x' is string, but a numeric feature must be a number"),
        ("code", pa.array([0.0, 1.0]), "'code' is double, but a categorical feature must be an integer code"),
        ("image", pa.array([0.0, 1.0]), "'image' is double, but an array feature must be a list of numbers"),
        ("image", pa.array([["a"], ["b"]]), "an array feature must be a list of numbers"),
        ("y", pa.array(["no", "yes"]), "'y' is string, but the label of a classification must be an integer"),
    ],
)
def test_text_where_numbers_belong_is_refused_with_the_cure(
    tmp_path: Path, column: str, values: pa.Array, message: str
) -> None:
    with pytest.raises(DataError, match=f"{message}.*spark-hpo prepare"):
        read_manifest(str(write(tmp_path, **{column: values})), SCHEMA)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("x", pa.array([None, 1.0], pa.float32())),
        ("image", pa.array([None, [1.0, 2.0]], pa.list_(pa.float32()))),
        ("y", pa.array([1, None], pa.int64())),
    ],
)
def test_nulls_are_found_in_the_footer(tmp_path: Path, column: str, values: pa.Array) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet: column '{column}' has 1 nulls in row group 0"):
        read_manifest(str(write(tmp_path, **{column: values})), SCHEMA)


def test_nulls_in_a_column_that_nobody_reads_do_no_harm(tmp_path: Path) -> None:
    assert read_manifest(str(write(tmp_path, note=pa.array([None, "n"]))), SCHEMA).rows == 2


def test_manifest_finds_nulls_of_a_column_after_a_nested_one(tmp_path: Path) -> None:
    nested = pa.array([{"p": 1, "q": [1]}, {"p": 2, "q": [2]}])
    table = {"nested": nested, **GOOD, "y": pa.array([1, None], pa.int64())}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'y' has 1 nulls"):
        read_manifest(str(tmp_path), SCHEMA)


def test_manifest_of_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(DataError, match="nosuch://bucket/t cannot be opened"):
        read_manifest("nosuch://bucket/t")


def test_manifest_of_a_valid_table_is_accepted(tmp_path: Path) -> None:
    folder = write_clusters(tmp_path / "t")
    assert read_manifest(str(folder / "train"), CLUSTERS).rows == 120
