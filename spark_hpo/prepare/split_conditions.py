"""Turns a `split` section into a condition for each split, in SQL that Spark and the readers share.

A trace, for `{group: customer_id}` of a table with many customers:
    train:      xxhash64(0, cast(`customer_id` as bigint)) < 5534023222112865484
    validation: xxhash64(0, cast(`customer_id` as bigint)) >= 5534023222112865484 and ...
    test:       xxhash64(0, cast(`customer_id` as bigint)) >= 7378697629483820646
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Protocol

import pyarrow as pa

from spark_hpo.config import SplitConfig
from spark_hpo.data.filter.row_hash import check_key
from spark_hpo.data.filter.sql import any_of, literal, quoted
from spark_hpo.data.schema import FoldBy, FoldOrder
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

MAX_COUNTED = 100_000  # different values whose rows are counted exactly
_MANY_GROUPS = 10_000  # with more groups, shares of the hash are shares of the groups
_MAX_STRATA = 1_000
_MAX_SHOWN = 20  # values in a message

Counts = Sequence[tuple[Any, int]]
"""Values in ascending order, with their rows. A null comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """The rows with one value, in the order of their hashes."""

    value: Any
    rows: int
    cuts: tuple[int | None, int | None]  # the first hash of validation, and of test; None: none is left


class TableFacts(Protocol):
    """Answers questions about all rows of a table."""

    types: Mapping[str, pa.DataType]

    def counts(self, expression: str, limit: int) -> Counts | None:
        """Count the rows by the value of an SQL expression; None: it has more than `limit` values."""
        ...

    def quantiles(self, column: str, shares: Sequence[float]) -> Sequence[Any]: ...

    def strata(self, column: str, expression: str, fractions: Sequence[float]) -> Sequence[Stratum]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConditions:
    """A condition for each split; a row that meets none of them is left out."""

    where: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    fold_by: FoldBy | None = None


def conditions_of(
    split: SplitConfig,
    facts: TableFacts,
    fractions: Sequence[float],
    *,
    called: Mapping[str, str] | None = None,
) -> SplitConditions:
    """Derive the conditions of a split that columns decide.

    Args:
        fractions: shares of train, validation and test.
        called: names of columns in remarks, where they differ.

    Raises:
        DataError: a column is missing or has a type, nulls or values that cannot decide a split.
    """
    return _Planner(split, facts, fractions, called or {}).conditions()


def call_of(columns: Sequence[str], types: Mapping[str, pa.DataType], seed: int) -> str:
    """Return the call of `xxhash64` that hashes these columns, whatever the width of their integers.

    Raises:
        DataError: a column cannot be hashed.
    """
    arguments = [str(seed)]
    for name in columns:
        try:
            check_key(name, types[name])
        except TypeError as exc:
            raise DataError(f"{exc}. Use another column to split by") from exc
        is_integer = pa.types.is_integer(types[name])
        arguments.append(f"cast({quoted(name)} as bigint)" if is_integer else quoted(name))
    return f"xxhash64({', '.join(arguments)})"


def balanced_cuts(rows: Sequence[int], fractions: Sequence[float]) -> tuple[int, int]:
    """Return the first index of validation and of test, so that shares are as close as whole items allow.

    Args:
        rows: of at least three items, which stay in this order.
    """
    ends = [0, *accumulate(rows)]
    total = ends[-1]

    def nearest(share: float, low: int, high: int) -> int:
        return min(range(low, high + 1), key=lambda i: abs(ends[i] - share * total))

    first = nearest(fractions[0], 1, len(rows) - 2)
    return first, nearest(fractions[0] + fractions[1], first + 1, len(rows) - 1)


def _between(term: str, cuts: tuple[str, str]) -> dict[str, str]:
    low, high = cuts
    return {
        Split.TRAIN: f"{term} < {low}",
        Split.VALIDATION: f"{term} >= {low} and {term} < {high}",
        Split.TEST: f"{term} >= {high}",
    }


def _hash_cuts(fractions: Sequence[float]) -> tuple[str, str]:
    """Return the hashes at which shares of all 2**64 hashes end."""
    train, validation = (round(sum(fractions[: i + 1]) * 2**32) * 2**32 - 2**63 for i in range(2))
    return str(train), str(validation)


def _equals(column: str, value: Any) -> str:
    return f"{quoted(column)} is null" if value is None else f"{quoted(column)} = {literal(value)}"


class _Planner:
    def __init__(
        self, split: SplitConfig, facts: TableFacts, fractions: Sequence[float], called: Mapping[str, str]
    ) -> None:
        self._split, self._facts, self._fractions, self._called = split, facts, tuple(fractions), called
        for name in split.columns:
            if name not in facts.types:
                raise DataError(
                    f"there is no column {name!r} to split by; the columns are {', '.join(facts.types)}"
                )

    def conditions(self) -> SplitConditions:
        split = self._split
        if split.group and split.time:
            return self._by_group_and_time()
        if split.group:
            return self._by_group(self._fractions)
        if split.time:
            return self._by_time(split.time, self._fractions)
        if split.column:
            return self._by_column(split.column)
        columns = split.key or self._hashable(without=split.stratify)
        call = call_of(columns, self._facts.types, split.seed)
        if split.stratify:
            return self._by_stratum(split.stratify, call, columns)
        return SplitConditions(
            where=_between(call, _hash_cuts(self._fractions)),
            fold_by=FoldBy(order=FoldOrder.GROUP, term=call, columns=columns),
        )

    def _hashable(self, without: str | None) -> tuple[str, ...]:
        names = []
        for name, kind in self._facts.types.items():
            try:
                check_key(name, kind)
            except TypeError:
                continue
            names.append(name)
        return tuple(name for name in names if name != without) or tuple(names)

    def _by_group(self, fractions: Sequence[float]) -> SplitConditions:
        call = call_of(self._split.group, self._facts.types, self._split.seed)
        fold_by = FoldBy(order=FoldOrder.GROUP, term=call, columns=self._split.group)
        counts = self._facts.counts(call, _MANY_GROUPS)
        if counts is None:
            return SplitConditions(where=_between(call, _hash_cuts(fractions)), fold_by=fold_by)
        name = ", ".join(map(repr, self._split.group))
        if len(counts) < len(Split):
            raise DataError(
                f"the column {name} has {len(counts)} different values, and a split by groups needs at least "
                "3: one each for train, validation and test. Use another column, or split by time or key"
            )
        rows = [count for _, count in counts]
        first, second = balanced_cuts(rows, fractions)
        sides = (sum(rows[:first]), sum(rows[first:second]), sum(rows[second:]))
        shares = ", ".join(
            f"{split} {side / sum(rows):.1%}" for split, side in zip(Split, sides, strict=True)
        )
        return SplitConditions(
            where=_between(call, (str(counts[first][0]), str(counts[second][0]))),
            remarks=(f"split by the {len(counts):,} groups of {name}: {shares} of the rows",),
            fold_by=fold_by,
        )

    def _by_time(self, name: str, fractions: Sequence[float]) -> SplitConditions:
        self._check_time(name)
        shown = self._called.get(name, name)
        counts = self._facts.counts(quoted(name), MAX_COUNTED)
        if counts is not None:
            self._check_times(shown, counts)
            first, second = balanced_cuts([rows for _, rows in counts], fractions)
            cuts = [counts[first][0], counts[second][0]]
        else:
            missing = self._facts.counts(f"{quoted(name)} is null", 2) or ()
            self._check_times(shown, [(None, rows) for is_null, rows in missing if is_null])
            cuts = list(self._facts.quantiles(name, [fractions[0], fractions[0] + fractions[1]]))
            if cuts[0] == cuts[1]:
                raise DataError(
                    f"{self._shown(name, cuts[0])} is the time {shown!r} of so many rows that no validation "
                    "rows are left. Use other fractions, or a finer time"
                )
        from_, until = (self._shown(name, cut) for cut in cuts)
        return SplitConditions(
            where=_between(quoted(name), (literal(cuts[0]), literal(cuts[1]))),
            remarks=(
                f"split by {shown!r}: train before {from_}, validation from {from_}, test from {until}",
            ),
            fold_by=FoldBy(order=FoldOrder.TIME, term=quoted(name), columns=(name,)),
        )

    def _check_time(self, name: str) -> None:
        kind = self._facts.types[name]
        t = pa.types
        is_time = t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind)
        if not (is_time or t.is_date(kind) or t.is_timestamp(kind) or t.is_string(kind)):
            raise DataError(
                f"column {name!r} is {kind}, and a split by time needs a date, a time or a number"
            )

    def _check_times(self, shown: str, counts: Counts) -> None:
        missing = sum(rows for value, rows in counts if value is None or value != value)
        if missing:
            raise DataError(
                f"the time {shown!r} is missing in {missing:,} rows, so they cannot be split by time. Fill "
                "or remove these rows, or split by another column"
            )
        if counts and len(counts) < len(Split):
            raise DataError(
                f"the time {shown!r} has {len(counts)} different values, and a split by time needs at least "
                "3: one each for train, validation and test. Use a finer time, or split by key"
            )
        text = [value for value, _ in counts if isinstance(value, str)]
        if any(len(value) < 10 or value[4] + value[7] != "--" for value in text):
            raise DataError(
                f"the time {shown!r} is text such as {text[0]!r}, which is not in the order of time. Prepare "
                "a copy, which parses dates, or write the column as a date"
            )

    def _shown(self, name: str, value: Any) -> str:
        if name in self._called and isinstance(value, float):  # seconds since 1970 of a parsed date
            return (
                datetime.fromtimestamp(value, UTC)
                .replace(tzinfo=None)
                .isoformat(" ")
                .removesuffix(" 00:00:00")
            )
        return str(value)

    def _by_column(self, name: str) -> SplitConditions:
        counts = self._facts.counts(quoted(name), _MAX_STRATA)
        known = dict(counts) if counts is not None else {}
        is_text = pa.types.is_string(self._facts.types[name])
        given: Mapping[Any, Iterable[Any]] = self._split.values or {}
        values = {
            split: [str(value) if is_text else value for value in given.get(str(split), [str(split)])]
            for split in Split
        }
        listed = [value for side in values.values() for value in side]
        twice = [value for value in listed if listed.count(value) > 1]
        if twice:
            raise DataError(
                f"the value {twice[0]!r} of {name!r} is in two splits. Name it once in split.values"
            )
        unknown = [value for value in known if value not in listed]
        missing = [side for side, own in values.items() if not any(value in known for value in own)]
        if counts is None or unknown or missing:
            found = ", ".join(map(repr, list(known)[:_MAX_SHOWN])) if counts else f"over {_MAX_STRATA} values"
            fault = (
                f"no row for {missing[0]}" if missing else f"the value {unknown[0]!r}, which names no split"
            )
            raise DataError(
                f"the split column {name!r} has {fault} (it has {found}). Say which values are train, "
                "validation and test: split.values"
            )
        return SplitConditions(
            where={split: f"{quoted(name)} in ({', '.join(map(literal, values[split]))})" for split in Split},
        )

    def _by_stratum(self, name: str, call: str, columns: Sequence[str]) -> SplitConditions:
        counts = self._facts.counts(quoted(name), _MAX_STRATA)
        if counts is None or any(value != value for value, _ in counts):
            raise DataError(
                f"column {name!r} has more than {_MAX_STRATA} different values, too many to stratify by. Use "
                "a column of classes"
            )
        sides: dict[str, list[str]] = {split: [] for split in Split}
        for stratum in self._facts.strata(name, call, self._fractions):
            own = _equals(name, stratum.value)
            low, high = stratum.cuts
            sides[Split.TRAIN].append(f"({own} and {call} < {low})" if low is not None else f"({own})")
            if low is not None:
                upper = f" and {call} < {high}" if high is not None else ""
                sides[Split.VALIDATION].append(f"({own} and {call} >= {low}{upper})")
            if high is not None:
                sides[Split.TEST].append(f"({own} and {call} >= {high})")
        empty = [split for split, parts in sides.items() if not parts]
        if empty:
            raise DataError(f"no value of {name!r} has enough rows for {', '.join(empty)}. Use more rows")
        return SplitConditions(
            where={split: any_of(parts) for split, parts in sides.items()},
            fold_by=FoldBy(order=FoldOrder.STRATUM, term=call, columns=tuple(columns), stratum=name),
        )

    def _by_group_and_time(self) -> SplitConditions:
        """Give each split its own groups and its own period; rows of its groups outside of it are left out.

        Groups and periods both have shares in proportion to the roots of the fractions, so that the rows
        that are left, the products of both, have the fractions.
        """
        assert self._split.time is not None, "the caller has checked it"
        roots = [fraction**0.5 for fraction in self._fractions]
        shares = [root / sum(roots) for root in roots]
        by_group = self._by_group(shares)
        by_time = self._by_time(self._split.time, shares)
        assert by_group.fold_by is not None, "groups decide on folds"
        return SplitConditions(
            where={split: f"{by_group.where[split]} and {by_time.where[split]}" for split in Split},
            remarks=by_time.remarks,
            fold_by=replace(by_group.fold_by, time=self._split.time),
        )
