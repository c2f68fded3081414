import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.data.loader import Batch, Loader
from spark_hpo.data.readers.memory import InMemory
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

SCHEMA = TableSchema(
    features=(
        Feature(name="id", kind=ColumnKind.NUMERIC),
        Feature(name="pair", kind=ColumnKind.ARRAY, shape=(2,)),
    ),
    label=Label(name="twice"),
)

# Not where pyarrow is newer than petastorm can be.
NO_PETASTORM = pytest.mark.skipif(
    importlib.util.find_spec("petastorm") is None, reason="petastorm is not installed"
)
READERS = ["arrow", pytest.param("petastorm", marks=NO_PETASTORM)]


def write(folder: Path, *, rows: int = 100, row_group_rows: int = 16, files: int = 2) -> Table:
    """Every row knows its number: id, pair = [id, -id], twice = 2 id."""
    for split in Split:
        (folder / split).mkdir(parents=True)
        for number, ids in enumerate(np.array_split(np.arange(rows), files)):
            columns = {
                "id": ids.astype("float32"),
                "pair": pa.array(list(np.stack([ids, -ids], 1).astype("float32"))),
                "twice": (2 * ids).astype("float32"),
            }
            path = folder / split / f"part-{number}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=row_group_rows)
    (folder / "schema.json").write_text(json.dumps(SCHEMA.to_json()))
    return open_table(str(folder))


def loader(table: Table, split: Split = Split.TRAIN, **options: object) -> Loader:
    settings = {
        "rank": 0,
        "world_size": 1,
        "batch_size": 10,
        "seed": 5,
        "reader": "arrow",
        "shuffle_window": 32,
    }
    return Loader(table, split, **{**settings, **options})  # type: ignore[arg-type]


def ids(batches: list[Batch]) -> list[int]:
    for batch in batches:
        assert torch.equal(batch["twice"], 2 * batch["id"]), "columns have come apart"
        assert torch.equal(batch["pair"], torch.stack([batch["id"], -batch["id"]], 1))
    return [int(i) for batch in batches for i in batch["id"]]


def epochs(of: Loader, start: int, stop: int) -> list[list[int]]:
    return [ids(list(batches)) for batches in of.passes(start, stop)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return write(tmp_path_factory.mktemp("table"))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(7, 60),
    row_group_rows=st.integers(1, 30),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 25),
    window=st.none() | st.integers(1, 40),
    cached=st.booleans(),
)
def test_loader_returns_each_row_once_per_epoch_over_all_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    row_group_rows: int,
    world_size: int,
    batch_size: int,
    window: int | None,
    cached: bool,
) -> None:
    table = write(tmp_path_factory.mktemp("table"), rows=rows, row_group_rows=row_group_rows)
    ranks = [
        loader(
            table,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            shuffle_window=window,
            kept_bytes=10**6 if cached else 0,
        )
        for rank in range(world_size)
    ]
    for epoch in range(2):
        first = next(ranks[0].passes(epoch, epoch + 1))
        batches = [list(next(of.passes(epoch, epoch + 1))) for of in ranks]
        assert {len(of_rank) for of_rank in batches} == {ranks[0].num_steps(0, 1)}
        assert sorted(i for of_rank in batches for i in ids(of_rank)) == list(range(rows))
        for step, together in enumerate(zip(*batches, strict=True)):
            assert sum(len(batch["id"]) for batch in together) == first.global_rows(step)
        assert sum(next(of.passes(0, 1)).rows for of in ranks) == rows == first.total_rows


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 5)), cached=st.booleans(), rank=st.integers(0, 1))
def test_any_split_of_the_epochs_sees_the_same_batches(
    table: Table, cuts: set[int], cached: bool, rank: int
) -> None:
    def fresh() -> Loader:
        return loader(table, rank=rank, world_size=2, kept_bytes=10**6 if cached else 0)

    at_once = epochs(fresh(), 0, 6)
    bounds = [0, *sorted(cuts), 6]
    in_pieces = [epochs(fresh(), a, b) for a, b in pairwise(bounds)]
    assert [epoch for piece in in_pieces for epoch in piece] == at_once


def test_loader_shuffles_by_epoch_and_seed(table: Table) -> None:
    orders = [*epochs(loader(table), 0, 3), *epochs(loader(table, seed=6), 0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_loader_shuffles_across_row_groups_within_the_window(table: Table) -> None:
    [order] = epochs(loader(table, shuffle_window=100), 0, 1)
    groups_in_first_batch = {i // 16 for i in order[:10]}
    assert len(groups_in_first_batch) > 2
    [narrow] = epochs(loader(table, shuffle_window=1), 0, 1)
    assert len({i // 16 for i in narrow[:10]}) <= 2


def test_loader_without_a_window_keeps_the_order_of_the_files(table: Table) -> None:
    evaluation = loader(table, Split.VALIDATION, shuffle_window=None)
    assert epochs(evaluation, 0, 2) == [list(range(100))] * 2


def test_batches_do_not_depend_on_the_memory_that_they_share(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> tuple[list[int], set[int]]:
        [batches] = loader(table, shuffle_window=64).passes(0, 1)
        read = list(batches)
        return ids(read), {id(batch["id"]._base) for batch in read}

    rows, stretches = read()
    monkeypatch.setattr("spark_hpo.data.loader.STRETCH_BYTES", 320)  # two batches of 160 bytes
    same, more_stretches = read()
    assert same == rows
    assert len(stretches) < len(more_stretches) < 10


def test_cached_shard_is_decoded_once(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    of = loader(table)
    assert isinstance(of._reader, InMemory)
    direct = of._reader._reader
    read = direct.read
    monkeypatch.setattr(direct, "read", lambda segments: reads.append(len(segments)) or read(segments))
    epochs(of, 0, 3)
    assert reads == [8, 0, 0]


def test_shard_larger_than_the_cache_is_streamed(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    of = loader(table, kept_bytes=100 * 16 - 1)
    read = of._reader.read
    monkeypatch.setattr(of._reader, "read", lambda segments: reads.append(len(segments)) or read(segments))
    epochs(of, 0, 3)
    assert reads == [8, 8, 8]


@settings(max_examples=40, deadline=None)
@given(
    world_size=st.integers(1, 3),
    parts=st.integers(1, 9),
    batch_size=st.integers(1, 25),
    kept=st.booleans(),
)
def test_parts_make_an_epoch_whoever_reads_them(
    table: Table, world_size: int, parts: int, batch_size: int, kept: bool
) -> None:
    ranks = [
        loader(
            table,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            parts=parts,
            kept_bytes=10**6 if kept else 0,
        )
        for rank in range(world_size)
    ]
    seen = []
    for number in range(parts):
        of_ranks = [next(of.passes(number, number + 1)) for of in ranks]
        assert {len(list(batches)) for batches in of_ranks} == {len(of_ranks[0])}
        rows = [i for batches in of_ranks for i in ids(list(batches))]
        assert len(rows) == of_ranks[0].total_rows
        seen.append(set(rows))
    assert sorted(i for rows in seen for i in rows) == list(range(100))
    assert ranks[0].num_steps(0, parts) == sum(len(p) for p in ranks[0].passes(0, parts))
    assert ranks[0].num_steps(1, 2 * parts) == sum(len(p) for p in ranks[0].passes(1, 2 * parts))
    # What a part holds depends neither on the ranks nor on the epoch.
    alone = loader(table, parts=parts)
    again = list(alone.passes(parts, 2 * parts))
    assert [set(ids(list(batches))) for batches in again] == seen


def test_more_parts_than_rows_are_refused(table: Table) -> None:
    with pytest.raises(DataError, match=r"100 rows in 80 parts.* 2 ranks.*smaller search"):
        loader(table, parts=80, world_size=2)


def test_epoch_that_is_left_halfway_does_not_affect_the_next(table: Table) -> None:
    of = loader(table)
    next(iter(next(of.passes(0, 1))))
    assert epochs(of, 0, 2) == epochs(loader(table), 0, 2)


@pytest.mark.parametrize("window", [None, 4])
def test_changes_of_a_batch_do_not_reach_the_cache(table: Table, window: int | None) -> None:
    of = loader(table, shuffle_window=window)
    for batch in next(of.passes(0, 1)):
        batch["id"].zero_()
    assert sorted(epochs(of, 1, 2)[0]) == list(range(100))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("id", pa.array([float("nan")] * 50, pa.float32()), "50 values are NaN or exceed float32"),
        ("id", pa.array([1e300] * 50), "50 values are NaN or exceed float32"),
        ("pair", pa.array([[1.0]] * 50, pa.list_(pa.float32())), r"16 arrays do not have 2 elements"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_loader_names_an_unusable_value(
    tmp_path: Path, reader: str, column: str, values: pa.Array, message: str
) -> None:
    write(tmp_path)
    path = tmp_path / "train" / "part-1.parquet"
    content = pq.read_table(path)
    content = content.set_column(content.schema.get_field_index(column), column, values)
    size = 50 if column == "id" else 16
    (tmp_path / "train" / "part-0.parquet").unlink()
    pq.write_table(content, path, row_group_size=size)
    with pytest.raises(DataError, match=rf"part-1\.parquet: row group 0, column '{column}': {message}"):
        epochs(loader(open_table(str(tmp_path)), shuffle_window=None, reader=reader), 0, 1)


def test_nulls_that_no_statistics_told_are_found_while_reading(tmp_path: Path) -> None:
    write(tmp_path, files=1)
    path = tmp_path / "train" / "part-0.parquet"
    content = pq.read_table(path)
    values = pa.array([None, *range(99)], pa.float32())
    pq.write_table(content.set_column(0, "id", values), path, write_statistics=False)
    with pytest.raises(DataError, match=r"part-0\.parquet: row group 0, column 'id': 1 nulls"):
        epochs(loader(open_table(str(tmp_path))), 0, 1)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", ["fewer rows", "fewer row groups", "gone", "damaged", "other columns"])
def test_loader_detects_a_table_that_changes(tmp_path: Path, reader: str, change: str) -> None:
    table = write(tmp_path)
    path = tmp_path / "train" / "part-1.parquet"
    content = pq.read_table(path)
    match change:
        case "fewer rows":
            pq.write_table(content.slice(1), path, row_group_size=16)
        case "fewer row groups":
            pq.write_table(content, path)
        case "gone":
            path.unlink()
        case "damaged":
            path.write_bytes(b"PAR1")
        case "other columns":
            pq.write_table(content.drop(["pair"]), path, row_group_size=16)
    with pytest.raises(DataError, match=r"part-1\.parquet"):
        epochs(loader(table, reader=reader, shuffle_window=None), 0, 1)


def test_labels_and_codes_outside_the_schema_are_refused(tmp_path: Path) -> None:
    schema = TableSchema(
        features=(Feature(name="code", kind=ColumnKind.CATEGORICAL, vocabulary=("a", "b")),),
        label=Label(name="y", classes=("no", "yes")),
    )
    columns = {"code": [0, 1, 2], "y": [0, 1, 1]}
    for split in Split:
        (tmp_path / split).mkdir()
        pq.write_table(pa.table(columns), tmp_path / split / "a.parquet")
    pq.write_table(pa.table({**columns, "y": [0, 1, 2]}), tmp_path / "train" / "a.parquet")
    pq.write_table(pa.table({**columns, "code": [-1, 1, 3]}), tmp_path / "test" / "a.parquet")
    (tmp_path / "schema.json").write_text(json.dumps(schema.to_json()))
    table = open_table(str(tmp_path))
    for split, message in {
        Split.TRAIN: r"column 'y': code 2 is outside 0..1",
        Split.TEST: r"column 'code': code -1 is outside 0..2",
    }.items():
        with pytest.raises(DataError, match=message):
            list(next(loader(table, split).passes(0, 1)))
    [batch] = next(loader(table, Split.VALIDATION, shuffle_window=None).passes(0, 1))
    assert batch["y"].dtype == batch["code"].dtype == torch.int64
