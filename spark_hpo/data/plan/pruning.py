"""Counts the rows of each row group that match a filter, from statistics where they decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.files import File
from spark_hpo.data.filter.condition import Bounds, Condition, select_rows, with_row_hashes
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.footers import Footer

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row group with its footer and the conditions, in terms of the columns of its file."""

    file: File
    footer: Footer
    index: int
    constants: Mapping[str, pa.Scalar]  # columns that are the same in all rows of the file
    conditions: tuple[Condition, ...]

    @property
    def rows(self) -> int:
        return int(self.footer.row_groups[self.index][0])

    def bounds(self, columns: Sequence[str]) -> dict[str, Bounds]:
        """Return the bounds of those columns that have any."""
        found = {}
        for name in columns:
            if (value := self.constants.get(name)) is not None:
                known = value.as_py()
                found[name] = Bounds(
                    low=known, high=known, may_be_null=known is None, may_have_value=known is not None
                )
            elif (statistics := self.footer.statistics(self.index, name)) is not None:
                nulls = statistics.null_count if statistics.has_null_count else None
                low, high = (statistics.min, statistics.max) if statistics.has_min_max else (None, None)
                if low != low or high != high:  # some writers include NaN in the statistics
                    low = high = None
                found[name] = Bounds(
                    low=low, high=high, may_be_null=nulls != 0, may_have_value=nulls != self.rows
                )
        return found


def matching_rows(fs: Any, candidates: Sequence[Candidate]) -> list[tuple[int, ...]]:
    """Count the rows of each row group that match each of its conditions.

    Columns are read only if statistics do not decide, and once for all conditions.

    Raises:
        DataError: a file cannot be read.
    """
    decided = [[_by_statistics(candidate, c) for c in candidate.conditions] for candidate in candidates]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(_counted, fs), candidates, decided))


def _by_statistics(candidate: Candidate, condition: Condition) -> int | None:
    """Return all rows or 0, or None if the statistics do not decide."""
    outcomes = condition.outcomes(candidate.bounds(condition.columns))
    if outcomes == {True}:
        return candidate.rows
    return None if True in outcomes else 0


def _counted(fs: Any, candidate: Candidate, decided: Sequence[int | None]) -> tuple[int, ...]:
    known = tuple(rows for rows in decided if rows is not None)
    return known if len(known) == len(decided) else _by_counting(fs, candidate, decided)


def _by_counting(fs: Any, candidate: Candidate, decided: Sequence[int | None]) -> tuple[int, ...]:
    pairs = list(zip(candidate.conditions, decided, strict=True))
    needed = dict.fromkeys(name for c, rows in pairs if rows is None for name in c.columns)
    columns = [name for name in needed if name not in candidate.constants]
    file = candidate.file
    with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
        table = pq.ParquetFile(source).read_row_group(candidate.index, columns=columns, use_threads=False)
    table = partitions.add_columns(table, candidate.constants)
    table = with_row_hashes(table, [c for c, rows in pairs if rows is None])
    return tuple(select_rows(table, c).num_rows if rows is None else rows for c, rows in pairs)
