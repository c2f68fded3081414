"""Splits keep what they promise: groups whole, periods apart, strata in proportion. Without a JVM.

`ArrowFacts` answers from Arrow what `SparkFacts` asks Spark. Both kinds of tables have the same conditions,
and here readers select the rows. tests/integration/test_split.py compares them with the rows that Spark
copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spark_hpo.config import SplitConfig
from spark_hpo.config.split import split_config
from spark_hpo.data.filter.condition import select_rows
from spark_hpo.data.filter.where import parse_where
from spark_hpo.errors import DataError
from spark_hpo.prepare.split_conditions import (
    Counts,
    SplitConditions,
    Stratum,
    balanced_cuts,
    conditions_of,
)
from spark_hpo.trial import Split

FRACTIONS = (0.6, 0.2, 0.2)
DAY = date(2026, 1, 1)
fractions_of_three = st.tuples(*(st.integers(1, 20),) * 3).map(lambda n: tuple(x / sum(n) for x in n))


class ArrowFacts:
    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.types = {column.name: column.type for column in table.schema}

    def _values(self, expression: str) -> list[Any]:
        if not expression.startswith("xxhash64"):
            values = self.table[expression.split("`")[1]].to_pylist()
            return [v is None for v in values] if expression.endswith("is null") else values
        condition: Any = parse_where(f"{expression} < 0", None, self.types)
        return list(condition.row_hash.of(self.table).to_pylist())

    def counts(self, expression: str, limit: int) -> Counts | None:
        counts = Counter(self._values(expression))
        ordered = sorted((pair for pair in counts.items() if pair[0] is not None), key=lambda pair: pair[0])
        ordered = [(None, counts[None])] * (None in counts) + ordered
        return ordered if len(ordered) <= limit else None

    def quantiles(self, column: str, shares: Sequence[float]) -> Sequence[Any]:
        values = sorted(self._values(f"`{column}`"))
        return [values[min(int(share * len(values)), len(values) - 1)] for share in shares]

    def strata(self, column: str, expression: str, fractions: Sequence[float]) -> Sequence[Stratum]:
        found: dict[Any, list[int]] = {}
        for value, hashed in zip(self._values(f"`{column}`"), self._values(expression), strict=True):
            found.setdefault(value, []).append(hashed)

        def cut(hashes: list[int], share: float) -> int | None:
            rank = int(len(hashes) * share + 0.5)
            return sorted(hashes)[rank] if rank < len(hashes) else None

        return [
            Stratum(
                value=value,
                rows=len(hashes),
                cuts=(cut(hashes, fractions[0]), cut(hashes, fractions[0] + fractions[1])),
            )
            for value, hashes in found.items()
        ]


def planned(table: pa.Table, fractions: Sequence[float] = FRACTIONS, **section: Any) -> SplitConditions:
    return conditions_of(split_config(section), ArrowFacts(table), fractions)


def selected(table: pa.Table, conditions: SplitConditions) -> dict[Split, pa.Table]:
    """The rows that readers select for each split."""
    types = {column.name: column.type for column in table.schema}
    return {split: select_rows(table, parse_where(conditions.where[split], None, types)) for split in Split}


def check_whole(table: pa.Table, parts: dict[Split, pa.Table]) -> None:
    """Every row is in one split."""
    assert sorted(row for part in parts.values() for row in part["row"].to_pylist()) == list(
        range(len(table))
    )
    assert all(len(part) for part in parts.values())


def of(part: pa.Table, name: str) -> set[Any]:
    return set(part[name].to_pylist())


names = st.text("ab'\\ü ", max_size=3)


@given(groups=st.lists(names | st.none(), min_size=3, max_size=60), fractions=fractions_of_three)
def test_no_group_is_on_two_sides(groups: list[str | None], fractions: tuple[float, ...]) -> None:
    assume(len(set(groups)) >= 3)
    table = pa.table({"group": pa.array(groups, pa.string()), "row": range(len(groups))})
    parts = selected(table, planned(table, fractions, group="group"))
    check_whole(table, parts)
    sides = [of(part, "group") for part in parts.values()]
    assert sum(map(len, sides)) == len(set(groups))


@given(
    days=st.lists(st.integers(0, 30), min_size=3, max_size=80),
    fractions=fractions_of_three,
    kind=st.sampled_from(
        [pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.int32(), pa.string()]
    ),
)
def test_no_time_overlaps(days: list[int], fractions: tuple[float, ...], kind: pa.DataType) -> None:
    assume(len(set(days)) >= 3)
    if pa.types.is_integer(kind):
        times = pa.array(days, kind)
    elif pa.types.is_string(kind):
        times = pa.array([str(DAY + timedelta(day)) for day in days])
    elif pa.types.is_date(kind):
        times = pa.array([DAY + timedelta(day) for day in days], kind)
    else:
        start = datetime(2026, 1, 1, 3, 4, 5, 678901, UTC)
        times = pa.array([start + timedelta(day) for day in days], pa.timestamp("us", "UTC")).cast(kind)
    table = pa.table({"day": times, "row": range(len(days))})
    parts = selected(table, planned(table, fractions, time="day"))
    check_whole(table, parts)
    sides = [of(part, "day") for part in parts.values()]
    assert max(sides[0]) < min(sides[1])
    assert max(sides[1]) < min(sides[2])


@given(
    labels=st.lists(st.sampled_from(["yes", "no", "it's", None]), min_size=30, max_size=120),
    fractions=fractions_of_three,
)
def test_strata_have_their_shares_to_within_one_row(
    labels: list[str | None], fractions: tuple[float, ...]
) -> None:
    assume(all(fraction > 0.05 for fraction in fractions))
    table = pa.table({"label": pa.array(labels, pa.string()), "row": range(len(labels))})
    parts = selected(table, planned(table, fractions, key="row", stratify="label"))
    assert sorted(row for part in parts.values() for row in part["row"].to_pylist()) == list(
        range(len(table))
    )
    for value, rows in Counter(labels).items():
        for split, fraction in zip(Split, fractions, strict=True):
            assert abs(parts[split]["label"].to_pylist().count(value) - fraction * rows) <= 1


@given(data=st.data())
def test_groups_in_time_share_neither_groups_nor_periods(data: st.DataObject) -> None:
    rows = data.draw(st.integers(50, 150))
    groups = data.draw(st.lists(st.integers(0, 20), min_size=rows, max_size=rows))
    days = data.draw(st.lists(st.integers(0, 40), min_size=rows, max_size=rows))
    assume(len(set(groups)) >= 3 and len(set(days)) >= 3)
    table = pa.table({"group": groups, "day": days, "row": range(rows)})
    parts = selected(table, planned(table, group="group", time="day"))
    assume(all(len(part) for part in parts.values()))
    sides = [of(part, "group") for part in parts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))
    periods = [of(part, "day") for part in parts.values()]
    assert max(periods[0]) < min(periods[1])
    assert max(periods[1]) < min(periods[2])


@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60, unique=True),
    seed=st.integers(0, 2**40),
)
def test_a_split_by_key_depends_on_the_key_alone(keys: list[int], seed: int) -> None:
    wide = pa.table({"id": keys, "name": [str(key) for key in keys], "row": range(len(keys))})
    narrow = wide.select(["row", "id"]).slice(0, len(keys) // 2 + 1)
    of_wide, of_narrow = (selected(table, planned(table, key="id", seed=seed)) for table in (wide, narrow))
    kept = set(narrow["id"].to_pylist())
    for split in Split:
        assert of(of_narrow[split], "id") == of(of_wide[split], "id") & kept
    assert sum(map(len, of_wide.values())) == len(keys)


def test_a_split_by_key_has_its_shares() -> None:
    table = pa.table({"id": range(20_000)})
    parts = selected(table, planned(table, key="id"))
    for split, fraction in zip(Split, FRACTIONS, strict=True):
        assert abs(len(parts[split]) / 20_000 - fraction) < 0.01


def test_a_split_column_names_the_split_of_each_row() -> None:
    table = pa.table({"fold": ["train", "test", "validation", "train"], "n": [0, 1, 2, 0], "row": range(4)})
    by_name = selected(table, planned(table, column="fold"))
    by_number = selected(
        table, planned(table, column="n", values={"train": 0, "validation": [2], "test": [1]})
    )
    for parts in (by_name, by_number):
        assert [part["row"].to_pylist() for part in parts.values()] == [[0, 3], [2], [1]]


@given(rows=st.lists(st.integers(1, 50), min_size=3, max_size=30), fractions=fractions_of_three)
def test_balanced_cuts_leave_no_side_empty(rows: list[int], fractions: tuple[float, ...]) -> None:
    first, second = balanced_cuts(rows, fractions)
    assert 0 < first < second < len(rows)
    if fractions[0] * sum(rows) >= rows[0] and first < len(rows) - 2:  # no item more would come closer
        share = fractions[0] * sum(rows)
        assert abs(sum(rows[:first]) - share) <= abs(sum(rows[: first + 1]) - share)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"group": "one"}, "one"),
        ({"group": "two"}, "two"),
        ({"group": "nobody"}, "nobody"),
        ({"group": "tags"}, "tags"),
        ({"key": "nobody"}, "nobody"),
        ({"time": "gaps"}, "gaps"),
        ({"time": "holes"}, "holes"),
        ({"time": "one"}, "one"),
        ({"time": "written"}, "written"),
        ({"time": "tags"}, "tags"),
        ({"column": "fold"}, "dev"),
        ({"column": "no_test"}, "test"),
        (
            {"column": "no_test", "values": {"train": "train", "validation": "validation", "test": "train"}},
            "two splits",
        ),
        ({"stratify": "holes"}, "holes"),
        ({"stratify": "nobody"}, "nobody"),
    ],
)
def test_a_column_that_cannot_decide_a_split_is_named(section: dict[str, Any], named: str) -> None:
    table = pa.table(
        {
            "one": [1, 1, 1, 1],
            "two": [1, 2, 1, 2],
            "gaps": [1, 2, None, 4],
            "holes": [1.0, 2.0, float("nan"), 4.0],
            "written": ["1.2.2026", "2.2.2026", "3.2.2026", "4.2.2026"],
            "tags": [["a"], [], [], []],
            "fold": ["train", "dev", "validation", "test"],
            "no_test": ["train", "validation", "validation", "train"],
        }
    )
    with pytest.raises(DataError) as refused:
        planned(table, **section)
    assert named in str(refused.value)


def test_a_split_with_many_strata_can_be_parsed() -> None:
    table = pa.table({"label": [i % 900 for i in range(9_000)], "row": range(9_000)})
    parts = selected(table, planned(table, key="row", stratify="label"))
    assert [len(part) for part in parts.values()] == [5_400, 1_800, 1_800]


def test_split_config_without_columns_is_the_default() -> None:
    assert SplitConfig(seed=3).is_default
