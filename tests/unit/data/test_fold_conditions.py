"""Folds that follow groups, time and strata."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_hpo.data.loader import Loader
from spark_hpo.data.plan.fold_conditions import balanced_cuts
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, FoldBy, FoldOrder, Label, Source, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.trial import Split

BY_GROUP = FoldBy(order=FoldOrder.GROUP, term="xxhash64(7, cast(`g` as bigint))", columns=("g",))
BY_TIME = FoldBy(order=FoldOrder.TIME, term="`t`", columns=("t",))
BY_STRATUM = FoldBy(
    order=FoldOrder.STRATUM, term="xxhash64(7, cast(`id` as bigint))", columns=("id",), stratum="s"
)
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, fold_by: FoldBy | None, test_rows: int = 5, **columns: Any) -> Table:
    """Training and validation rows with ids from 0 on, and some test rows, mixed in one file."""
    rows = len(next(iter(columns.values())))
    ids = np.arange(rows)
    split = np.where(ids % 7 == 3, "validation", "train")
    split[0], split[1] = "train", "validation"
    content = pa.table({"id": ids, "class": ids % 2, "split": split, **columns})
    test = content.slice(0, min(test_rows, rows))
    test = test.set_column(2, "split", pa.array(["test"] * len(test)))
    mixed = pa.concat_tables([content, test]).combine_chunks()
    order = np.random.default_rng(0).permutation(len(mixed))
    (folder / "rows").mkdir(parents=True)
    pq.write_table(mixed.take(order), folder / "rows/part-0.parquet", row_group_size=20)
    schema = TableSchema(
        features=(Feature(name="id", kind=ColumnKind.NUMERIC, source="id"),),
        label=Label(name="class", classes=("0", "1")),
        encoding=Encoding.RAW,
        sources={split: Source(url=str(folder / "rows"), where=f"split = '{split}'") for split in Split},
        fold_by=fold_by,
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def ids_of(table: Table, split: Split) -> list[int]:
    loader = Loader(
        table, split, rank=0, world_size=1, batch_size=16, seed=0, reader="arrow", shuffle_window=None
    )
    return sorted(int(v) for batches in loader.passes(0, 1) for batch in batches for v in batch["id"])


def folds_of(table: Table, count: int) -> list[tuple[list[int], list[int]]]:
    divided = table.divided(count)
    folds = [divided.fold(number, count, seed=0) for number in range(1, count + 1)]
    return [(ids_of(fold, Split.TRAIN), ids_of(fold, Split.VALIDATION)) for fold in folds]


@SLOW
@given(groups=st.lists(st.integers(-5, 12), min_size=12, max_size=80), count=st.integers(2, 4))
def test_no_group_is_on_two_sides_of_a_fold(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], count: int
) -> None:
    if len(set(groups)) < count:
        return
    table = write(tmp_path_factory.mktemp("t") / "table", BY_GROUP, g=pa.array(groups, pa.int32()))
    held_out: Counter[int] = Counter()
    for training, out in folds_of(table, count):
        assert {groups[i] for i in training}.isdisjoint(groups[i] for i in out)
        assert sorted(training + out) == list(range(len(groups)))
        held_out.update(out)
    assert held_out == Counter(range(len(groups)))


@SLOW
@given(days=st.lists(st.integers(0, 30), min_size=12, max_size=80), count=st.integers(2, 4))
def test_each_fold_is_later_than_the_rows_that_are_trained_on(
    tmp_path_factory: pytest.TempPathFactory, days: list[int], count: int
) -> None:
    if len(set(days)) < count + 1:
        return
    times = [date(2026, 1, 1) + timedelta(days=day) for day in days]
    table = write(tmp_path_factory.mktemp("t") / "table", BY_TIME, t=times)
    before: list[int] = []
    for training, out in folds_of(table, count):
        assert max(days[i] for i in training) < min(days[i] for i in out)
        assert not before or training == before, "the next fold trains on the folds before it"
        before = sorted(training + out)
    assert before == list(range(len(days)))


@SLOW
@given(
    strata=st.lists(st.sampled_from(["a", "b", "c's", None]), min_size=12, max_size=80),
    count=st.integers(2, 4),
)
def test_each_stratum_is_divided_to_within_one_row(
    tmp_path_factory: pytest.TempPathFactory, strata: list[str | None], count: int
) -> None:
    table = write(tmp_path_factory.mktemp("t") / "table", BY_STRATUM, s=strata)
    sizes = Counter(strata)
    if max(sizes.values()) < count:
        return
    held_out: Counter[int] = Counter()
    for training, out in folds_of(table, count):
        assert sorted(training + out) == list(range(len(strata)))
        for stratum, found in Counter(strata[i] for i in out).items():
            assert abs(found - sizes[stratum] / count) <= 1
        held_out.update(out)
    assert held_out == Counter(range(len(strata)))


def test_groups_and_time_together_leave_rows_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    groups, days = rng.integers(0, 20, 200), rng.integers(0, 50, 200)
    by = replace(BY_GROUP, time="t")
    table = write(tmp_path / "table", by, g=pa.array(groups, pa.int32()), t=days)
    for training, out in folds_of(table, 3):
        assert training
        assert out
        assert {groups[i] for i in training}.isdisjoint(groups[i] for i in out)
        assert max(days[i] for i in training) < min(days[i] for i in out)


@pytest.mark.parametrize(
    "times",
    [
        [datetime(2026, 1, 1, 12, 30) + timedelta(hours=i) for i in range(30)],
        [float(i) / 3 - 4 for i in range(30)],
        [Decimal(i).scaleb(-2) for i in range(30)],
        [f"2026-01-{day:02d}" for day in range(1, 31)],
        pa.array([1_700_000_000_000_000 + i for i in range(30)], pa.timestamp("us", "UTC")),
        pa.array([i * 1_000 for i in range(30)], pa.timestamp("ns")),
    ],
)
def test_time_may_have_any_type(tmp_path: Path, times: Any) -> None:
    table = write(tmp_path / "table", BY_TIME, t=times)
    folds = folds_of(table, 2)
    assert [(len(training), len(out)) for training, out in folds] == [(10, 10), (20, 10)]
    assert folds[0][0] == list(range(10))


def test_folds_are_balanced_by_rows() -> None:
    assert balanced_cuts([5, 1, 1, 5], 2) == [2]
    assert balanced_cuts([100, 1, 1, 1], 3) == [1, 2]
    assert balanced_cuts([1, 1, 1], 3) == [1, 2]


def test_more_folds_than_groups_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "table", BY_GROUP, g=[1, 2, 3] * 10)
    with pytest.raises(ConfigError) as caught:
        table.divided(4)
    assert (caught.value.key, caught.value.value) == ("search.max_resource", 4)


def test_more_folds_than_times_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "table", BY_TIME, t=[1, 2, 3] * 10)
    assert len(table.divided(2).folds) == 2
    with pytest.raises(ConfigError):
        table.divided(3)


def test_missing_time_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "table", BY_TIME, t=[None, *range(29)])
    with pytest.raises(DataError):
        table.divided(2)


def test_table_without_such_columns_is_not_divided(tmp_path: Path) -> None:
    table = write(tmp_path / "table", None, g=[1] * 30)
    assert table.divided(3) is table


def test_copy_is_divided_by_its_stored_key(tmp_path: Path) -> None:
    """A copy has train/ and validation/, and a fold may have no row of one of them."""
    groups = np.repeat(np.arange(10), 6)
    schema = TableSchema(
        features=(Feature(name="id", kind=ColumnKind.NUMERIC),),
        label=Label(name="class", classes=("a", "b")),
        fold_by=FoldBy(order=FoldOrder.GROUP, term="`__fold`", columns=("__fold",)),
    )
    for split, own in {"train": groups < 7, "validation": groups == 7, "test": groups > 7}.items():
        (tmp_path / split).mkdir()
        ids = np.flatnonzero(own)
        content = {"id": ids.astype("float32"), "class": ids % 2, "__fold": groups[own]}
        pq.write_table(pa.table(content), tmp_path / split / "part-0.parquet", row_group_size=9)
    (tmp_path / "schema.json").write_text(json.dumps(schema.to_json()))
    for training, out in folds_of(open_table(str(tmp_path)), 4):
        assert sorted(training + out) == list(range(48))
        assert len(out) == 12
        assert {groups[i] for i in training}.isdisjoint(groups[i] for i in out)


def test_copy_is_divided_by_its_stored_stratum_and_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    strata = np.where(rng.random(90) < 0.2, "yes", "it's no")
    days = rng.integers(0, 40, 90) * 86_400.0
    stored = {"__fold": rng.integers(-(2**62), 2**62, 90), "__fold_stratum": strata, "__fold_time": days}
    schema = TableSchema(
        features=(Feature(name="id", kind=ColumnKind.NUMERIC),), label=Label(name="class", classes=("a", "b"))
    )
    for split, own in {"train": slice(0, 60), "validation": slice(60, 80), "test": slice(80, 90)}.items():
        (tmp_path / split).mkdir()
        ids = np.arange(90)[own]
        content = {"id": ids.astype("float32"), "class": ids % 2} | {k: v[own] for k, v in stored.items()}
        pq.write_table(pa.table(content), tmp_path / split / "part-0.parquet", row_group_size=9)
    by = FoldBy(order=FoldOrder.STRATUM, term="`__fold`", columns=("__fold",), stratum="__fold_stratum")
    (tmp_path / "schema.json").write_text(json.dumps(replace(schema, fold_by=by).to_json()))
    total = sum(strata[:80] == "yes")
    for training, out in folds_of(open_table(str(tmp_path)), 4):
        assert sorted(training + out) == list(range(80))
        assert abs(sum(strata[i] == "yes" for i in out) - total / 4) <= 1
    by = replace(by, order=FoldOrder.GROUP, stratum="", time="__fold_time")
    (tmp_path / "schema.json").write_text(json.dumps(replace(schema, fold_by=by).to_json()))
    for training, out in folds_of(open_table(str(tmp_path)), 2):
        assert max(days[i] for i in training) < min(days[i] for i in out)


def test_divided_table_survives_json_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    table = write(tmp_path / "table", BY_GROUP, g=[1, 2, 3] * 10)
    divided = table.divided(3)
    assert Table.from_json(json.loads(json.dumps(divided.to_json()))) == divided
    assert divided.fingerprint == table.fingerprint


def test_schema_without_fold_columns_is_stored_as_before(tmp_path: Path) -> None:
    table = write(tmp_path / "table", None, g=[1] * 30)
    assert "fold_by" not in table.schema.to_json()
    assert TableSchema.from_json(table.schema.to_json()) == table.schema
    assert replace(table.schema, fold_by=BY_TIME) == TableSchema.from_json(
        json.loads(json.dumps(replace(table.schema, fold_by=BY_TIME).to_json()))
    )
