"""Rows that this process reads part by part, several times: no table has to fit into memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_schema

from spark_hpo.data.filter.condition import with_row_hashes
from spark_hpo.data.filter.row_hash import hash_columns
from spark_hpo.data.filter.where import parse_where
from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.text_forms import DATES, TextForm
from spark_hpo.data.writer import write_splits
from spark_hpo.prepare import arrow_columns, arrow_facts, splits
from spark_hpo.prepare.arrow_columns import Columns, converted, filtered, instant, is_whole, number
from spark_hpo.prepare.arrow_table_facts import ArrowFacts, evaluated
from spark_hpo.prepare.column_facts import Analysis
from spark_hpo.prepare.column_kinds import ISO_IN_PLACE
from spark_hpo.prepare.json_rows import json_row
from spark_hpo.prepare.rows import AssignedGroup, Reading
from spark_hpo.prepare.splits import FOLD, ORDER, SPLIT
from spark_hpo.trial import Split

Place = tuple[str, int] | None
"""The file of a part, as a path below the table, and its row group."""


@dataclass(frozen=True)
class Parts:
    """The parts of a table, in the order of its files. Can be iterated several times."""

    read: Callable[[], Iterator[tuple[Place, Columns]]]

    def __iter__(self) -> Iterator[Columns]:
        return (columns for _, columns in self.read())


@dataclass(frozen=True)
class ArrowRows:
    """See `Rows`."""

    parts: Parts
    types: pa.Schema

    @cached_property
    def schema(self) -> T.StructType:
        return from_arrow_schema(self.types, prefer_timestamp_ntz=True)

    @property
    def columns(self) -> list[str]:
        return list(self.types.names)

    def _mapped(self, change: Callable[[Columns], Columns]) -> ArrowRows:
        return self._placed(lambda _, columns: change(columns))

    def _placed(self, change: Callable[[Place, Columns], Columns]) -> ArrowRows:
        def read() -> Iterator[tuple[Place, Columns]]:
            return ((place, change(place, columns)) for place, columns in self.parts.read())

        empty = {column.name: pa.array([], column.type) for column in self.types}
        found = change(None, empty)
        return ArrowRows(Parts(read), pa.schema([(name, values.type) for name, values in found.items()]))

    def original(self, null_values: Sequence[str]) -> ArrowRows:
        return self._mapped(
            lambda columns: {n: arrow_columns.original(v, null_values) for n, v in columns.items()}
        )

    def converted(self, readings: Mapping[str, TextForm | Reading]) -> ArrowRows:
        if not readings:
            return self
        return self._mapped(
            lambda columns: columns | {name: converted(columns[name], r) for name, r in readings.items()}
        )

    def with_copy(self, name: str, of: str, form: TextForm = TextForm.NONE) -> ArrowRows:
        return self._mapped(lambda columns: {**columns, name: converted(columns[of], form)})

    def without(self, names: Collection[str]) -> ArrowRows:
        return self._mapped(lambda columns: {n: v for n, v in columns.items() if n not in names})

    def where_present(self, name: str) -> ArrowRows:
        return self._mapped(lambda columns: filtered(columns, columns[name].is_valid()))

    @contextlib.contextmanager
    def kept(self) -> Iterator[ArrowRows]:
        yield self

    def is_fewer_than(self, rows: int) -> bool:
        return len(list(islice(self._rows(self.columns[:1]), rows))) < rows

    def head(self, names: Sequence[str], rows: int) -> Sequence[Sequence[Any]]:
        return list(islice(self._rows(names), rows))

    def examples(self, names: Sequence[str], rows: int) -> list[Any]:
        kinds = {field.name: field.dataType for field in self.schema}
        return [json_row(dict(zip(names, row, strict=True)), kinds) for row in self.head(names, rows)]

    def _rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for part in self.parts:
            values = [part[name] for name in names]
            for i in range(len(values[0])):
                yield tuple(column[i].as_py() for column in values)

    # Statistics

    def text_facts(self, name: str) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for part in self.parts:
            values = part[name]
            is_number = ~np.isnan(number(values))
            found["present"] += len(values) - values.null_count
            found[TextForm.NUMBER] += int(is_number.sum())
            for form in (TextForm.ISO, *DATES):
                parsed = instant(values, form)
                found[form] += len(parsed) - parsed.null_count
            # A number in text is readable, and so is a time; a null is unknown.
            unread = pc.and_(pc.invert(pc.match_substring_regex(values, ISO_IN_PLACE)), pa.array(~is_number))
            found["unreadable"] += pc.sum(unread).as_py() or 0
        return found

    def count_fractions(self, name: str) -> int:
        numbers = (number(part[name]) for part in self.parts)
        return sum(int((~np.isnan(found) & ~is_whole(found)).sum()) for found in numbers)

    def scalar_facts(
        self,
        names: Sequence[str],
        wanted: Collection[str],
        labels: Sequence[str],
        forms: Mapping[str, Sequence[TextForm]],
        *,
        is_small: bool,
    ) -> dict[str, Any]:
        return arrow_facts.scalar_facts(self.parts, names, wanted, labels, forms, is_small=is_small)

    def pairs(self, names: Sequence[str], label: str) -> list[Collection[Sequence[Any]]]:
        found: list[set[tuple[Any, ...]]] = [set() for _ in names]
        for part in self.parts:
            for pairs, name in zip(found, names, strict=True):
                both = pa.table([part[name], part[label]], ["a", "b"]).group_by(["a", "b"]).aggregate([])
                pairs.update(zip(both["a"].to_pylist(), both["b"].to_pylist(), strict=True))
        return list(found)

    def summary(self, kinds: Mapping[str, ColumnKind]) -> Mapping[str, Any]:
        return arrow_facts.summary(self.parts, kinds)

    def values(
        self, texts: Sequence[str], labels: Sequence[str], limit: int, *, in_place: bool
    ) -> dict[str, list[str]]:
        return arrow_facts.frequent_values(self.parts, texts, labels, limit, in_place=in_place)

    # Splits

    def with_order(self, seed: int) -> ArrowRows:
        hashed = [f.name for f in self.schema if not splits.holds_map(f.dataType)]

        def ordered(columns: Columns) -> Columns:
            return {**columns, ORDER: pa.array(hash_columns(seed, [columns[name] for name in hashed]))}

        return self._mapped(ordered)

    def with_split(self, fractions: Sequence[float], seed: int) -> ArrowRows:
        splits.check_fractions(fractions)
        cuts = splits.bucket_cuts(fractions)
        names = np.array([str(split) for split in Split])

        def assigned(columns: Columns) -> Columns:
            bucket = columns[ORDER].to_numpy() % splits.BUCKETS
            chosen = names[np.searchsorted(cuts, bucket, side="right")]
            return {**columns, SPLIT: pa.array(chosen, pa.string())}

        return self.with_order(seed)._mapped(assigned)

    def table_facts(self, names: Sequence[str]) -> ArrowFacts:
        return ArrowFacts(self.parts, pa.schema([self.types.field(name) for name in names]))

    def count_matches(self, where: Mapping[Split, str]) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for part in self.parts:
            meets = self._meets(part, where)
            found["rows"] += len(next(iter(meets.values())))
            found.update({str(split): int(mask.sum()) for split, mask in meets.items()})
            found.update({f"{a}, {b}": int((meets[a] & meets[b]).sum()) for a, b in combinations(Split, 2)})
        return found

    def split_where(self, where: Mapping[Split, str]) -> ArrowRows:
        def assigned(columns: Columns) -> Columns:
            meets = self._meets(columns, where)
            chosen = np.select(list(meets.values()), [str(split) for split in meets], "")
            kept = np.logical_or.reduce(list(meets.values()))
            return filtered({**columns, SPLIT: pa.array(chosen, pa.string())}, pa.array(kept))

        return self._mapped(assigned)

    def _meets(self, columns: Columns, where: Mapping[Split, str]) -> dict[Split, npt.NDArray[np.bool_]]:
        types = {column.name: column.type for column in self.types}
        conditions = {split: parse_where(where[split], None, types) for split in Split}
        needed = dict.fromkeys(name for c in conditions.values() for name in c.columns)
        rows = pa.table({name: columns[name] for name in needed})
        rows = with_row_hashes(rows, list(conditions.values()))
        rows = rows.append_column("", pa.array(np.arange(rows.num_rows)))
        meets = {}
        for split, condition in conditions.items():
            meets[split] = np.zeros(rows.num_rows, np.bool_)
            meets[split][rows.filter(condition.expression())[""].to_numpy()] = True
        return meets

    def split_by_row_groups(self, groups: Sequence[AssignedGroup], folder: str) -> ArrowRows:
        split_of = {(group.file, group.index): str(group.split) for group in groups}

        def assigned(place: Place, columns: Columns) -> Columns:
            rows = len(next(iter(columns.values())))
            split = split_of[place] if place is not None else ""
            return {**columns, SPLIT: pa.repeat(pa.scalar(split, pa.string()), rows)}

        return self._placed(assigned)

    def with_fold(self, term: str) -> ArrowRows:
        return self._mapped(lambda columns: {**columns, FOLD: evaluated(term, columns)})

    def write(self, analysis: Analysis, folder: str, row_group_rows: int) -> Mapping[str, int]:
        num_files = splits.num_files(analysis.total_rows, row_group_rows)
        encoded = self._mapped(lambda columns: arrow_columns.encode(columns, analysis))
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(prefix="spark_hpo-prepare-") as working:
            for number_, path in enumerate(_buckets(encoded, num_files, Path(working))):
                with pa.memory_map(str(path)) as source:
                    rows = pa.ipc.open_stream(source).read_all()
                rows = rows.sort_by([(SPLIT, "ascending"), (ORDER, "ascending")])
                names = [name for name in rows.column_names if name not in (SPLIT, ORDER)]
                batches = rows.select([SPLIT, *names]).combine_chunks().to_batches(row_group_rows)
                counts.update(write_splits(batches, folder, splits.file_name(number_), row_group_rows, names))
                path.unlink()
        return counts


def _buckets(rows: ArrowRows, num_files: int, folder: Path) -> Iterator[Path]:
    """Divide rows among files as Spark's `repartition` does, unordered; yield the path of each."""
    paths = [folder / f"{i}.arrow" for i in range(num_files)]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(path), rows.types)) for path in paths]
        for part in rows.parts:
            table = pa.table(part, rows.types)
            if num_files == 1:
                writers[0].write_table(table)
                continue
            bucket = splits.hash_partition(part[ORDER].to_numpy(), num_files)
            for i in np.unique(bucket):
                writers[i].write_table(table.filter(pa.array(bucket == i)))
    yield from paths
